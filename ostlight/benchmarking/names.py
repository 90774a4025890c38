"""Names of the rows of a comparison, as short as they can be and still differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ostlight.benchmarking.results import ResultRow


@dataclass(frozen=True)
class SharedSettings:
    """What all trained rows have in common, in words; empty where they differ or have none.

    Attributes:
        stratify_by: tag whose shares all budgets keep.
    """

    stratify_by: str
    protocol: str

    @property
    def phrases(self) -> list[str]:
        """For a title."""
        return [text for text in (self.stratify_by and f"by {self.stratify_by}", self.protocol) if text]


def shared_settings(rows: Sequence[ResultRow]) -> SharedSettings:
    """Returns what a title can say once for all rows."""
    return SharedSettings(
        _only_value({row.budget.partition(" by ")[2] for row in rows if row.budget}),
        _only_value({protocol_words(row.protocol) for row in rows if row.protocol}),
    )


def short_names(rows: Sequence[ResultRow]) -> list[str]:
    """Returns a name for each row, without its variant and without what all trained rows have in common."""
    shared, names = shared_settings(rows), []
    for row in rows:
        size, _, tag = row.budget.partition(" by ")
        strata = f"by {tag}" if tag and tag != shared.stratify_by else ""
        protocol = "" if shared.protocol else protocol_words(row.protocol)
        names.append(" ".join(filter(None, [row.label, size, strata, protocol])))
    return names


def protocol_words(protocol: str) -> str:
    """Returns the protocol as a reader sees it."""
    return protocol.replace("_", " ")


def _only_value(values: set[str]) -> str:
    return values.pop() if len(values) == 1 else ""

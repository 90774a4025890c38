"""Names for the lines of a comparison, as short as they can be and still differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class Named(Protocol):
    """What names a line; its variant does too, but stands in a column or heading of its own."""

    @property
    def label(self) -> str: ...
    @property
    def budget(self) -> str: ...
    @property
    def protocol(self) -> str: ...


@dataclass(frozen=True)
class Common:
    """What all trained lines share: the tag a budget is spent within, and the protocol, in words. Empty where they
    differ or have none."""

    stratify_by: str
    protocol: str

    @property
    def words(self) -> list[str]:
        """For a title."""
        return [*([f"by {self.stratify_by}"] if self.stratify_by else []), *([self.protocol] if self.protocol else [])]


def in_common(lines: Sequence[Named]) -> Common:
    """To be said once, not in every name."""
    return Common(
        _only({line.budget.partition(" by ")[2] for line in lines if line.budget}),
        _only({_words(line.protocol) for line in lines if line.protocol}),
    )


def short_names(lines: Sequence[Named]) -> list[str]:
    """A name for each line, without its variant and without what all trained lines have in common."""
    common, names = in_common(lines), []
    for line in lines:
        size, _, tag = line.budget.partition(" by ")
        within = f"by {tag}" if tag and tag != common.stratify_by else ""
        protocol = _words(line.protocol) if line.protocol and not common.protocol else ""
        names.append(" ".join(filter(None, [line.label, size, within, protocol])))
    return names


def _only(values: set[str]) -> str:
    return values.pop() if len(values) == 1 else ""


def _words(protocol: str) -> str:
    return protocol.replace("_", " ")

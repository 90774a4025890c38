"""Names for the lines of a comparison, as short as they can be and still differ."""

from __future__ import annotations

from collections.abc import Sequence

from ostlight.comparison.results import Line


def short_names(lines: Sequence[Line]) -> tuple[list[str], list[str]]:
    """A name for each line, without its variant and without what all trained lines have in common, and that."""
    protocols = {line.protocol for line in lines if line.protocol}
    budgets = [line.budget.partition(" within ") for line in lines]
    tags = {tag for size, _, tag in budgets if size}
    names = []
    for line, (size, _, tag) in zip(lines, budgets, strict=True):
        within = f"within {tag}" if tag and len(tags) > 1 else ""
        protocol = line.protocol.replace("_", " ") if len(protocols) > 1 else ""
        names.append(" ".join(filter(None, [line.label, size, within, protocol])))
    common = [f"within {tag}" for tag in tags if tag and len(tags) == 1]
    common += [p.replace("_", " ") for p in protocols if len(protocols) == 1]
    return names, common

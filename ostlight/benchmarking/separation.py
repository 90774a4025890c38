"""Which selector's scores tell clean from defective records? A table of AUROCs, with what each selector cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ostlight.benchmarking.auroc import Auroc, auroc
from ostlight.benchmarking.table import TextTable, flops_text
from ostlight.selection.score_files import ScoreFiles
from ostlight.selection.scores import OK

OVERALL = ""
"""Of all pairs of records, whatever their tags."""


@dataclass(frozen=True)
class Separation:
    """How well one selector's scores separate clean from defective records.

    Attributes:
        scored: records with a score.
        auroc: over all pairs (``OVERALL``), and over pairs with the same value of each tag; ``None`` where there is no
            pair to compare.
        flops, seconds: of warm-up, scoring and selecting; device-seconds.
    """

    variant: str
    selector: str
    scored: int
    auroc: dict[str, Auroc | None]
    flops: float
    seconds: float


def measure_separation(
    scores: Path, labels: Mapping[str, str], within: Sequence[str]
) -> tuple[int, dict[str, Auroc | None]]:
    """Returns how many records have a score, and the AUROCs by tag, as ``Separation`` has them.

    Args:
        scores: folder of score files.
        labels: defect by id, of the defective records.
        within: tags.
    """
    files = ScoreFiles(scores)
    state, score = files.column("state").to_pylist(), files.column("score").to_numpy()
    known = np.array([value == OK for value in state]) & np.isfinite(score.astype(np.float64))
    is_clean = np.array([id not in labels for id in files.column("id").to_pylist()])[known]
    found: dict[str, Auroc | None] = {OVERALL: auroc(score[known], is_clean)}
    for tag in within:
        encoded = files.tags(only=tag).get(tag)
        if encoded is None:
            found[tag] = None
        else:
            tagged = encoded[1][known] > 0  # code 0: the record lacks the tag
            found[tag] = auroc(score[known][tagged], is_clean[tagged], encoded[1][known][tagged])
    return int(known.sum()), found


def separation_table(rows: Sequence[Separation]) -> TextTable:
    """Returns AUROCs with their 95% intervals, one column for all pairs and one for each tag."""
    within = list(rows[0].auroc)
    variant = ["variant"] if any(row.variant for row in rows) else []
    headings = [*variant, "selector", *(f"AUROC within {tag}" if tag else "AUROC" for tag in within)]
    texts = [
        [
            *([row.variant] if variant else []),
            row.selector,
            *(_text(row.auroc[tag]) for tag in within),
            f"{row.scored}",
            flops_text(row.flops),
            f"{row.seconds:.1f}",
        ]
        for row in rows
    ]
    return TextTable([*headings, "records", "selection FLOPs", "selection, device seconds"], texts, len(variant) + 1)


def separation_record(row: Separation) -> dict[str, Any]:
    """Returns a row unrounded, for JSON."""
    values = {tag or "all": None if found is None else _record(found) for tag, found in row.auroc.items()}
    known = {"selector": row.selector, "records": row.scored, "auroc": values}
    return ({"variant": row.variant} if row.variant else {}) | known | {"flops": row.flops, "device_s": row.seconds}


def _record(found: Auroc) -> dict[str, float | None]:
    """What it is, with ``None`` for what is not known: JSON has no NaN."""
    return {name: None if np.isnan(value) else value for name, value in vars(found).items()}


def _text(found: Auroc | None) -> str:
    if found is None:
        return ""
    interval = "" if np.isnan(found.low) else f" [{found.low:.2f}, {found.high:.2f}]"
    return f"{found.value:.2f}{interval}"

"""Results of cells, kept one file a cell so that a stopped benchmark goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from scipy import stats

from ostlight.comparison.cells import Cell
from ostlight.data.atomic import atomic_path

CONFIDENCE = 0.95


@dataclass
class CellResult:
    """What one cell came to.

    Attributes:
        accuracy: by group, ``all`` among them; 0 to 1.
        kept: samples trained on.
        defect_share: share of them that the truth calls defective; ``None`` without a truth.
        selection_s, training_s: device-seconds.
        selection_flops, training_flops: as the ledger counts them.
        selection_calls, selection_price: requests the selector made to a served model, and what they cost.
    """

    label: str
    budget: str
    protocol: str
    seed: int
    accuracy: dict[str, float]
    kept: int = 0
    defect_share: float | None = None
    selection_s: float = 0.0
    training_s: float = 0.0
    selection_flops: float = 0.0
    training_flops: float = 0.0
    selection_calls: int = 0
    selection_price: float = 0.0
    defects_kept: dict[str, int] = field(default_factory=dict)


def load_result(folder: Path, cell: Cell) -> CellResult | None:
    """The cell's result where it is finished."""
    file = folder / f"{cell.name}.json"
    return CellResult(**json.loads(file.read_text())) if file.exists() else None


def save_result(folder: Path, cell: Cell, result: CellResult) -> None:
    """Writes the cell's file; that it is there means the cell is finished."""
    with atomic_path(folder / f"{cell.name}.json") as temporary:
        temporary.write_text(json.dumps(asdict(result), indent=1))


@dataclass(frozen=True)
class Interval:
    """Mean over seeds and the half-width of its 95% interval (Student's t); NaN for a single seed."""

    mean: float
    half: float
    n: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Interval:
        array = np.array(list(values), dtype=float)
        if len(array) < 2:
            return cls(float(array.mean()), float("nan"), len(array))
        spread = float(array.std(ddof=1)) / len(array) ** 0.5
        return cls(float(array.mean()), float(stats.t.ppf((1 + CONFIDENCE) / 2, len(array) - 1)) * spread, len(array))


@dataclass(frozen=True)
class Line:
    """A row of the table: all seeds of one selector at one budget and protocol."""

    label: str
    budget: str
    protocol: str
    accuracy: dict[str, Interval]
    defect_share: float | None
    selection_s: float
    training_s: float
    selection_flops: float
    training_flops: float
    selection_calls: float = 0.0
    selection_price: float = 0.0


def summarise(results: Sequence[CellResult]) -> list[Line]:
    """One line for every selector, budget and protocol, in the order they first appear."""
    keys = list({(r.label, r.budget, r.protocol): None for r in results})
    lines = []
    for key in keys:
        mine = [r for r in results if (r.label, r.budget, r.protocol) == key]
        shares = [r.defect_share for r in mine if r.defect_share is not None]
        lines.append(
            Line(
                *key,
                accuracy={g: Interval.of(r.accuracy[g] for r in mine) for g in mine[0].accuracy},
                defect_share=float(np.mean(shares)) if shares else None,
                selection_s=float(np.mean([r.selection_s for r in mine])),
                training_s=float(np.mean([r.training_s for r in mine])),
                selection_flops=float(np.mean([r.selection_flops for r in mine])),
                training_flops=float(np.mean([r.training_flops for r in mine])),
                selection_calls=float(np.mean([r.selection_calls for r in mine])),
                selection_price=float(np.mean([r.selection_price for r in mine])),
            )
        )
    return lines


def write_jsonl(results: Sequence[CellResult], path: Path) -> None:
    """One record a figure: ``{selector, budget, protocol, seed, group, metric, value}``."""
    records = []
    for r in results:
        key = {"selector": r.label, "budget": r.budget, "protocol": r.protocol, "seed": r.seed}
        records += [key | {"group": g, "metric": "accuracy", "value": v} for g, v in r.accuracy.items()]
        for metric in ("kept", "defect_share", "selection_s", "training_s", "selection_flops", "training_flops"):
            records.append(key | {"group": "all", "metric": metric, "value": getattr(r, metric)})
        for metric in ("selection_calls", "selection_price"):
            if getattr(r, metric):
                records.append(key | {"group": "all", "metric": metric, "value": getattr(r, metric)})
    with atomic_path(path) as temporary:
        temporary.write_text("".join(json.dumps(record) + "\n" for record in records))

"""Rankings of one pool at one budget, with scales tuned on the anchors, and the table set-wise benchmarks write."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from _perceptrons import BATCH, BRIEF_STEPS, LR, Scored, losses, trained
from _record import Recorder
from scipy.stats import t as student

from ostlight.selection.set_objective import Constraints, SetObjective, SetSolution, solve_set


@dataclass(frozen=True)
class Scale:
    """Step size and batch size of a set objective; an infinite batch size is the plain form."""

    eta: float
    batch_size: float = math.inf


@dataclass(frozen=True)
class Choice:
    """The scale whose set led to the lowest loss on the anchors, and that set."""

    scale: Scale
    pick: SetSolution


PLAIN_SCALES = [Scale(e) for e in (0.25, 0.5, 1, 2, 4, 8)]
BATCH_SCALES = [Scale(eta, b) for eta in (0.15, 0.5, 1.5, 5.0) for b in (4, 32, 256)]
SINGLE_SCALES = [Scale(eta, 1) for eta in (0.015, 0.05, 0.15, 0.5, 1.5, 5.0)]

Selections = dict[str, np.ndarray]
Notes = dict[str, float]
Store = dict[tuple[str, str], list[float]]
UNITS = {
    "tuned_eta": "step",
    "tuned_batch_size": "samples",
    "relative_gap": "ratio",
    "relative_greedy_gap": "ratio",
    "true_over_sketched": "ratio",
    "anchor_loss": "nats",
    "step_size_by_rule": "step",
    "auroc_defect": "share",
}


class Rankings:
    """Rankings at one budget, from one proxy; the scales of those marked ``tuned`` by brief trainings."""

    lr, brief_steps = LR, BRIEF_STEPS
    plain_scales: Sequence[Scale] = PLAIN_SCALES
    batch_scales: Sequence[Scale] = BATCH_SCALES

    def __init__(self, scored: Scored, size: int) -> None:
        self.scored, self.size, self.count = scored, size, len(scored.f)
        self.selections: Selections = {}
        self.notes: Notes = {}

    def anchor_losses(self, scored: Scored, sets: list[np.ndarray]) -> dict[bytes, float]:
        """Of brief trainings, side by side."""
        models, _ = trained(scored.proxy, scored.digits["pool"], sets, self.brief_steps, BATCH, scored.seed, self.lr)
        found = losses(models, *scored.digits["anchors"]).mean(-1).tolist()
        return {np.sort(rows).tobytes(): loss for rows, loss in zip(sets, found, strict=True)}

    def choose(self, name: str, scales: Sequence[Scale], pick: Callable[[Scale], SetSolution]) -> Choice:
        found = {scale: pick(scale) for scale in scales}
        known = self.anchor_losses(self.scored, [one.rows for one in found.values()])
        losses_after = [known[np.sort(found[scale].rows).tobytes()] for scale in scales]
        lowest = min((loss, k) for k, loss in enumerate(losses_after) if math.isfinite(loss))[1]
        best = Choice(scales[lowest], found[scales[lowest]])
        self.selections[name] = best.pick.rows
        self.notes[f"{name}|tuned_eta"] = best.scale.eta
        if math.isfinite(best.scale.batch_size):
            self.notes[f"{name}|tuned_batch_size"] = best.scale.batch_size
        self.notes[f"{name}|relative_gap"] = best.pick.gap / max(abs(best.pick.bound), 1e-12)
        self.notes[f"{name}|relative_greedy_gap"] = best.pick.greedy_gap / max(abs(best.pick.bound), 1e-12)
        return best

    def sets(self, name: str, phi: np.ndarray, constraints: Constraints, forms: str = "FJ") -> Choice:
        f, exact = self.scored.f, self.scored.phi(None)

        def solved(scale: Scale) -> SetSolution:
            settings = {"eta": scale.eta, "batch_size": scale.batch_size, "size": constraints.size}
            return solve_set(SetObjective.minibatch(f, phi, **settings), constraints)

        for form in forms:
            label = {"F": "set plain", "J": "set minibatch"}[form] + f" {name} tuned"
            choice = self.choose(label, self.plain_scales if form == "F" else self.batch_scales, solved)
            rows = choice.pick.rows
            seen = float(np.square(phi[rows].mean(0)).sum())
            self.notes[f"{label}|true_over_sketched"] = float(np.square(exact[rows].mean(0)).sum()) / max(seen, 1e-12)
        return choice


def fixed(rows: np.ndarray) -> SetSolution:
    """A ranking's set, which no bound was proven of."""
    return SetSolution(rows, 0.0, 0.0, 0.0, 0.0, 0.0)


def half_width(values: Sequence[float]) -> float:
    """Of the 95% interval of the mean (Student)."""
    n = len(values)
    return float(student.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n)) if n > 1 else math.nan


def written(
    record: Recorder, split: str, accuracies: Store, shares: Store, notes: dict[str, list[float]], others: Sequence[str]
) -> None:
    """Every figure's mean and 95% interval, paired differences to the ``others``, and the notes' medians."""

    def add(key: tuple[str, str], metric: str, values: list[float], unit: str) -> None:
        low, high = np.percentile(values, [20, 80]).tolist()
        case = f"split={split} {key[0]} ranking={key[1].replace(' ', '_')}".replace("  ", " ")
        spread = {"unit": unit, "n": len(values)}
        record.add(case=case, metric=metric, value=float(np.mean(values)), p20=low, p80=high, **spread)
        record.add(case=case, metric=f"{metric}_ci95", value=half_width(values), **spread)

    for key, values in accuracies.items():
        add(key, "accuracy", values, "share")
    for key, values in shares.items():
        add(key, "clean_share", values, "share")
    for (case, ranking), values in accuracies.items():
        for other in others:
            if (case, other) in accuracies and other != ranking:
                paired = (np.array(values) - np.array(accuracies[case, other])).tolist()
                add((case, ranking), f"accuracy_above_{other.replace(' ', '_')}", paired, "share")
    for name, values in notes.items():
        case, _, metric = name.rpartition("|")
        case, _, ranking = case.partition("|")
        case = f"split={split} {case}" + (f" ranking={ranking.replace(' ', '_')}" if ranking else "")
        case = case.strip().replace("  ", " ")
        low, middle, high = np.percentile(values, [20, 50, 80], method="lower").tolist()
        record.add(case=case, metric=metric, value=middle, p20=low, p80=high, unit=UNITS[metric], n=len(values))


def table(accuracies: Store, shares: Store, cases: Sequence[str]) -> str:
    """Mean accuracy ± half its 95% interval, and the clean share in brackets, by ranking and case."""
    rankings = list(dict.fromkeys(ranking for _, ranking in accuracies))
    lines = ["| ranking | " + " | ".join(cases) + " |", "| --- |" + " --- |" * len(cases)]
    for ranking in rankings:
        columns = []
        for case in cases:
            key = next(k for k in ((case, ranking), (case.split()[0], ranking), ("", ranking)) if k in accuracies)
            clean = f" ({np.mean(shares[key]):.2f})" if key in shares else ""
            columns.append(f"{np.mean(accuracies[key]):.3f} ± {half_width(accuracies[key]):.3f}{clean}")
        lines.append(f"| {ranking} | " + " | ".join(columns) + " |")
    return "\n".join(lines)

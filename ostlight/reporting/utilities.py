"""The part of the page about scored samples: utilities, sources, samples and reliability."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np

from ostlight.reporting.charts import Histogram, histogram
from ostlight.reporting.finished_run import FinishedRun
from ostlight.reporting.matrix import compute_matrices
from ostlight.reporting.sample_cards import Card, make_cards, sample_lists
from ostlight.reporting.score_columns import ScoreColumns
from ostlight.reporting.selections import cutoff_score
from ostlight.selection.notes import PRECONDITIONER, UTILITY

SHOWN_ELSEWHERE = ("rank_agreement", "groups", "best_of", PRECONDITIONER, UTILITY)
"""Notes that are no further facts: other places of the page show them, or only `explain` reads them."""


def utilities_section(scores: ScoreColumns) -> dict[str, Any]:
    """Returns what the templates ask for under ``scored``."""
    run = scores.run
    if not len(scores):
        run.missing.append("Scores: every record was rejected.")
    lists = sample_lists(scores)
    return {
        "run": run,
        "scores": scores,
        "scale": scores.scale,
        "toxic": int(scores.toxic.sum()),
        "selections": _selections(scores),
        "histograms": _histograms(scores),
        "matrices": compute_matrices(scores),
        "lists": {name: len(rows) for name, rows in lists.items()},
        "cards": _cards(scores, lists),
        "agreement": run.notes.get("rank_agreement"),
        "trials": {
            b: noted["best_of"] for b, noted in run.selection_notes.items() if isinstance(noted.get("best_of"), dict)
        },
        "facts": list(_facts(run)),
    }


def _selections(scores: ScoreColumns) -> list[dict[str, Any]]:
    """Returns each selection with its counts."""
    shown = []
    for selection, margin in zip(scores.selections, scores.margins, strict=True):
        toxic = int((scores.toxic & selection.kept).sum())
        counts = {
            "size": selection.size,
            "scored": selection.scored,
            "toxic": toxic,
            "has_cutoff": margin is not None,
        }
        shown.append(vars(selection) | counts)
    return shown


def _facts(run: FinishedRun) -> Iterator[tuple[str, str, Any]]:
    """Budget (empty for the whole run), name and value of each note that no other place of the page shows."""
    for budget, noted in {"": run.notes, **run.selection_notes}.items():
        for name, value in noted.items():
            if name in SHOWN_ELSEWHERE:
                continue
            if isinstance(value, dict):
                value = {k: v for k, v in value.items() if not isinstance(v, dict | list)}
            yield budget, name, value


def _histograms(scores: ScoreColumns) -> list[Histogram]:
    """One for each selection, with the cutoff that a ranking of the whole pool would have; else one for all budgets."""
    score = scores.score
    if not len(scores):
        return []
    if scores.selections:
        cutoffs = [{f"cutoff of budget {s.budget}": cutoff_score(score, s.scored)} for s in scores.selections]
        return [histogram(scores, *pair, scores.scale) for pair in zip(scores.selections, cutoffs, strict=True)]
    thresholds = {b.label: b.threshold for b in scores.run.budgets if b.threshold is not None}
    sizes = {b.label: b.size(len(score)) for b in scores.run.budgets if b.threshold is None and b.tokens is None}
    ranked = thresholds | {label: cutoff_score(score, size) for label, size in sizes.items()}
    return [histogram(scores, None, {f"cutoff of budget {label}": v for label, v in ranked.items()}, scores.scale)]


def _cards(scores: ScoreColumns, lists: dict[str, np.ndarray]) -> list[Card]:
    """Each listed sample once, with the lists it is in, best first."""
    lists_by_row: dict[int, list[str]] = defaultdict(list)
    for name, rows in lists.items():
        for row in rows.tolist():
            lists_by_row[row].append(name)
    return sorted(make_cards(scores, lists_by_row), key=lambda card: card.summary.place)

"""``selection: filter``: admit the samples whose step lowers the anchor loss, then take a random subset of them."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.special import ndtr

from ostlight.config.budget import Budget
from ostlight.errors import DataError
from ostlight.selection.admission import admitted_first, warn_of_filling
from ostlight.selection.random_numbers import uniform_by_id
from ostlight.selection.scores import Scores
from ostlight.selection.set_objective import gradient_clusters
from ostlight.selection.strata import CLUSTERS, select_per_stratum

log = logging.getLogger("ostlight.selectors.ost")

ADMITTED, STRENGTH = "filter.admitted", "filter.strength"
"""Columns of the table while rows are selected from it."""
SHOWN = 8
"""Values of a tag whose shares are logged."""
MOST_VALUES = 100
"""Tags of more values than that (file names, say) are not reported."""
ROWS_AT_ONCE = 1 << 18
NEARLY_ALL = 0.9
"""Share admitted from which on a warning says that a draw is hardly a selection."""
SURE = 0.95
"""Share of bootstrap draws from which on a sign is called sure."""


def select_filter(
    scores: Scores, budget: Budget, then: str, min_confidence: float | None, by_anchor: str, admit: str = "mean"
) -> np.ndarray:
    """Rows of admitted samples within the budget, in the order that ``then`` names; then, if they are too few, the
    rows that come closest to being admitted.

    A sample is admitted if a small step on it lowers the anchor loss, ``<g_i, g_V> > 0`` (``alignment``; the utility
    where there is no such column, from ``exact``). What the sign says is reliable where the size is not: the highest
    utilities are the samples that are easy, alike, and help the average anchor (docs/explanation/selection.md).

    Args:
        scores: of ``ost``.
        budget: strata get their shares; of the admitted a threshold keeps those whose score reaches it.
        then: ``random``, ``coverage``, or a column, with a minus for lowest first.
        min_confidence: a sample's utility must also be positive in at least that share of bootstrap draws of the
            anchors; see ``sign_confidence``.
        by_anchor: name of the column of each anchor's utility.
        admit: whose loss the step must lower; see ``strength_of``.

    Raises:
        DataError: a column that is named or needed is not there.
    """
    strength = strength_of(scores, admit)
    admitted, confidence = strength > 0, None
    if by_anchor in scores and len(scores) and scores.column(by_anchor).shape[1] > 1:
        confidence = sign_confidence(scores.column(by_anchor))
    if min_confidence is not None:
        if confidence is None:
            raise DataError(
                f"min_confidence needs the column {by_anchor!r} of two anchors or more: score with "
                "utility_by_anchor=true, or leave min_confidence out"
            )
        admitted &= confidence >= min_confidence
    _report(scores, admitted, confidence)
    scores = scores.with_columns({ADMITTED: admitted, STRENGTH: strength})

    def within(part: Scores, share: Budget) -> np.ndarray:
        passed, order = part.column(ADMITTED), _order(part, then)
        if share.threshold is not None:
            return share.within(part, order[passed[order]])
        by_strength = np.lexsort((part.positions, -part.column(STRENGTH)))
        return share.within(part, admitted_first(passed, order, by_strength))

    selected = within(scores, budget) if budget.stratify_by is None else select_per_stratum(scores, budget, within)
    warn_of_filling(log, "filter", selected, admitted)
    return selected


def strength_of(scores: Scores, admit: str) -> np.ndarray:
    """``[N]`` numbers of which the sign admits: by how much a small step lowers the loss that ``admit`` names.

    - ``mean``: of all anchors.
    - ``own_group``: of the anchors in the sample's own group; of all where its group has no anchor.
    - ``no_group_hurt``: of all, and no group's rises by more than that; the lower of both numbers.

    Raises:
        DataError: groups are asked for and there are none.
    """
    mean = scores.column("alignment" if "alignment" in scores else "score")
    if admit == "mean":
        return mean
    if "utility_by_group" not in scores:
        raise DataError(
            f"admit={admit} needs the column 'utility_by_group': name the tag that groups the anchors (anchors.group)"
        )
    by_group = scores.column("utility_by_group")
    if admit == "no_group_hurt":
        # By the utilities' own mean: alignment may be in other units.
        return np.minimum(mean, by_group.min(1) + scores.column("score"))
    tag = scores.context.group_tag if scores.in_run else None
    if tag is None:
        raise DataError(
            "admit=own_group needs a run with anchors.group: which tag names a sample's group is not stored"
        )
    column_of = {name: k for k, name in enumerate(sorted(set(scores.context.anchor_groups())))}
    columns = np.array([column_of.get(str(value), -1) for value in scores.tag(tag)], dtype=np.int64)
    own = by_group[np.arange(len(scores)), np.maximum(columns, 0)]
    return np.where(columns >= 0, own, mean)


def sign_confidence(by_anchor: np.ndarray) -> np.ndarray:
    """``[N]`` share of bootstrap draws of the anchors in which the mean of ``by_anchor [N, A]`` is positive.

    By the normal approximation, ``Phi(mean / standard error)``. The scale of a row does not matter.
    """
    found = np.empty(len(by_anchor))
    for start in range(0, len(by_anchor), ROWS_AT_ONCE):
        values = by_anchor[start : start + ROWS_AT_ONCE].astype(np.float64)
        means, error = values.mean(1), values.std(1) / np.sqrt(values.shape[1])
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(error > 0, means / error, np.sign(means) * np.inf)
        found[start : start + ROWS_AT_ONCE] = ndtr(np.nan_to_num(ratio, nan=0.0))
    return found


def _order(scores: Scores, then: str) -> np.ndarray:
    """All rows in the order that ``then`` names; equal values keep the pool's order."""
    if then == "random":
        return np.argsort(seeded_uniform(scores), kind="stable")
    if then == "coverage":
        return _cluster_by_cluster(scores)
    name, sign = then.removeprefix("-"), 1 if then.startswith("-") else -1
    numbers = [field.name for field in scores.schema if field.type in NUMBERS]
    if name not in numbers:
        raise DataError(
            f"then={then} names no column of numbers of the scores; it takes random, coverage, {', '.join(numbers)}"
        )
    return np.lexsort((scores.positions, sign * scores.column(name).astype(np.float64)))


NUMBERS = (pa.float64(), pa.float32(), pa.int64(), pa.int32())


def _cluster_by_cluster(scores: Scores) -> np.ndarray:
    """Clusters of gradients take turns, each with its samples at random."""
    if "phi" not in scores:
        raise DataError("then=coverage needs the column 'phi' of estimator=projected or second_order")
    if not len(scores):
        return np.empty(0, dtype=np.int64)
    clusters = gradient_clusters(scores.column("alignment"), scores.column("phi"), min(CLUSTERS, len(scores)))
    order = np.argsort(seeded_uniform(scores), kind="stable")
    seen: Counter[int] = Counter()
    turns = np.empty(len(order), dtype=np.int64)
    for place, row in enumerate(order):
        turns[place] = seen[clusters[row]]
        seen[clusters[row]] += 1
    return order[np.argsort(turns, kind="stable")]


def seeded_uniform(scores: Scores) -> np.ndarray:
    """``[N]`` numbers in [0, 1) by the run's seed and each sample's id; seed 0 outside a run."""
    seed = scores.context.seed if scores.in_run else 0
    ids = scores.stored("id")
    pieces = (ids[k : k + ROWS_AT_ONCE].to_pylist() for k in range(0, len(ids), ROWS_AT_ONCE))
    return np.concatenate([np.empty(0), *(np.array(uniform_by_id(seed, piece)) for piece in pieces)])


def _report(scores: Scores, admitted: np.ndarray, confidence: np.ndarray | None) -> None:
    """Logs and notes what share is admitted, of all and of each value of each tag, and how sure the signs are."""
    tags = {tag: encoded for tag, encoded in scores.encoded_tags().items() if len(encoded[0]) <= 1 + MOST_VALUES}
    by_tag = {tag: _shares(values, codes, admitted) for tag, (values, codes) in tags.items()}
    log.info(f"filter: {_percent(admitted)} of {len(admitted):,} samples are admitted (a step lowers the anchor loss)")
    if len(admitted) and admitted.mean() >= NEARLY_ALL:
        log.warning(
            f"filter: {_percent(admitted)} are admitted, so a random subset of them is hardly more than a plain random "
            "one: little is wrong with the pool, or the proxy knows too little of the task to tell what harms (warm it "
            "up longer, name a better one, or take the best of the admitted by then=alignment, stratified by what must "
            "stay)"
        )
    for tag, shares in by_tag.items():
        listed = sorted(shares.items(), key=lambda item: item[1])
        more = f", and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
        log.info(f"filter: admitted by {tag}: {', '.join(f'{v} {s:.0%}' for v, s in listed[:SHOWN])}{more}")
    note: dict[str, Any] = {"samples": int(admitted.sum()), "of": len(admitted), "by_tag": by_tag}
    if confidence is not None:
        note["sure"] = float((np.maximum(confidence, 1 - confidence) >= SURE).mean())
        log.info(f"filter: for {note['sure']:.0%} the sign holds in {SURE:.0%} of bootstrap draws of the anchors")
    if scores.in_run:
        scores.context.note("admitted", note)


def _percent(admitted: np.ndarray) -> str:
    return f"{admitted.mean():.1%}" if len(admitted) else "0%"


def _shares(names: np.ndarray, codes: np.ndarray, admitted: np.ndarray) -> dict[str, float]:
    counts, passed = np.bincount(codes, minlength=len(names)), np.bincount(codes[admitted], minlength=len(names))
    return {str(name): float(p / c) for name, p, c in sorted(zip(names, passed, counts, strict=True)) if c}

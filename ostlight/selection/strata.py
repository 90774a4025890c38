"""Strata that a budget is split over: by tag, by anchor group, by cluster of gradients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ostlight.config.budget import ANCHOR_GROUP, GRADIENT_CLUSTER, SOURCE, Budget
from ostlight.errors import DataError
from ostlight.selection.scores import Scores
from ostlight.selection.set_objective import gradient_clusters

COLUMNS_OF = {ANCHOR_GROUP: ("utility_by_group",), GRADIENT_CLUSTER: ("alignment", "phi")}
"""Columns that strata other than a tag's are found by."""
CLUSTERS = 20
"""Clusters of gradients at most; fewer in pools of fewer samples."""


@dataclass(frozen=True)
class Strata:
    """The stratum of each sample.

    Attributes:
        labels: ``[N]`` names, or numbers.
        weights: each stratum's share of the budget is in proportion to its weight; ``None`` for its size.
    """

    labels: np.ndarray
    weights: Mapping[str, float] | None = None

    @classmethod
    def of(cls, scores: Scores, stratify_by: str, in_tokens: bool = False) -> Strata:
        """The strata that ``budget.stratify_by`` names.

        Args:
            in_tokens: whether the budget counts tokens; weights of the pool's pieces change shares of these.

        Raises:
            DataError: a tag no sample has, or a column the scores lack; says what to do.
            SelectorError: the groups of the anchors are asked for outside a run.
        """
        if stratify_by == ANCHOR_GROUP:
            return cls._by_anchor_group(scores)
        if stratify_by == GRADIENT_CLUSTER:
            return cls._by_cluster(scores)
        try:
            labels = scores.tag(stratify_by)
        except DataError as error:
            others = f"it also takes {ANCHOR_GROUP} and {GRADIENT_CLUSTER}"
            raise DataError(f"budget.stratify_by={stratify_by}: {error}; {others}") from error
        return cls(labels, _source_weights(scores, labels, in_tokens) if stratify_by == SOURCE else None)

    @classmethod
    def _by_anchor_group(cls, scores: Scores) -> Strata:
        """A sample is of the group it helps most (hurts least); of equals the first by name."""
        weights = Counter(scores.context.anchor_groups())
        refuse_one_group(weights)
        names = sorted(weights)
        _need(scores, ANCHOR_GROUP)
        utilities = scores.column("utility_by_group")
        if len(scores) and utilities.shape[1] != len(names):
            raise DataError(
                f"budget.stratify_by={ANCHOR_GROUP}: the scores hold utilities of {utilities.shape[1]} groups, "
                f"the anchors have {len(names)}: {', '.join(names)}"
            )
        best = utilities.argmax(1) if len(scores) else np.empty(0, dtype=np.int64)
        return cls(np.array(names, dtype=object)[best], weights)

    @classmethod
    def _by_cluster(cls, scores: Scores) -> Strata:
        _need(scores, GRADIENT_CLUSTER)
        if not len(scores):
            return cls(np.empty(0, dtype=object))
        found = gradient_clusters(scores.column("alignment"), scores.column("phi"), min(CLUSTERS, len(scores)))
        return cls(found.astype(str).astype(object))


def _source_weights(scores: Scores, labels: np.ndarray, in_tokens: bool) -> dict[str, float] | None:
    """The size of each source times the weight of its piece; ``None`` where no piece has a weight."""
    factors = scores.context.source_weights if scores.in_run else {}
    if not factors:
        return None
    names, codes = _encoded(labels)
    counts = np.bincount(codes, scores.tokens if in_tokens else None, len(names))
    sizes = {name: int(count) for name, count in zip(names, counts, strict=True)}
    return {label: size * factors.get(label, 1.0) for label, size in sizes.items()}


def refuse_one_group(groups: Iterable[str]) -> None:
    """Checks that a budget can be split by anchor group.

    Raises:
        DataError: all anchors are of one group.
    """
    if len(set(groups)) < 2:
        raise DataError(
            f"budget.stratify_by={ANCHOR_GROUP}: the anchors are all of one group; name the tag that splits them "
            "in anchors.group"
        )


def _need(scores: Scores, stratify_by: str) -> None:
    missing = [name for name in COLUMNS_OF[stratify_by] if name not in scores]
    if missing:
        raise DataError(
            f"budget.stratify_by={stratify_by} needs the column {missing[0]!r}, which these scores lack; "
            "selector ost with estimator projected or second_order writes it "
            "(utilities by group where anchors.group is set)"
        )


def select_top(scores: Scores, budget: Budget) -> np.ndarray:
    """Rows of the highest scores within the budget, best first; stratum by stratum where ``stratify_by`` is set."""
    if budget.stratify_by is None:
        return budget.top(scores)
    return select_per_stratum(scores, budget, lambda part, share: share.top(part))


def select_per_stratum(
    scores: Scores, budget: Budget, select: Callable[[Scores, Budget], np.ndarray | Sequence[int]]
) -> np.ndarray:
    """Rows selected from each stratum of ``budget.stratify_by`` by itself.

    The best of each stratum come first, then the second of each: a prefix of the result is itself spread over strata.

    Args:
        select: called with the scores of one stratum and its share of the budget; returns rows of these scores, best
            first.
    """
    assert budget.stratify_by is not None, "called for stratified budgets"
    return select_from(Strata.of(scores, budget.stratify_by, budget.tokens is not None), scores, budget, select)


def select_from(
    strata: Strata, scores: Scores, budget: Budget, select: Callable[[Scores, Budget], np.ndarray | Sequence[int]]
) -> np.ndarray:
    """Rows selected as by ``select_per_stratum``, from strata of any kind.

    Args:
        strata: of ``scores``, row by row.
        scores: what is selected from.
        budget: shared over the strata by their weights.
        select: as for ``select_per_stratum``.
    """
    members = _rows_by_label(strata.labels)
    sizes = {label: len(rows) for label, rows in members.items()}
    if budget.tokens is None:
        shares = budget.shares(sizes, weights=strata.weights)
        parts = [members[label][select(scores.take(members[label]), share)] for label, share in shares.items()]
    else:
        parts = _within_tokens(members, scores, budget, strata.weights, select)
    selected = [np.empty(0, dtype=np.int64), *parts]
    places = np.concatenate([np.arange(len(rows)) / max(1, len(rows)) for rows in selected])
    stratum = np.repeat(np.arange(len(selected)), [len(rows) for rows in selected])
    rows = np.concatenate(selected)
    return rows[np.lexsort((rows, stratum, places))]


def _within_tokens(
    members: Mapping[Any, np.ndarray],
    scores: Scores,
    budget: Budget,
    weights: Mapping[str, float] | None,
    select: Callable[[Scores, Budget], np.ndarray | Sequence[int]],
) -> list[np.ndarray]:
    """Rows of each stratum within its share of the tokens.

    A sample is as long as it is: what is left of a share, up to one sample, goes to the next stratum. And a sample that
    is longer than the share is passed over, so that it does not use it up.
    """
    lengths = scores.tokens
    totals = {label: int(lengths[rows].sum()) for label, rows in members.items()}
    parts, left = [], 0
    for label, share in budget.shares({}, totals, weights).items():
        assert share.tokens is not None, "a share of a token budget"
        rows, tokens = members[label], share.tokens + left
        fitting = rows[lengths[rows] <= tokens]
        part = fitting[:0]
        if len(fitting):
            part = fitting[select(scores.take(fitting), Budget(tokens=tokens))]
        parts.append(part)
        left = min(tokens - int(lengths[part].sum()), int(lengths[rows].max()))
    return parts


def _rows_by_label(labels: np.ndarray) -> dict[Any, np.ndarray]:
    """Rows of each label, by ascending label."""
    if labels.dtype == object:
        names, codes = _encoded(labels)
        parts = _rows_by_code(codes, np.bincount(codes, minlength=len(names)))
        return {name: part for name, part in sorted(zip(names, parts, strict=True), key=lambda pair: pair[0])}
    values, inverse, sizes = np.unique(labels, return_inverse=True, return_counts=True)  # there may be many clusters
    return dict(zip(values.tolist(), _rows_by_code(inverse, sizes), strict=True))


def _encoded(labels: np.ndarray) -> tuple[list[str], np.ndarray]:
    """The different labels by first occurrence, and the number of each row's."""
    encoded = pa.array(labels, pa.large_string()).dictionary_encode()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy()


def _rows_by_code(codes: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
    """Ascending rows of each code."""
    return np.split(np.argsort(codes, kind="stable"), np.cumsum(sizes)[:-1])

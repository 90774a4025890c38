"""How much of the pool may be kept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Protocol

import numpy as np
from annotated_types import Ge, Interval


class Scored(Protocol):
    """The columns of a score table (``ostlight.selection.scores.Scores``) that ``Budget.top`` reads."""

    @property
    def positions(self) -> np.ndarray: ...

    @property
    def score(self) -> np.ndarray: ...

    @property
    def tokens(self) -> np.ndarray: ...

    def __len__(self) -> int: ...


DEFAULT_FRACTION = 0.2
"""The share at which arXiv 2605.07488 found the largest gain for equal steps."""

SOURCE = "source"
"""Tag that the pieces of a pool give to their records; a piece's weight changes its share of a budget by this tag."""

ANCHOR_GROUP, GRADIENT_CLUSTER = "anchors.group", "gradients.cluster"
"""Values of ``Budget.stratify_by`` that are not tags; see ``ostlight.selection.strata``."""


@dataclass
class Budget:
    """How much is kept: one of ``fraction``, ``count``, ``tokens`` and ``threshold``; a fifth, if none is given.

    Attributes:
        fraction: share of the scored samples.
        count: number of samples.
        tokens: number of tokens, counted by the target's tokenizer.
        threshold: lowest score kept.
        stratify_by: tag whose values (strata) each get a share of the budget as large as their share of the pool. Or
            ``anchors.group`` (a sample belongs to the anchor group that it helps most; shares are those of the anchors)
            or ``gradients.cluster`` (clusters of gradients, for pools without tags; ``ost`` with
            ``estimator=projected`` or ``second_order``).
    """

    fraction: Annotated[float, Interval(gt=0, le=1)] | None = None
    count: Annotated[int, Ge(1)] | None = None
    tokens: Annotated[int, Ge(1)] | None = None
    threshold: float | None = None
    stratify_by: str | None = None

    alternatives: ClassVar[tuple[str, ...]] = ("fraction", "count", "tokens", "threshold")

    @property
    def share(self) -> float | None:
        """``fraction``, or a fifth if no size is given; ``None`` for budgets by count, tokens or threshold."""
        is_unset = all(getattr(self, name) is None for name in self.alternatives)
        return DEFAULT_FRACTION if is_unset else self.fraction

    @property
    def label(self) -> str:
        """Short text for tables and folder names: ``20%``, ``600``, ``1000000tok``, ``score>=0.0``."""
        if self.share is not None:
            size = f"{100 * self.share:g}%"
        elif self.count is not None:
            size = str(self.count)
        elif self.tokens is not None:
            size = f"{self.tokens}tok"
        else:
            size = f"score>={self.threshold}"
        return size + (f" by {self.stratify_by}" if self.stratify_by else "")

    def top(self, scores: Scored) -> np.ndarray:
        """Rows of the highest scores that fit, best first; equal scores keep the pool's order.

        A token budget takes samples in order of score until the next one does not fit.
        """
        return self.within(scores, np.lexsort((scores.positions, -scores.score)))

    def within(self, scores: Scored, order: np.ndarray) -> np.ndarray:
        """The first of these rows that fit; with a threshold, those whose score reaches it."""
        if self.threshold is not None:
            return order[scores.score[order] >= self.threshold]
        if self.tokens is not None:
            return order[np.cumsum(scores.tokens[order]) <= self.tokens]
        return order[: self.size(len(scores))]

    def size(self, available: int) -> int:
        """Samples to keep out of ``available``, for a budget by fraction or count."""
        if self.share is not None:
            return min(available, max(1, round(self.share * available))) if available else 0
        assert self.count is not None, "size is asked of budgets by fraction or count"
        return min(self.count, available)

    def shares(
        self,
        sizes: Mapping[str, int],
        tokens: Mapping[str, int] | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> dict[str, Budget]:
        """One budget for each stratum; strata that get nothing are left out.

        Args:
            sizes: scored samples of each stratum.
            tokens: their tokens, needed by a token budget.
            weights: relative shares; by default the sizes, in samples or tokens.
        """
        if self.threshold is not None:
            return {stratum: replace(self, stratify_by=None) for stratum in sizes}
        if self.tokens is not None:
            assert tokens is not None, "a token budget is shared by tokens"
            return {k: Budget(tokens=n) for k, n in shared_out(self.tokens, tokens, weights).items() if n}
        wanted = self.size(sum(sizes.values()))
        return {k: Budget(count=n) for k, n in shared_out(wanted, sizes, weights).items() if n}


def shared_out(
    total: float, capacity: Mapping[str, float], weights: Mapping[str, float] | None = None
) -> dict[str, int]:
    """``total`` divided into whole numbers in proportion to ``weights``, none above its capacity.

    Args:
        total: to be shared; at most the sum of all capacities is.
        capacity: the most that each name can take.
        weights: by default the capacities. A name without weight only takes what no other can.
    """
    shares = dict.fromkeys(capacity, 0)
    remaining = int(min(total, sum(capacity.values())))
    while remaining:
        free = {k: int(c) - shares[k] for k, c in capacity.items() if shares[k] < int(c)}
        if not free:
            break
        basis = {k: (capacity if weights is None else weights).get(k, 0) for k in free}
        for name, more in apportion(remaining, basis if sum(basis.values()) else free).items():
            shares[name] += min(more, free[name])
            remaining -= min(more, free[name])
    return shares


def apportion(total: int, weights: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers in proportion to ``weights`` that add up to ``total`` (largest remainders; ties by name)."""
    sum_of_weights = sum(weights.values())
    exact = {k: total * w / sum_of_weights for k, w in weights.items()}
    counts = {k: math.floor(x) for k, x in exact.items()}
    remaining = total - sum(counts.values())
    for k in sorted(weights, key=lambda k: (counts[k] - exact[k], k))[:remaining]:
        counts[k] += 1
    return counts

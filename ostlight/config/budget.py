"""How much of the pool may be kept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np


class Scored(Protocol):
    """What ``Budget.top`` reads of a score table (``ostlight.selection.scores.Scores``)."""

    @property
    def positions(self) -> np.ndarray: ...

    @property
    def score(self) -> np.ndarray: ...

    @property
    def tokens(self) -> np.ndarray: ...

    def __len__(self) -> int: ...


DEFAULT_FRACTION = 0.2
"""The share at which arXiv 2605.07488 found the largest gain for equal steps."""

ANCHOR_GROUP, GRADIENT_CLUSTER = "anchors.group", "gradients.cluster"
"""Kinds of samples that are no tags, for ``Budget.stratify_by``; ``ostlight.selection.strata`` says what they are."""


@dataclass
class Budget:
    """One of the first four says how much (none: a fifth); ``stratify_by`` gives every kind of sample a share of it.

    Attributes:
        fraction: share of the scored samples, above 0, at most 1.
        count: number of samples.
        tokens: number of tokens, counted by the target's tokenizer.
        threshold: the lowest score kept; any number may pass.
        stratify_by: a tag: each of its values gets a share of the budget as large as its share of the pool. Or
            ``anchors.group``: each group of the anchors gets a share as large as its share of the anchors, and a sample
            counts for the group it helps most. Or ``gradients.cluster``: the same by clusters of gradients, for pools
            without tags.
    """

    fraction: float | None = None
    count: int | None = None
    tokens: int | None = None
    threshold: float | None = None
    stratify_by: str | None = None

    @property
    def share(self) -> float | None:
        """``fraction``, or a fifth where no size is given; ``None`` for the other kinds."""
        unset = (self.fraction, self.count, self.tokens, self.threshold) == (None,) * 4
        return DEFAULT_FRACTION if unset else self.fraction

    def problems(self) -> list[str]:
        """What is wrong with the settings, in words; empty where nothing is."""
        sizes = {k: getattr(self, k) for k in ("fraction", "count", "tokens", "threshold")}
        given = {k: v for k, v in sizes.items() if v is not None}
        if len(given) > 1:
            got = ", ".join(f"{k}={v}" for k, v in given.items())
            return [f"budget takes one of fraction, count, tokens, threshold; got {got}"]
        found = []
        if self.fraction is not None and not 0 < self.fraction <= 1:
            found.append(f"budget.fraction must be above 0 and at most 1 (0.2 keeps a fifth); got {self.fraction}")
        for name in ("count", "tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                found.append(f"budget.{name} must be at least 1; got {value}")
        if self.threshold is not None and not math.isfinite(self.threshold):
            found.append(f"budget.threshold must be a finite number; got {self.threshold}")
        return found

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
        order = np.lexsort((scores.positions, -scores.score))
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
        """One budget for each kind; kinds that get nothing are left out.

        Args:
            sizes: scored samples of each kind.
            tokens: their tokens, needed by a token budget.
            weights: shares are in proportion to these; by default to what there is, in samples or tokens.
        """
        if self.threshold is not None:
            return {kind: replace(self, stratify_by=None) for kind in sizes}
        if self.tokens is not None:
            assert tokens is not None, "a token budget is shared by tokens"
            return {k: Budget(tokens=n) for k, n in shared_out(self.tokens, tokens, weights).items() if n}
        wanted = self.size(sum(sizes.values()))
        return {k: Budget(count=n) for k, n in shared_out(wanted, sizes, weights).items() if n}


def shared_out(total: float, room: Mapping[str, float], weights: Mapping[str, float] | None = None) -> dict[str, int]:
    """Whole numbers in proportion to ``weights``, never more than there is ``room``; what is over goes to the others.

    Args:
        total: to be shared; no more than the whole room is.
        room: the most each kind can take.
        weights: by default the room. A kind that is not named weighs nothing, and takes only what no other can.
    """
    shares = dict.fromkeys(room, 0)
    left = int(min(total, sum(room.values())))
    while left:
        free = {k: int(r) - shares[k] for k, r in room.items() if shares[k] < int(r)}
        basis = {k: (room if weights is None else weights).get(k, 0) for k in free}
        if not free:
            break
        given = apportion(left, basis if sum(basis.values()) else free)
        for kind, more in given.items():
            shares[kind] += min(more, free[kind])
            left -= min(more, free[kind])
    return shares


def apportion(total: int, weights: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers in proportion to ``weights`` that add up to ``total`` (largest remainders; ties by name)."""
    whole = sum(weights.values())
    exact = {k: total * w / whole for k, w in weights.items()}
    counts = {k: math.floor(x) for k, x in exact.items()}
    rest = total - sum(counts.values())
    for k in sorted(weights, key=lambda k: (counts[k] - exact[k], k))[:rest]:
        counts[k] += 1
    return counts

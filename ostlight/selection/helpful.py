"""What helps, without a preference for what helps most."""

from __future__ import annotations

import hashlib

import numpy as np

from ostlight.selection.scores import Scores


def any_that_helps(scores: Scores) -> Scores:
    """The same rows, ranked so that those with a score above 0 come first, in an order that is random but hangs on the
    records' ids alone; behind them the others as they were. A larger budget holds all that a smaller one does.

    A score says what a sample adds to the model as it stands. The highest are few kinds of sample, which matters where
    much of the pool is sound: there its top trains worse than its sound part at random (docs/results/narrow.md).
    """
    score = scores.score
    lots = np.array([_lot(name) for name in scores.ids], dtype=np.float64)
    return scores.with_score(np.where(score > 0, 1 + lots, np.minimum(score, 0)))


def _lot(name: str) -> float:
    """A number in [0, 1) that looks random."""
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48

"""The order of the samples in each epoch: shuffled, or by utility (a curriculum)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


def best_first(kept: np.ndarray, positions: Sequence[int], scores: Sequence[float]) -> np.ndarray:
    """Returns ``kept`` by falling score, equal ones as they stand: what a selection keeps may be ranked by chance.

    Args:
        kept: ``[K]`` positions of the kept samples in their pool.
        positions: of all samples that have a score.
        scores: theirs.
    """
    score_of = dict(zip(positions, scores, strict=True))
    return kept[np.argsort([-score_of[position] for position in kept.tolist()], kind="stable")]


def pass_order(order: str, samples: int, seed: int, begun: float, share: float) -> np.ndarray:
    """Returns a permutation of ``range(samples)``, where 0 is the sample with the highest utility.

    Args:
        order: ``shuffled``; ``utility_descending`` (best first); ``utility_ascending`` (best last); ``annealed``: at a
            share ``t`` of the whole training the best sample left in this epoch comes next with probability ``1 - t``,
            else a random one, so it begins as utility_descending and ends as a shuffle.
        seed: of this epoch.
        begun: share of the training that is done when the epoch begins.
        share: of the training that one epoch is.
    """
    if order == "utility_descending":
        return np.arange(samples)
    if order == "utility_ascending":
        return np.arange(samples)[::-1]
    generator = torch.Generator().manual_seed(seed)
    if order == "annealed":
        return _annealed(samples, generator, begun, share)
    return torch.randperm(samples, generator=generator).numpy()


def _annealed(samples: int, generator: torch.Generator, begun: float, share: float) -> np.ndarray:
    done = begun + share * np.arange(samples) / samples
    by_rank = torch.rand(samples, generator=generator).numpy() >= done
    shuffle = iter(torch.randperm(samples, generator=generator).tolist())
    ranking = iter(range(samples))
    shown, order = np.zeros(samples, dtype=bool), np.empty(samples, dtype=np.int64)
    for k in range(samples):
        # The first in a shuffle that was not shown yet is a uniform sample of those not shown yet.
        source = ranking if by_rank[k] else shuffle
        order[k] = next(sample for sample in source if not shown[sample])
        shown[order[k]] = True
    return order

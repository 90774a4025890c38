"""In which order a pass shows its samples: shuffled, or by the selector's ranking (a curriculum)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch


def pass_order(order: str, samples: int, seed: int, begun: float, share: float) -> np.ndarray:
    """Each of ``range(samples)`` once, where 0 is the sample the selector ranks best.

    Args:
        order: ``shuffled``; ``utility_descending``: best first, since the model gains most from them as it is;
            ``utility_ascending``: best last; ``annealed``: at a share ``t`` of the whole training the best sample
            this pass has not shown is taken with probability ``1 - t``, else any of them alike, so it begins as
            utility_descending and ends as a shuffle.
        samples: how many there are.
        seed: of this pass.
        begun: share of the training that is done when the pass begins.
        share: of the training that one pass is.
    """
    generator = torch.Generator().manual_seed(seed)
    return _ORDERS[order](samples, generator, begun, share)


def _shuffled(samples: int, generator: torch.Generator, begun: float, share: float) -> np.ndarray:
    return torch.randperm(samples, generator=generator).numpy()


def _utility_descending(samples: int, generator: torch.Generator, begun: float, share: float) -> np.ndarray:
    return np.arange(samples)


def _utility_ascending(samples: int, generator: torch.Generator, begun: float, share: float) -> np.ndarray:
    return np.arange(samples)[::-1]


def _annealed(samples: int, generator: torch.Generator, begun: float, share: float) -> np.ndarray:
    done = begun + share * np.arange(samples) / samples
    by_rank = torch.rand(samples, generator=generator).numpy() >= done
    shuffle = iter(torch.randperm(samples, generator=generator).tolist())
    ranking = iter(range(samples))
    shown, order = np.zeros(samples, dtype=bool), np.empty(samples, dtype=np.int64)
    for place in range(samples):
        # The first of a shuffle that was not shown yet is a fair draw from those not shown yet.
        source = ranking if by_rank[place] else shuffle
        order[place] = next(k for k in source if not shown[k])
        shown[order[place]] = True
    return order


_ORDERS: dict[str, Callable[[int, torch.Generator, float, float], np.ndarray]] = {
    "shuffled": _shuffled,
    "utility_descending": _utility_descending,
    "utility_ascending": _utility_ascending,
    "annealed": _annealed,
}

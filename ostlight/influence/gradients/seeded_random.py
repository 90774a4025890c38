"""Random numbers that belong to a place, not to an order: the same anchor, token and probe draw the same, always."""

from __future__ import annotations

import torch
from torch import Tensor

GOLDEN, MIX_1, MIX_2 = (
    constant - (1 << 64) for constant in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
"""The odd constants of the SplitMix64 generator (Steele, Lea and Flood 2014), as signed 64-bit numbers."""


def _mixed(state: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64, whose products wrap around."""
    state = (state ^ _shifted(state, 30)) * MIX_1
    state = (state ^ _shifted(state, 27)) * MIX_2
    return state ^ _shifted(state, 31)


def _shifted(state: Tensor, bits: int) -> Tensor:
    return (state >> bits) & ((1 << (64 - bits)) - 1)


def _hashed(seed: int, *keys: Tensor) -> Tensor:
    state = _mixed(torch.full((), seed, dtype=torch.int64, device=keys[0].device) + GOLDEN)
    for key in keys:
        state = _mixed((state ^ key) + GOLDEN)
    return state


def uniforms(seed: int, anchors: Tensor, tokens: Tensor, probes: Tensor) -> Tensor:
    """Numbers in ``[0, 1)``, fp64, one for each (anchor, token, probe), the three broadcast against each other."""
    return _shifted(_hashed(seed, anchors, tokens, probes * 2), 11).double() * 2.0**-53


def signs(seed: int, anchors: Tensor, tokens: Tensor, probes: Tensor) -> Tensor:
    """+1 or -1, fp64, each half the time, independent of ``uniforms`` at the same place."""
    return 1.0 - 2.0 * _shifted(_hashed(seed, anchors, tokens, probes * 2 + 1), 63).double()

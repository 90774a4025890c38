"""Random numbers for samples that depend on seed and id alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def uniform_by_id(seed: int, ids: Iterable[str]) -> list[float]:
    """One number in [0, 1) for each sample, the same for the same seed and id, whatever else is in the pool."""
    return [int.from_bytes(hashlib.sha256(f"{seed}:{id}".encode()).digest()[:7], "big") / 2**56 for id in ids]

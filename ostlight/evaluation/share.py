"""Several processes share the batches of a test set, and all end with the results of all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """The part of the work that one of several ranks does; by default all of it.

    The batches are those that one process alone would make, so that each has the same results, to the last digit.
    """

    rank: int = 0
    ranks: int = 1

    def of(self, batches: Iterable[T]) -> Iterator[T]:
        """This rank's batches: every ``ranks``-th."""
        return islice(batches, self.rank, None, self.ranks)

    def gathered(self, own: Mapping[int, T]) -> dict[int, T]:
        """The results of all ranks by the index of the question; all ranks call it together."""
        if self.ranks == 1:
            return dict(own)
        found: list[Any] = [None] * self.ranks
        dist.all_gather_object(found, dict(own))
        return {index: value for results in found for index, value in results.items()}


ALONE = Share()
"""One process does all."""

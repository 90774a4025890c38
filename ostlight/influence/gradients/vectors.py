"""The fixed vectors a run takes its gradients against, where there is memory for them.

M vectors as large as the parameters are M copies of them. They are needed one parameter at a time, in the backward
pass, so they can be elsewhere until then: in the machine's memory, or in shares on the ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from ostlight.errors import InfluenceError


class GradientVectors(Mapping[str, Tensor]):
    """``[M, *shape]`` by parameter name, on the computing device when looked up.

    Args:
        stored: the vectors, on any device.
        device: the computing one.

    Attributes:
        stored: what this rank holds.
        shapes: ``[M, *shape]`` of every parameter's vectors, whoever holds them.
    """

    def __init__(self, stored: Mapping[str, Tensor], device: torch.device | str) -> None:
        self.stored, self.device = dict(stored), torch.device(device)
        self.shapes = {name: vectors.shape for name, vectors in self.stored.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self.stored[name].to(self.device, non_blocking=True)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def total(self, own: float) -> float:
        """The sum over all that is stored, from the sum over what this rank stores."""
        return own

    def leave(self) -> None:
        """This rank looks nothing up any more."""


class ShardedVectors(GradientVectors):
    """Every rank holds the vectors of some parameters and sends them to all when one of them needs them.

    Ranks have different batches, and different numbers of them, and may come to the parameters in another order. So
    each look-up is a round that all ranks take part in: all send what they want, then each wanted parameter's owner
    sends it. A rank that has scored all its batches ``leave``s: it takes part until all have left. Where the ranks go
    in step, which is the rule, a round is one number from each rank and one broadcast.

    Args:
        stored: this rank's share.
        owners: the rank that holds each parameter's vectors, the same on all ranks.
        shapes: ``[M, *shape]`` of all of them, in the same order on all ranks.
        dtype: of all of them.
        device: the computing one; the process group's backend must move tensors that lie there.

    Raises:
        InfluenceError: the share is not what ``owners`` says.
    """

    def __init__(
        self,
        stored: Mapping[str, Tensor],
        owners: Mapping[str, int],
        shapes: Mapping[str, torch.Size],
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        super().__init__(stored, device)
        self.shapes, self._owners, self._dtype = dict(shapes), dict(owners), dtype
        self._names = list(self.shapes)
        self._index = {name: k for k, name in enumerate(self._names)}
        self._group = dist.new_group()
        self._rank = dist.get_rank(self._group)
        mine = {name for name, rank in self._owners.items() if rank == self._rank}
        if mine != set(self.stored) or set(self._owners) != set(self.shapes):
            raise InfluenceError(f"rank {self._rank} holds vectors of {len(self.stored)} parameters, not {len(mine)}")

    def __getitem__(self, name: str) -> Tensor:
        mine = self._index[name]
        found = self._sent(self._asked(mine), mine)
        assert found is not None, "a round brings what was asked for"
        return found

    def total(self, own: float) -> float:
        summed = torch.tensor([own], dtype=torch.float64, device=self.device)
        dist.all_reduce(summed, group=self._group)
        return float(summed)

    def leave(self) -> None:
        while wanted := [one for one in self._asked(-1) if one >= 0]:
            self._sent(wanted, -1)

    def _asked(self, mine: int) -> list[int]:
        own = torch.tensor([mine], device=self.device)
        requests = [torch.zeros_like(own) for _ in range(dist.get_world_size(self._group))]
        dist.all_gather(requests, own, group=self._group)
        return [int(one) for one in requests]

    def _sent(self, wanted: Sequence[int], mine: int) -> Tensor | None:
        found = None
        for index in sorted({one for one in wanted if one >= 0}):
            name = self._names[index]
            owner = self._owners[name]
            if owner == self._rank:
                vectors = self.stored[name]
            else:
                vectors = torch.empty(self.shapes[name], dtype=self._dtype, device=self.device)
            dist.broadcast(vectors, src=dist.get_global_rank(self._group, owner), group=self._group)
            found = vectors if index == mine else found
        return found


def shares(sizes: Mapping[str, int], ranks: int) -> dict[str, int]:
    """Parameter name to the rank that holds its vectors: largest first, each to the rank that holds least so far."""
    held = [0] * ranks
    owners: dict[str, int] = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        owners[name] = held.index(min(held))
        held[owners[name]] += sizes[name]
    return owners

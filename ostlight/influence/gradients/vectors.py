"""The fixed vectors a run takes its gradients against, where there is memory for them.

M vectors as large as the parameters are M copies of them. They are needed one parameter at a time, in the backward
pass, so they can be elsewhere until then: in the machine's memory, or in shares on the ranks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

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


@dataclass
class Sent:
    """What a round brings.

    Attributes:
        vectors: what this rank asked for; ``None`` where it asked for nothing. There once all of ``works`` are done.
        works: the broadcasts, which go on in the background.
    """

    vectors: Tensor | None = None
    works: list[Any] = field(default_factory=list)

    def wait(self) -> Tensor | None:
        """Returns the vectors, when they are there."""
        for work in self.works:
            work.wait()
        return self.vectors


class Ahead(threading.Thread):
    """A round in a thread of its own, for what is probably asked for next.

    Args:
        index: what the round asks for.
        make: makes it.
    """

    def __init__(self, index: int, make: Callable[[int], Sent]) -> None:
        super().__init__(daemon=True)  # a rank that fails ends, also while the others let it wait
        self.index, self._make = index, make
        self._sent = Sent()
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._sent = self._make(self.index)
        except BaseException as error:
            self._error = error

    def result(self) -> Sent:
        """Returns what the round brought.

        Raises:
            RuntimeError: what failed in it, for instance since a rank is gone.
        """
        self.join()
        if self._error is not None:
            raise self._error
        return self._sent


class ShardedVectors(GradientVectors):
    """Every rank holds the vectors of some parameters and sends them to all when one of them needs them.

    Ranks have different batches, and different numbers of them, and may come to the parameters in another order. So
    each look-up is a round that all ranks take part in: all send what they want, then each wanted parameter's owner
    sends it. A rank that has scored all its batches ``leave``s: it takes part until all have left. Where the ranks go
    in step, which is the rule, a round is one number from each rank and one broadcast.

    While a batch is computed with some vectors, the round for those that followed them the last time is under way, so
    what a look-up waits for is sent meanwhile. Another order costs a round in vain. One parameter's vectors more are in
    memory.

    Args:
        stored: this rank's share.
        owners: the rank that holds each parameter's vectors, the same on all ranks.
        shapes: ``[M, *shape]`` of all of them, in the same order on all ranks.
        dtype: of all of them.
        device: the computing one; the process group's backend must move tensors that lie there.

    Attributes:
        met: look-ups whose round was under way already.

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
        self._numbers = dist.new_group(backend="gloo")  # reading them waits for no kernel
        self._rank = dist.get_rank(self._group)
        self._after: dict[int, int] = {}
        self._last: int | None = None
        self._ahead: Ahead | None = None
        self.met = 0
        mine = {name for name, rank in self._owners.items() if rank == self._rank}
        if mine != set(self.stored) or set(self._owners) != set(self.shapes):
            raise InfluenceError(f"rank {self._rank} holds vectors of {len(self.stored)} parameters, not {len(mine)}")

    def __getitem__(self, name: str) -> Tensor:
        mine = self._index[name]
        if self._last is not None:
            self._after[self._last] = mine
        self._last = mine
        ahead = self._ended()
        if ahead is not None and ahead.index == mine:
            self.met += 1
            sent = ahead.result()
        else:
            sent = self._round(mine)
        if mine in self._after:
            self._ahead = Ahead(self._after[mine], self._round)
        found = sent.wait()
        assert found is not None, "a round brings what was asked for"
        return found

    def total(self, own: float) -> float:
        summed = torch.tensor([own], dtype=torch.float64)
        self._ahead = self._ended()  # which is still to be used
        dist.all_reduce(summed, group=self._numbers)
        return float(summed)

    def leave(self) -> None:
        self._ended()
        while (sent := self._round(-1)).works:
            sent.wait()

    def _ended(self) -> Ahead | None:
        """The round under way, when all ranks have taken part in it; two at a time would mix."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.result().wait()
        return ahead

    def _round(self, mine: int) -> Sent:
        own = torch.tensor([mine])
        asked = [torch.zeros_like(own) for _ in range(dist.get_world_size(self._group))]
        dist.all_gather(asked, own, group=self._numbers)
        sent = Sent()
        for index in sorted({int(one) for one in asked if one >= 0}):
            name = self._names[index]
            owner = self._owners[name]
            if owner == self._rank:
                vectors = self.stored[name]
            else:
                vectors = torch.empty(self.shapes[name], dtype=self._dtype, device=self.device)
            source = dist.get_global_rank(self._group, owner)
            sent.works.append(dist.broadcast(vectors, src=source, group=self._group, async_op=True))
            if index == mine:
                sent.vectors = vectors
        return sent


def shares(sizes: Mapping[str, int], ranks: int) -> dict[str, int]:
    """Parameter name to the rank that holds its vectors: largest first, each to the rank that holds least so far."""
    held = [0] * ranks
    owners: dict[str, int] = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        owners[name] = held.index(min(held))
        held[owners[name]] += sizes[name]
    return owners

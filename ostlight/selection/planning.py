"""What a selector is asked before anything is loaded, and what it answers: costs, from shapes alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from ostlight.models.batch import Batch
    from ostlight.models.module import MultimodalModel


@dataclass(frozen=True)
class ProxyMemory:
    """What a selector may know of the proxy before it is loaded.

    Attributes:
        model: the model inside, on the meta device.
        weights: bytes of it on each device, as they are held; of a sharded one also what a pass gathers.
        anchors: number of them.
        groups: of the anchors; 1 where they have none.
        half: whether a sample's passes run in half precision (weights or autocast).
        ranks: devices that score.
        free: bytes of each device; ``None`` where it is not known.
        host: bytes of the machine's memory for each device; ``None`` where it is not known, or is the device's.
        sharded: whether each rank holds a part of the weights, and of all vectors of their size.
    """

    model: nn.Module
    weights: int
    anchors: int
    groups: int
    half: bool
    ranks: int
    free: int | None
    host: int | None
    sharded: bool = False


@dataclass(frozen=True)
class PlannedScoring:
    """What a selector may know of a run that is planned.

    Attributes:
        model: the proxy on the meta device, where operators give shapes and no numbers.
        memory: what it meets.
        records: of the pool.
        singles: some samples of the pool, each in a batch of its own.
        batches: the same samples, batched as they are scored.
        anchor_batches: some anchors, batched.
        flops: the floating-point operations of some work on ``model``.
    """

    model: MultimodalModel
    memory: ProxyMemory
    records: int
    singles: Sequence[Batch]
    batches: Sequence[Batch]
    anchor_batches: Sequence[Batch]
    flops: Callable[[Callable[[], object]], int]

    def per_single(self, work: Callable[[Batch], object]) -> float:
        """Mean FLOPs of work on a sample alone."""
        return _mean(self.flops, work, self.singles)

    def per_sample(self, work: Callable[[Batch], object]) -> float:
        """Mean FLOPs a sample of work on batches."""
        return _mean(self.flops, work, self.batches)

    def per_anchor(self, work: Callable[[Batch], object]) -> float:
        """Mean FLOPs an anchor of work on batches of anchors; 0 where there are none."""
        return _mean(self.flops, work, self.anchor_batches) if self.anchor_batches else 0.0


def _mean(count: Callable[[Callable[[], object]], int], work: Callable[[Any], object], batches: Sequence[Any]) -> float:
    """A sample's share; batches of one shape are counted once."""
    found: dict[Any, int] = {}
    for batch in batches:
        if batch.shape not in found:
            found[batch.shape] = count(partial(work, batch))
    return sum(found[batch.shape] for batch in batches) / sum(map(len, batches))


@dataclass(frozen=True)
class ScoringPlan:
    """What scoring will take.

    Attributes:
        setup_flops: of ``setup``, on each rank.
        sample_flops: lowest and highest of a sample, in the mean.
        memory: bytes on each rank beside the proxy's weights and a batch's activations, by what they are for.
        disk: bytes the scoring writes beside the score table, by what they are for.
        row_bytes: of a row of the score table, beside position, id, state and tags.
        assumptions: sentences.
    """

    setup_flops: float
    sample_flops: tuple[float, float]
    memory: Mapping[str, int] = field(default_factory=dict)
    disk: Mapping[str, int] = field(default_factory=dict)
    row_bytes: int = 16
    assumptions: Sequence[str] = ()


def gib(count: int) -> str:
    """Bytes in words."""
    unit, name = (2**30, "GiB") if count >= 2**30 else (2**20, "MiB")
    return f"{count / unit:.1f} {name}"

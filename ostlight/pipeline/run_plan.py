"""What the stages of a run will take, and how it is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class StagePlan:
    """What one stage will take.

    Attributes:
        stage: its name, as in the cost log.
        samples: that go through the model, those of every epoch.
        tokens: theirs, padding left out.
        flops: lowest and highest estimate, of all ranks.
        memory: bytes on each rank's device, by what they are for.
        disk: bytes it writes, by what they are for.
    """

    stage: str
    samples: float
    tokens: float
    flops: tuple[float, float]
    memory: Mapping[str, int] = field(default_factory=dict)
    disk: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.stage}: {self.tokens:,.0f} tokens, {_range(*self.flops, _flops)} FLOPs"

    @property
    def memory_bytes(self) -> int:
        return sum(self.memory.values())

    @property
    def disk_bytes(self) -> int:
        return sum(self.disk.values())


@dataclass
class RunPlan:
    """What a run will take.

    Attributes:
        stages: in the order they run.
        compared: what the run is an alternative to: training on the whole pool, and a judge that reads it.
        devices: ranks.
        flops_per_s: of one device.
        device_bytes: memory of one device; ``None`` where it is not known.
        assumptions: sentences.
    """

    stages: list[StagePlan]
    compared: list[StagePlan]
    devices: int
    flops_per_s: float
    device_bytes: int | None
    assumptions: list[str]

    def stage(self, name: str) -> StagePlan:
        """The stage of that name.

        Raises:
            KeyError: the run has none.
        """
        for stage in (*self.stages, *self.compared):
            if stage.stage == name:
                return stage
        raise KeyError(name)

    def device_hours(self, stage: StagePlan) -> tuple[float, float]:
        """Lowest and highest, over all devices together."""
        low, high = stage.flops
        return low / self.flops_per_s / 3600, high / self.flops_per_s / 3600

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield from self._table(self.stages)
        low, high = (sum(stage.flops[k] for stage in self.stages) for k in (0, 1))
        whole = StagePlan("whole run", 0, 0, (low, high))
        hours = _range(*self.device_hours(whole), _hours)
        per_device = "" if self.devices == 1 else f", on {self.devices} devices at once"
        yield f"whole run: {_range(low, high, _flops)} FLOPs, {hours} device-hours{per_device}"
        if self.compared:
            yield "beside it:"
            yield from self._table(self.compared)
        yield "memory on each device" + (f", of {_size(self.device_bytes)}:" if self.device_bytes else ":")
        for stage in self.stages:
            if stage.memory:
                fits = self.device_bytes is None or stage.memory_bytes <= self.device_bytes
                parts = ", ".join(f"{name} {_size(size)}" for name, size in stage.memory.items())
                yield f"  {stage.stage}: {_size(stage.memory_bytes)}{'' if fits else ', does not fit'} = {parts}"
        yield "disk:"
        for stage in self.stages:
            if stage.disk:
                parts = ", ".join(f"{name} {_size(size)}" for name, size in stage.disk.items())
                yield f"  {stage.stage}: {_size(stage.disk_bytes)} = {parts}"
        yield "assuming:"
        yield from (f"  {assumption}" for assumption in self.assumptions)

    def _table(self, stages: Sequence[StagePlan]) -> Iterator[str]:
        rows = [("stage", "samples", "tokens", "FLOPs", "device-hours")]
        for stage in stages:
            flops, hours = _range(*stage.flops, _flops), _range(*self.device_hours(stage), _hours)
            rows.append((stage.stage, f"{stage.samples:,.0f}", f"{stage.tokens:.3g}", flops, hours))
        widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
        for row in rows:
            cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]  # noqa: B905
            yield "  " + "  ".join(cells)


def _range(low: float, high: float, shown: Callable[[float], str]) -> str:
    return shown(high) if low == high else f"{shown(low)} to {shown(high)}"


def _flops(count: float) -> str:
    return f"{count:.3g}"


def _hours(hours: float) -> str:
    return f"{hours:.3g}" if hours >= 0.001 else "<0.001"


def _size(count: int) -> str:
    for unit, name in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count / 2**10:.1f} KiB"

"""What every stage of a run cost."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from ostlight.models.cost import ADDITIVE, StageCost
from ostlight.selection.usage import NAMES, Usage


def charge(cost: StageCost, usage: Usage) -> None:
    """Adds what a selector used beyond the proxy to a stage's cost."""
    for name in NAMES:
        setattr(cost, name, getattr(cost, name) + getattr(usage, name))


class CostLog:
    """Appends to a run's ``cost_log.jsonl``, one line a stage.

    Args:
        path: the file.
        devices: devices held by the run, on all nodes.
        writes: false on every rank but the first.
    """

    def __init__(self, path: Path, devices: int = 1, writes: bool = True) -> None:
        self.path, self.devices, self.writes = path, devices, writes

    @contextmanager
    def stage(self, stage: str, selector: str = "", usage: Usage | None = None) -> Iterator[StageCost]:
        """Times the block and writes its cost; the block fills in the rest.

        A stage that fails is written too, with the error's name in ``more["failed"]``. A process that is killed writes
        nothing.

        Args:
            stage: its name.
            selector: its label.
            usage: grows while the stage runs; what it grows by is charged.
        """
        cost = StageCost(stage, selector)
        before = usage.copy() if usage else None
        start = time.perf_counter()
        try:
            yield cost
        except BaseException as error:
            cost.more["failed"] = type(error).__name__
            raise
        finally:
            if usage is not None and before is not None:
                charge(cost, usage.since(before))
            cost.wall_s = time.perf_counter() - start
            cost.device_s = cost.wall_s * self.devices
            self.add(cost)

    def add(self, cost: StageCost) -> None:
        """Writes one line."""
        if self.writes:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            line = asdict(cost) | {"when": datetime.now(UTC).isoformat(timespec="seconds")}
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")

    def read(self) -> list[StageCost]:
        """Returns all lines so far."""
        if not self.path.exists():
            return []
        lines = [json.loads(line) for line in self.path.read_text().splitlines() if line.strip()]
        return [StageCost(**{k: v for k, v in line.items() if k != "when"}) for line in lines]


def total(costs: list[StageCost], stages: tuple[str, ...]) -> StageCost:
    """Returns the sum over the stages of these names."""
    summed = StageCost("+".join(stages))
    for cost in costs:
        if cost.stage in stages:
            for name in ("wall_s", "device_s", *ADDITIVE):
                setattr(summed, name, getattr(summed, name) + getattr(cost, name))
    return summed

"""What every stage cost. A comparison without its cost is no result."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from ostlight.models.cost import ADDITIVE, StageCost
from ostlight.pipeline.unfinished import Unfinished, take_left_over
from ostlight.selection.usage import NAMES as USAGE
from ostlight.selection.usage import Usage


def charge(cost: StageCost, usage: Usage) -> None:
    """Adds what a selector used beyond the proxy to a stage's cost."""
    for name in USAGE:
        setattr(cost, name, getattr(cost, name) + getattr(usage, name))


class CostLog:
    """Appends to a run's ``cost_log.jsonl``.

    Args:
        path: the file.
        devices: devices held by the run, on all nodes.
        writes: false on every rank but the first.
    """

    def __init__(self, path: Path, devices: int = 1, writes: bool = True) -> None:
        self.path, self.devices, self.writes = path, devices, writes

    @contextmanager
    def stage(self, stage: str, selector: str = "", usage: Usage | None = None) -> Iterator[StageCost]:
        """Times what happens inside; the block fills in the rest of the entry.

        A stage that fails is written too, with ``more["failed"]``: it was paid for. So is one that is killed: what it
        had cost stands in a file of its own, and becomes a line when the cost log is next read or a stage begun.

        Args:
            usage: grows while the stage runs; what it grows by is charged to the entry.
        """
        self.settle()
        entry = StageCost(stage, selector)
        before = usage.copy() if usage else None
        start = time.perf_counter()

        def so_far() -> StageCost:
            now = dataclasses.replace(entry, more=dict(entry.more))
            if usage is not None and before is not None:
                charge(now, usage.since(before))
            if self.writes:  # time is told by one rank for all
                now.wall_s = time.perf_counter() - start
                now.device_s = now.wall_s * self.devices
            return now

        unfinished = Unfinished(self._unfinished, stage, lambda: asdict(so_far()) | {"more": {"failed": "killed"}})
        failed = True
        try:
            yield entry
            failed = False
        except BaseException as error:
            entry.more["failed"] = type(error).__name__
            raise
        finally:
            final = so_far()
            self.add(final)
            # The other ranks' counts stand in the first one's line only where all ended well and were summed.
            unfinished.close(keep=failed and not self.writes)
            entry.__dict__.update(final.__dict__)

    @property
    def _unfinished(self) -> Path:
        return self.path.parent / "unfinished"

    def settle(self) -> None:
        """Turns what killed processes left into lines."""
        if self.writes:
            for line in take_left_over(self._unfinished):
                self.add(StageCost(**line))

    def add(self, entry: StageCost) -> None:
        """Writes one line."""
        if self.writes:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            line = asdict(entry) | {"when": datetime.now(UTC).isoformat(timespec="seconds")}
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")

    def read(self) -> list[StageCost]:
        """All entries so far, those of killed stages among them."""
        self.settle()
        if not self.path.exists():
            return []
        lines = [json.loads(line) for line in self.path.read_text().splitlines() if line.strip()]
        return [StageCost(**{k: v for k, v in line.items() if k != "when"}) for line in lines]


def total(entries: list[StageCost], stages: tuple[str, ...]) -> StageCost:
    """The sum over some stages."""
    summed = StageCost("+".join(stages))
    for entry in entries:
        if entry.stage in stages:
            for name in ("wall_s", "device_s", *ADDITIVE):
                setattr(summed, name, getattr(summed, name) + getattr(entry, name))
    return summed

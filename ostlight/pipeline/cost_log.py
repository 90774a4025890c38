"""What every stage cost. A comparison without its cost is no result."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ostlight.pipeline.unfinished import Unfinished, take_left_over
from ostlight.selection.usage import NAMES as SPENT
from ostlight.selection.usage import Usage

ADDITIVE = ("flops", "tokens", "samples", "calls", "tokens_in", "tokens_out", "price")
"""What the ranks of a stage count each for itself."""


@dataclass
class StageCost:
    """One stage's cost.

    Attributes:
        stage: ``warm-up``, ``score``, ``select``, ``train``, ``evaluate``.
        selector: whose cost it is, as shown in tables.
        wall_s: seconds on the clock.
        device_s: ``wall_s`` times the number of devices held.
        flops: floating-point operations of matrix products and attention, counted on a few batches and scaled by
            tokens.
        tokens: tokens read by the proxy or target, padding left out.
        samples: samples treated.
        calls: requests to a served model.
        tokens_in, tokens_out: tokens of those requests and of their answers.
        price: money they cost, in the price table's currency.
        resumed: the stage took up earlier work, which an earlier line counts.
    """

    stage: str
    selector: str = ""
    wall_s: float = 0.0
    device_s: float = 0.0
    flops: float = 0.0
    tokens: int = 0
    samples: int = 0
    calls: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    price: float = 0.0
    resumed: bool = False
    more: dict[str, Any] = field(default_factory=dict)

    def charge(self, usage: Usage) -> None:
        """Adds what a selector paid."""
        for name in SPENT:
            setattr(self, name, getattr(self, name) + getattr(usage, name))


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
                now.charge(usage.since(before))
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

"""What every stage cost. A comparison without its cost is no result."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


@dataclass
class Entry:
    """One stage's cost.

    Attributes:
        stage: ``warm-up``, ``score``, ``pick``, ``train``, ``evaluate``.
        selector: whose cost it is, as shown in tables.
        wall_s: seconds on the clock.
        device_s: ``wall_s`` times the number of devices held.
        flops: floating-point operations of matrix products and attention, counted on a few batches and scaled by
            tokens.
        tokens: tokens read by models, padding left out.
        samples: samples treated.
        calls: requests to a served model.
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
    price: float = 0.0
    resumed: bool = False
    more: dict[str, Any] = field(default_factory=dict)


class Ledger:
    """Appends to a run's ``ledger.jsonl``.

    Args:
        path: the file.
        devices: devices held by the run, on all nodes.
        writes: false on every rank but the first.
    """

    def __init__(self, path: Path, devices: int = 1, writes: bool = True) -> None:
        self.path, self.devices, self.writes = path, devices, writes

    @contextmanager
    def stage(self, stage: str, selector: str = "") -> Iterator[Entry]:
        """Times what happens inside; the block fills in the rest of the entry. A stage that fails is written too,
        with ``more["failed"]``: it was paid for."""
        entry = Entry(stage, selector)
        start = time.perf_counter()
        try:
            yield entry
        except BaseException as error:
            entry.more["failed"] = type(error).__name__
            raise
        finally:
            entry.wall_s = time.perf_counter() - start
            entry.device_s = entry.wall_s * self.devices
            self.add(entry)

    def add(self, entry: Entry) -> None:
        """Writes one line."""
        if self.writes:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            line = asdict(entry) | {"when": datetime.now(UTC).isoformat(timespec="seconds")}
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")

    def read(self) -> list[Entry]:
        """All entries so far."""
        if not self.path.exists():
            return []
        lines = [json.loads(line) for line in self.path.read_text().splitlines() if line.strip()]
        return [Entry(**{k: v for k, v in line.items() if k != "when"}) for line in lines]


def total(entries: list[Entry], stages: tuple[str, ...]) -> Entry:
    """The sum over some stages."""
    summed = Entry("+".join(stages))
    for entry in entries:
        if entry.stage in stages:
            for name in ("wall_s", "device_s", "flops", "tokens", "samples", "calls", "price"):
                setattr(summed, name, getattr(summed, name) + getattr(entry, name))
    return summed

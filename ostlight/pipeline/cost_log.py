"""What every stage of a run cost."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from ostlight.data.checked_json import parse_checked, with_checksum
from ostlight.models.cost import ADDITIVE, StageCost
from ostlight.selection.usage import NAMES, Usage

log = logging.getLogger(__name__)


def charge(cost: StageCost, usage: Usage) -> None:
    """Adds what a selector used beyond the proxy to a stage's cost."""
    for name in NAMES:
        setattr(cost, name, getattr(cost, name) + getattr(usage, name))


class CostLog:
    """Appends to a run's ``cost_log.jsonl``, one line a stage.

    Args:
        devices: devices held by the run, on all nodes.
        writes: false on every rank but the first.
    """

    def __init__(self, path: Path, devices: int = 1, writes: bool = True) -> None:
        self.path, self.devices, self.writes = path, devices, writes

    @contextmanager
    def stage(self, stage: str, selector: str = "", usage: Usage | None = None) -> Iterator[StageCost]:
        """Times the block and writes its cost; the block fills in the rest, and ``device_s`` where others did the work.

        A stage that fails is written too, with the error's name in ``more["failed"]``. A process that is killed writes
        nothing.

        Args:
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
            cost.device_s = cost.device_s or cost.wall_s * self.devices
            self.add(cost)

    def add(self, cost: StageCost) -> None:
        """Writes one line."""
        if self.writes:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            line = asdict(cost) | {"when": datetime.now(UTC).isoformat(timespec="seconds")}
            with self.path.open("ab+") as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":  # a line was cut short by a kill
                        file.write(b"\n")
                file.write(json.dumps(with_checksum(line)).encode() + b"\n")

    def read(self) -> list[StageCost]:
        """Returns all lines so far; a warning counts those that are damaged, or says that the file is gone."""
        if not self.path.exists():
            if _holds_work(self.path.parent):
                log.warning(f"{self.path} is missing; what the stages of this folder cost is not known, nor counted")
            return []
        costs, damaged = [], 0
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                if line.strip():
                    costs.append(StageCost(**{k: v for k, v in parse_checked(line).items() if k != "when"}))
            except (ValueError, TypeError, AttributeError):
                damaged += 1
        if damaged:
            log.warning(f"{self.path}: {damaged} lines are damaged and left out; the costs of these stages are missing")
        return costs


def _holds_work(folder: Path) -> bool:
    """Whether a folder holds what a stage took time for."""
    return any(folder.glob("scores/part-*.parquet")) or (folder / "proxy" / "warmup.json").exists()


def total(costs: list[StageCost], stages: tuple[str, ...]) -> StageCost:
    """Returns the sum over the stages of these names."""
    summed = StageCost("+".join(stages))
    for cost in costs:
        if cost.stage in stages:
            for name in ("wall_s", "device_s", *ADDITIVE):
                setattr(summed, name, getattr(summed, name) + getattr(cost, name))
    return summed


def selection_cost(
    proxy: Sequence[StageCost], scoring: Sequence[StageCost], selecting: StageCost, records: int
) -> StageCost:
    """Returns the cost of warm-up, scoring and selecting, as a run without interruptions would have had it.

    A warm-up that fails starts over or resumes from a checkpoint, so its last run counts, with those that it resumes.
    Scoring resumes, and repeats the shards it was at; its
    cost is therefore the cost per record over all attempts times the number of records, for the selector and for each
    of its dependencies.

    Args:
        proxy: cost log with the warm-up; empty for selectors without a proxy.
        scoring: cost log with the scores.
        selecting: cost of selecting within this budget.
        records: in the pool.
    """
    cost = StageCost("selection")
    warm_ups = [e for e in proxy if e.stage == "warm-up"]
    begun = max((k for k, e in enumerate(warm_ups) if not e.resumed), default=0)
    attempts: dict[str, list[StageCost]] = {}
    for entry in scoring:
        if entry.stage == "score":
            attempts.setdefault(entry.selector, []).append(entry)
    for name in ("wall_s", "device_s", *ADDITIVE):
        scores = sum(_scale_to_pool(name, entries, records) for entries in attempts.values())
        value = sum(getattr(e, name) for e in warm_ups[begun:]) + scores + getattr(selecting, name)
        setattr(cost, name, type(getattr(cost, name))(value))
    return cost


def _scale_to_pool(name: str, attempts: Sequence[StageCost], records: int) -> float:
    """Returns the setup of the last attempt that had one, plus all other cost per record times the records."""
    scored = sum(e.samples for e in attempts)
    setups = [_setup(name, e) for e in attempts]
    per_record = sum(getattr(e, name) for e in attempts) - sum(setups)
    return float(next(filter(None, reversed(setups)), 0.0) + per_record * (records / scored if scored else 1))


def _setup(name: str, attempt: StageCost) -> float:
    """Returns the selector's setup in an attempt, of which ``setup_s`` are the elapsed seconds."""
    if name == "flops":
        return float(attempt.more.get("setup_flops", 0.0))
    if name not in ("wall_s", "device_s") or not attempt.wall_s:
        return 0.0
    return float(attempt.more.get("setup_s", 0.0) * getattr(attempt, name) / attempt.wall_s)

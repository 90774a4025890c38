"""The kept records of a run, as samples, and what is known of them before they are written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc

from ostlight.config.budget import SOURCE
from ostlight.data.checked_parquet import read_parquet
from ostlight.data.pool import Pool
from ostlight.data.sample import Sample
from ostlight.errors import BadRecord, DataError
from ostlight.progress import track
from ostlight.reporting.finished_run import FinishedRun
from ostlight.selection.score_files import ScoreFiles
from ostlight.selection.scores import REJECTED

LICENCE_TAGS = ("license", "licence")
"""Tags of a record that hold its licence."""

MAX_TAG_COLUMNS = 100
"""Columns that tags may fill; records of a crawl may have a tag of their own each."""


class Kept(NamedTuple):
    """A kept record; ``score`` is ``None`` where it has none, ``rank`` counts from 0, the best."""

    sample: Sample
    score: float | None
    rank: int


@dataclass
class Overview:
    """What the kept records hold, counted in one pass.

    Attributes:
        records: that can be exported.
        images: of all records.
        has_tools: a record describes functions, or calls one.
        has_muted: an assistant turn is not trained on.
        has_names: a turn has a name or the id of a call.
        tags: records that have a tag, by its name.
        sources: records by their tag ``source``, or by the file they come from.
        licences: records by the licence that they state.
        left_out: records that are kept and cannot be read as a conversation, by reason.
    """

    records: int = 0
    images: int = 0
    has_tools: bool = False
    has_muted: bool = False
    has_names: bool = False
    tags: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    licences: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)

    def add(self, sample: Sample, file: str) -> None:
        self.records += 1
        self.images += len(sample.images)
        self.tags.update(sample.tags.keys())
        self.sources[sample.tags.get(SOURCE, file)] += 1
        self.licences.update([sample.tags[name] for name in LICENCE_TAGS if sample.tags.get(name)][:1])
        self.has_tools |= bool(sample.tools)
        for turn in sample.turns:
            self.has_tools |= bool(turn.tool_calls)
            self.has_muted |= turn.role == "assistant" and not turn.trained
            self.has_names |= turn.name is not None or turn.tool_call_id is not None


class KeptRecords:
    """The records that a run has selected, in the order of the pool.

    Attributes:
        pool: they are read from.
        pool_fingerprint: of it.
        rejected: records of the pool that could not be used.

    Raises:
        DataError: nothing was selected; the pool is gone, or is not the one that was selected from.
    """

    def __init__(self, run: FinishedRun) -> None:
        folder = run.folder
        if run.is_benchmark:
            raise DataError(f"{run.path} is a benchmark, which keeps no subset; run `ostlight select` and export that")
        if not folder.selection.is_file():
            raise DataError(f"{run.path} holds no selection; run `ostlight select` first", folder.selection)
        names = ["position", "id", "state", "score", "kept", "rank"]
        rows = read_parquet(folder.selection, "run `ostlight select` again, which writes it from the scores", names)
        self.rejected = int(pc.sum(pc.equal(rows["state"], REJECTED)).as_py() or 0)
        rows = rows.filter(pc.field("kept")).sort_by("position")
        self.positions = rows["position"].to_numpy()
        self._ids, self._scores, self._ranks = (rows[name].to_pylist() for name in ("id", "score", "rank"))
        if run.pool is None:
            raise DataError(f"{run.path}: {run.missing[-1]}")
        self.pool: Pool = run.pool
        made_from = folder.made_from("scores") or {}
        self.pool_fingerprint = self.pool.fingerprint()[:16]
        if made_from.get("pool", self.pool_fingerprint) != self.pool_fingerprint:
            raise DataError(
                f"{run.path} was selected from another pool than {', '.join(map(str, self.pool.files))} is now; "
                "restore it, or select again under another name (name=...)"
            )

    def __len__(self) -> int:
        return len(self.positions)

    def overview(self) -> Overview:
        """What the records hold; reads all, without their images."""
        overview = Overview()
        files = self.pool.locate_all(self.positions)[0]
        for k, read in enumerate(self._read("reading the kept records")):
            if isinstance(read, BadRecord):
                overview.left_out[read.reason] += 1
            else:
                overview.add(read, self.pool.files[files[k]].name)
        return overview

    def __iter__(self) -> Iterator[Kept]:
        for k, read in enumerate(self._read("exporting")):
            if isinstance(read, Sample):
                yield Kept(read, self._scores[k], self._ranks[k])

    def pool_sources(self, run: FinishedRun) -> Counter[str]:
        """Records of the whole pool by their tag ``source``, or by the file they come from; as ``Overview.sources``."""
        names = np.array([file.name for file in self.pool.files], dtype=object)
        files = ScoreFiles(run.folder.scores)
        positions = files.rows["position"].to_numpy()
        counted: Counter[str] = Counter()
        values, codes = files.tags(SOURCE).get(SOURCE, (np.array([""]), np.zeros(len(positions), np.int32)))
        for value, count in zip(*np.unique(codes, return_counts=True), strict=True):
            if value:
                counted[str(values[value])] += int(count)
        of_file = np.bincount(self.pool.locate_all(positions[codes == 0])[0], minlength=len(names))
        for name, count in zip(names, of_file.tolist(), strict=True):
            counted[name] += count
        return +counted

    def _read(self, what: str) -> Iterator[Sample | BadRecord]:
        reads = track(self.pool.read(self.positions.tolist()), what, len(self), "records")
        for k, (position, read) in enumerate(reads):
            where = self.pool.record_name(position)
            if isinstance(read, BadRecord) and self._scores[k] is not None:
                raise DataError(f"{where} cannot be exported: {read}", self.pool.locate(position)[0])
            if isinstance(read, Sample) and read.id != self._ids[k]:
                raise DataError(f"{where} is {read.id!r} now and was {self._ids[k]!r} when it was selected")
            yield read


def shares(counts: Counter[str]) -> list[tuple[str, int, float]]:
    """Each value with its count and its share, the most frequent first."""
    total = max(1, counts.total())
    return [(value, count, count / total) for value, count in sorted(counts.items(), key=lambda item: (-item[1], item))]

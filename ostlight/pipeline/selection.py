"""What a selection returns: counts, and the scores and the subset to look at from Python."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ostlight.data.checked_parquet import read_parquet
from ostlight.data.pool import Pool
from ostlight.data.sanitize import printable
from ostlight.data.subset_dataset import subset_dataset
from ostlight.errors import DataError
from ostlight.pipeline.run_folder import SELECT_AGAIN, RunFolder
from ostlight.selection.score_files import ScoreFiles
from ostlight.selection.underrepresented import UnderrepresentedTag

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True, repr=False, eq=False)
class Selection:
    """The result of a selection. ``kept + dropped + rejected`` is the number of records read.

    Attributes:
        folder: the run folder; ``folder.subset`` holds the kept records as files.
        kept: ``int64 [kept]`` positions of the kept records in the pool, from 0, best first; last come those that are
            kept without a score. Of a pool given as a list, ``[records[i] for i in selection.kept]`` are the subset.
        dropped: usable records that were not kept.
        rejected: unusable records by reason.
        answers_cut: samples whose answer was cut by the length limit.
        rare: strata of which hardly any sample is kept.
        pool: the records that were selected from.
        kept_unscored: kept records of media that the proxy cannot read (``pool.unsupported``).
        score_percentiles: of the scores, by percent; empty where every record was rejected.
        problems: why to look before going on with it, one sentence each (``tolerate``): most records were rejected, or
            the warm-up diverged. ``ostlight select`` then ends with exit status 3.
    """

    folder: RunFolder
    kept: np.ndarray
    dropped: int
    rejected: dict[str, int]
    answers_cut: int
    rare: list[UnderrepresentedTag]
    pool: Pool
    kept_unscored: int = 0
    score_percentiles: dict[int, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def selector(self) -> str:
        """Name of the selector, or its label."""
        return self.folder.config.selector.shown

    @cached_property
    def scores(self) -> pa.Table:
        """Every record of the pool, by position; ``.to_pandas()`` makes a DataFrame of it.

        Columns: ``position`` (in the pool, from 0), ``id``, ``state`` (``ok`` or ``rejected``), ``reason``, ``field``
        and ``detail`` (of a rejected record, else null), ``tokens`` (length in tokens of the proxy), ``answer_cut``,
        ``tags`` (a map from name to value), ``score`` (higher is better; of ``ost`` the utility: by how much one step
        on the sample lowers the mean loss on the anchors, in nats per answer token; other selectors have units of
        their own), further numbers of the selector, ``kept``, and ``rank`` (among the kept, 0 is best, else null).

        Read from the run's files when first asked for, and then held in memory: about 100 bytes a record and its tags.
        Vectors (a number for each anchor) are left out; ``ostlight.Scores.read(selection.folder.scores)`` reads
        single columns, these among them, and ``ostlight.ScoreFiles(selection.folder.scores).query(SQL)`` answers
        questions about pools that are too large for memory.
        """
        files = ScoreFiles(self.folder.scores)
        columns = {f.name: files.column(f.name) for f in files.schema if not _is_vector(f.type)}
        rank = np.full(len(files.rows), -1, dtype=np.int64)
        rank[np.searchsorted(files.rows["position"].to_numpy(), self.kept)] = np.arange(len(self.kept))
        return pa.table(columns | {"kept": pa.array(rank >= 0), "rank": pa.array(rank, mask=rank < 0)})

    @property
    def subset(self) -> Dataset:
        """The kept records as a ``datasets.Dataset``, best first: row ``k`` is the record at ``kept[k]``.

        The fields are those of the records as they came. A pool of Parquet files or of a ``save_to_disk`` folder has
        its own features, mapped from disk; one of another format is held in memory, with ``image`` and ``images`` (or
        the columns that ``pool.columns`` names) as ``datasets.Image``.

        Raises:
            DataError: the package ``datasets`` is not installed; the run folder holds another selection by now; fields
                of several types.
        """
        if not np.array_equal(self._kept_now(), self.kept):
            raise DataError(f"{self.folder.subset} holds another selection by now; select again to read it")
        return subset_dataset(self.pool, self.kept, self.folder.subset)

    def _kept_now(self) -> np.ndarray:
        if not self.folder.selection.is_file():
            return np.empty(0, dtype=np.int64)
        is_kept = pc.field("rank").is_valid()
        table = read_parquet(self.folder.selection, SELECT_AGAIN, ["position", "rank"], is_kept)
        return table.sort_by("rank")["position"].to_numpy()

    def __repr__(self) -> str:
        counts = ", ".join(f"{count:,} {name}" for name, count in self._counts() if name != "kept")
        return (
            f"<Selection: kept {len(self.kept):,} of {self._records:,} records ({counts}) by {self.selector!r} in "
            f"{self.folder.path}{', ' + str(len(self.problems)) + ' problems' if self.problems else ''}>"
        )

    def _repr_html_(self) -> str:
        """A table of the counts, for notebooks; text of the data is escaped."""
        rows = [(name, f"{count:,}") for name, count in self._counts()]
        rows += [(f"rejected: {reason}", f"{count:,}") for reason, count in self.rejected.items()]
        rows += [(f"score, {p}th percentile", f"{value:.4g}") for p, value in self.score_percentiles.items()]
        rows += [("hardly any kept", str(tag)) for tag in self.rare]
        rows += [("problem", problem) for problem in self.problems]
        rows += [("subset", str(self.folder.subset))]
        cells = "".join(f"<tr><th>{_html(name)}</th><td>{_html(value)}</td></tr>" for name, value in rows)
        head = f"kept {len(self.kept):,} of {self._records:,} records by {self.selector}"
        return f"<table><caption>{_html(head)}</caption><tbody>{cells}</tbody></table>"

    def _counts(self) -> Iterator[tuple[str, int]]:
        yield "kept", len(self.kept)
        yield "dropped", self.dropped
        yield "rejected", sum(self.rejected.values())
        if self.answers_cut:
            yield "answers cut", self.answers_cut
        if self.kept_unscored:
            yield "kept without a score", self.kept_unscored

    @property
    def _records(self) -> int:
        return len(self.kept) + self.dropped + sum(self.rejected.values())


def _is_vector(kind: pa.DataType) -> bool:
    return pa.types.is_nested(kind) and not pa.types.is_map(kind)


def _html(text: str) -> str:
    return html.escape(printable(text))

"""Which scores of other selectors a selector's own were made from."""

from __future__ import annotations

from collections.abc import Mapping

from ostlight.data.checked_json import read_json, write_json
from ostlight.data.checked_parquet import checksum_of
from ostlight.errors import read_if_whole
from ostlight.pipeline import fingerprint
from ostlight.pipeline.run_folder import RunFolder
from ostlight.ranks import is_first_rank


class DependencyState:
    """Which scores of its dependencies a selector's own scores were made from: noted when the first of them are made,
    and when all are.

    Args:
        folder: gets the selector's scores.
        dependencies: run folders with complete scores, by label.

    Attributes:
        has_changed: there are scores made from others, or nobody knows from which.
    """

    def __init__(self, folder: RunFolder, dependencies: Mapping[str, RunFolder]) -> None:
        self._file, self._dependencies = folder.path / "selector" / "dependencies.json", dependencies
        has_scores = any(folder.scores.glob("part-*.parquet"))
        self.has_changed = bool(dependencies) and has_scores and self._now() != self._before()
        if not has_scores:
            self.write()

    def write(self) -> None:
        """Notes that the scores are made from those that there are now."""
        if self._dependencies and is_first_rank():
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._file, self._now())

    def _now(self) -> dict[str, str]:
        return {
            label: fingerprint.of_values([checksum_of(file) for file in sorted(folder.scores.glob("part-*.parquet"))])
            for label, folder in self._dependencies.items()
        }

    def _before(self) -> dict[str, str] | None:
        if not self._file.exists():
            return None
        return read_if_whole(self._file, lambda: read_json(self._file), "all records are scored again")

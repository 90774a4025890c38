"""Selection runs of the selector under test, on the small pool."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

from ostlight.config.bind import bind
from ostlight.config.load import load_config
from ostlight.config.schema import Config
from ostlight.digitmath.model import checkpoint
from ostlight.models.batch import Batch
from ostlight.pipeline.inputs import open_pool
from ostlight.pipeline.run_folder import RunFolder
from ostlight.pipeline.score import ScoringJob, score_pool
from ostlight.pipeline.select import select_subset
from ostlight.pipeline.selection import Selection
from ostlight.selection.scores import read_score_table
from ostlight.selection.selector import Selector
from ostlight.testing.pools import PoolFiles


@dataclass
class SelectorRunner:
    """Runs one selector class with one set of options; every run has a folder of its own.

    Attributes:
        cls: the class under test.
        options: as in the YAML.
        pools: files to run on.
    """

    cls: type[Selector]
    options: Mapping[str, Any]
    folder: Path
    pools: PoolFiles

    def new_selector(self) -> Selector:
        """A new instance, made as from a configuration."""
        return self.cls(bind(self.cls.Options, dict(self.options), where="selector.options"))

    @cached_property
    def _base_config(self) -> Config:
        # Weights in float64, so that batch composition and order hardly change a score.
        model = {"path": str(checkpoint("proxy")), "dtype": "float64"}
        return load_config(
            {
                "folder": str(self.folder),
                "pool": {"path": str(self.pools.pool), "duplicates": "first"},
                "anchors": {"path": str(self.pools.anchors), "group": "task"},
                "proxy": model | {"warmup": {"fraction": 0}},
                "target": model,
                "selector": {"name": self.cls.__name__, "options": dict(self.options)},
                "budget": {"fraction": 0.25},
                "compute": {"shard_size": 8, "progress": False, "logger": "none", "accelerator": "cpu"},
            }
        )

    def config(self, name: str, changes: Mapping[str, Any] | None = None) -> Config:
        """Configuration of the run ``name``; ``changes`` maps dotted setting names to values."""
        config = copy.deepcopy(self._base_config)
        for path, value in {"name": name, **(changes or {})}.items():
            *sections, setting = path.split(".")
            setattr(reduce(getattr, sections, config), setting, value)
        return config

    def run(
        self,
        name: str,
        changes: Mapping[str, Any] | None = None,
        before_score: Callable[[Batch], Batch] | None = None,
        watch_options: Callable[[Any], Any] | None = None,
    ) -> Selection:
        """Scores and selects with a new instance.

        Args:
            name: of the run; a name used before continues that run.
            changes: settings by dotted name.
            before_score: returns the batch that the selector scores in place of the one it is called with.
            watch_options: returns what stands in the place of the selector's options while it scores.
        """
        selector = self.new_selector()
        original = selector.score
        if before_score is not None:
            selector.score = lambda batch: original(before_score(batch))  # type: ignore[method-assign]
        if watch_options is not None:
            plain, watched = selector.options, watch_options(selector.options)

            def score(batch: Batch) -> Any:
                selector.options = watched
                try:
                    return original(batch)
                finally:
                    selector.options = plain

            selector.score = score  # type: ignore[method-assign]
        config = self.config(name, changes)
        folder = RunFolder.of(config)
        pool = open_pool(config.pool, "pool")
        with redirect_stdout(io.StringIO()):
            score_pool(ScoringJob(config, folder, pool, selector))
            return select_subset(config, folder, pool, selector, config.budget)

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The score table of a run, one dictionary per record, by position."""
        rows: list[dict[str, Any]] = read_score_table(self.folder / name / "scores").to_pylist()
        return rows

    def parts(self, name: str) -> dict[Path, int]:
        """The score files a run has written so far, with their modification times."""
        return {p: p.stat().st_mtime_ns for p in (self.folder / name / "scores").glob("part-*.parquet")}

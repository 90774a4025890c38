"""Selections of a class under test, on the small pool."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import inspect
import io
import sys
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
from ostlight.errors import SelectorError
from ostlight.pipeline.inputs import open_pool
from ostlight.pipeline.run_folder import RunFolder
from ostlight.pipeline.score import ScoringJob, score_pool
from ostlight.pipeline.select import Selection, select_subset
from ostlight.selection.scores import read_score_table
from ostlight.selection.selector import Selector
from ostlight.testing.pools import Pools

Change = Callable[[Selector], None]
"""What a check does to a fresh selector before it runs."""


@dataclass
class Runs:
    """Makes runs of one class with one set of options, each in a folder of its own.

    Attributes:
        cls: the class under test.
        options: as in the YAML.
        folder: of all runs.
        pools: what they read.
    """

    cls: type[Selector]
    options: Mapping[str, Any]
    folder: Path
    pools: Pools

    def make(self) -> Selector:
        """A fresh instance, made as a configuration makes it."""
        return self.cls(bind(self.cls.Options, dict(self.options), where="selector.options"))

    @cached_property
    def _config(self) -> Config:
        model = {"path": str(checkpoint("proxy")), "dtype": "float64"}
        return load_config(
            {
                "folder": str(self.folder),
                "pool": {"path": str(self.pools.pool)},
                "anchors": {"path": str(self.pools.anchors), "group": "task"},
                "proxy": model | {"warmup": {"fraction": 0}},
                "target": model,
                "selector": {"name": self.cls.__name__, "options": dict(self.options)},
                "budget": {"fraction": 0.25},
                "compute": {"shard_size": 8, "progress": False, "logger": "none", "accelerator": "cpu"},
            }
        )

    def config(self, name: str, changes: Mapping[str, Any] | None = None) -> Config:
        """Of a run on ``pools.pool``; weights in float64, so that batches and order may hardly matter.

        Args:
            changes: settings by dotted name.
        """
        config = copy.deepcopy(self._config)
        for path, value in {"name": name, **(changes or {})}.items():
            *sections, setting = path.split(".")
            setattr(reduce(getattr, sections, config), setting, value)
        return config

    def select(self, name: str, changes: Mapping[str, Any] | None = None, change: Change | None = None) -> Selection:
        """A run by a fresh instance, settings changed as ``config`` takes them."""
        selector = self.make()
        if change is not None:
            change(selector)
        return run(self.config(name, changes), selector)

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The score table of a run, a dictionary a record, by position."""
        return read_score_table(self.folder / name / "scores").to_pylist()


def run(config: Config, selector: Selector) -> Selection:
    """``ostlight select`` with an instance in hand, and without its lines."""
    folder = RunFolder.of(config)
    pool = open_pool(config.pool, "pool")
    with redirect_stdout(io.StringIO()):
        score_pool(ScoringJob(config, folder, pool, selector))
        return select_subset(config, folder, pool, selector, config.budget)


def home_of(cls: type[Selector]) -> dict[str, str]:
    """Where another process finds a class: ``load_from`` takes it.

    Raises:
        SelectorError: it is defined inside a function, or not in a file.
    """
    try:
        file = inspect.getfile(cls)
    except (TypeError, OSError):
        file = ""
    if "<locals>" in cls.__qualname__ or not file:
        raise SelectorError(
            f"{cls.__qualname__} is not defined at the top of a file, so no second process can import it; "
            "move it there, or pass processes=False"
        )
    return {"module": cls.__module__, "file": file, "qualname": cls.__qualname__}


def load_from(home: Mapping[str, str]) -> type[Selector]:
    """The class ``home_of`` described; from its file where its module cannot be imported by name."""
    try:
        module = importlib.import_module(home["module"])
        if module.__file__ != home["file"]:
            raise ImportError(home["module"])
    except ImportError:
        spec = importlib.util.spec_from_file_location("ostlight_selector_under_test", home["file"])
        assert spec is not None, "a Python file has a spec"
        assert spec.loader is not None, "and a loader"
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    found: Any = module
    for part in home["qualname"].split("."):
        found = getattr(found, part)
    return found

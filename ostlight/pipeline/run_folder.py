"""The run folder: what each stage writes, and a manifest of what it was made from."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from ostlight.config.load import as_written
from ostlight.config.read import read_mapping, with_checksum
from ostlight.config.schema import Config
from ostlight.data.atomic import atomic_write_text, sweep
from ostlight.data.checked_json import read_json, write_json
from ostlight.errors import ConfigError, DataError, RunChangedError, reading_back
from ostlight.pipeline.cost_log import CostLog
from ostlight.pipeline.lock import RUN, locked, updating
from ostlight.ranks import is_first_rank, started_beside_others

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
LOST = "what {} was made from is not known any more: remove that folder, or give this run another name"
"""Cure of a manifest that is damaged or missing."""
ANOTHER_NAME = "give this run another name (name=...)"
SELECT_AGAIN = "`ostlight select` writes it again from the scores"
"""What to do about a selection or a quarantine that is damaged."""


class RunFolder:
    """``runs/NAME``: paths, manifest and cost log.

    Args:
        path: the folder; made if missing.
        config: of the run; written as ``config.yaml`` where there is none yet.
        write: false to read only.

    Raises:
        ConfigError: the folder cannot be made.
    """

    def __init__(self, path: Path, config: Config, write: bool = True) -> None:
        self.path = path
        self.config = config
        self.proxy = path / "proxy"
        self.scores = path / "scores"
        self.images = path / "images"
        self.index = path / "index"
        self.selection = path / "selection.parquet"
        self.quarantine = path / "quarantine.parquet"
        self.subset = path / "subset"
        self.targets = path / "targets"
        self.target = path / "target"
        self.predictions = path / "predictions.parquet"
        self.score_index = path / "score_index.jsonl"
        self.rescored = path / "rescored.json"
        self.cost_log = CostLog(
            path / "cost_log.jsonl", config.compute.devices * config.compute.num_nodes, is_first_rank()
        )
        if write and is_first_rank():
            _make(path)
            if not (path / "config.yaml").exists():
                self.write_config()

    @classmethod
    def of(cls, config: Config) -> RunFolder:
        """Returns the folder that a configuration names."""
        return cls(cls.path_of(config), config)

    @classmethod
    @contextmanager
    def owned(cls, config: Config, verb: str, shared: bool = False) -> Iterator[RunFolder]:
        """The folder that a configuration names, for a stage: nobody else works in it inside the block.

        What killed processes have left unfinished is removed first; where other ranks were started with this one and
        may be writing by then, at the end, if no other stage may be there. Ranks of one run are one owner, which is the
        first.

        Args:
            verb: of the stage.
            shared: other stages that share may be there too: they change nothing that this one reads, and rewrite what
                all of them do only inside ``updating``.

        Raises:
            ConfigError: the folder cannot be made.
            RunInUseError: another process works in it.
        """
        path = cls.path_of(config)
        if not is_first_rank():
            yield cls(path, config)
            return
        _make(path)
        first = (lambda: None) if started_beside_others() else partial(_sweep, path)
        with locked(path, RUN, f"`ostlight {verb}`", ANOTHER_NAME, shared, first):
            yield cls(path, config)
            if started_beside_others() and not shared:
                _sweep(path)

    @contextmanager
    def owned_target(self, target: Path) -> Iterator[None]:
        """Inside, nobody else trains the target of this name.

        Raises:
            RunInUseError: another process does.
        """
        if not is_first_rank():
            yield
            return
        owner, name = f"`ostlight train` of {target.name}", f"target-{target.name}"
        with locked(self.path, name, owner, "give the target another name (target.name=...)"):
            yield

    @contextmanager
    def updating(self) -> Iterator[None]:
        """Inside, no other process rewrites what stages that run side by side share."""
        if not is_first_rank():
            yield
            return
        with updating(self.path):
            yield

    @staticmethod
    def path_of(config: Config) -> Path:
        """Returns the path of the folder that a configuration names; makes nothing."""
        return Path(config.folder) / config.name

    def write_config(self, *sections: str) -> None:
        """Writes ``config.yaml``, which repeats the run.

        A stage calls it after ``claim``: a refused stage must not change what the folder says about earlier work.

        Args:
            sections: those that only this stage depends on; the others stay as the file has them. All where none is
                named.
        """
        if is_first_rank():
            file, values = self.path / "config.yaml", as_written(self.config)
            with self.updating():
                if sections:
                    values = read_mapping(file) | {name: values[name] for name in sections}
                text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
                atomic_write_text(file, with_checksum(f"# Repeat this run: ostlight select THIS_FILE\n{text}"))

    def claim(
        self,
        stage: str,
        inputs: dict[str, str],
        is_empty: bool = False,
        way_out: str = ANOTHER_NAME,
        clear: Callable[[], None] | None = None,
        holds_work: bool = False,
    ) -> bool:
        """Records in the manifest what a stage is made from, before its first file is written.

        A stage that the folder already holds, made from the same inputs, may resume.

        Args:
            stage: its name in the manifest.
            inputs: fingerprint of everything the result depends on, by a name the user understands.
            is_empty: nothing that took work is there of the stage, whatever the manifest says: an earlier run failed,
                or was refused, before it made anything. It is then claimed anew.
            way_out: what to do about other inputs, for the message.
            clear: removes what an empty stage left, before it is claimed with other inputs.
            holds_work: work of the stage is there, so it was claimed before.

        Returns:
            Whether it was claimed with other inputs before, of which nothing is there.

        Raises:
            RunChangedError: the folder holds the stage made from other inputs; lists what changed.
            DataError: the folder holds work of the stage, and the manifest is lost.
        """
        with self.updating():
            stages, before = self._stages(), self.made_from(stage)
            is_other = before is not None and before != inputs
            if before is None and holds_work:
                file = self.path / MANIFEST
                raise DataError(f"{file} is missing, or lacks {stage!r}; {LOST.format(self.path)}", file)
            if before is not None and is_other and not is_empty:
                changed = changed_inputs(before, inputs)
                raise RunChangedError(
                    f"{self.path} holds a {stage!r} stage made with other inputs; changed: {', '.join(changed)}. "
                    f"Undo the change, or {way_out}; what is there stays",
                    changed,
                )
            if is_other and clear is not None:
                clear()
            if (before is None or is_other) and is_first_rank():
                stages |= {stage: inputs}
                write_json(self.path / MANIFEST, {name: dict(sorted(made.items())) for name, made in stages.items()})
            return is_other

    def written_options(self) -> dict[str, Any]:
        """The selector's options in ``config.yaml``, as its scores were made with."""
        options: dict[str, Any] = read_mapping(self.path / "config.yaml").get("selector", {}).get("options") or {}
        return options

    def made_from(self, stage: str) -> dict[str, str] | None:
        """What a stage was claimed with; ``None`` where it was not."""
        return self._stages().get(stage)

    def _stages(self) -> dict[str, dict[str, str]]:
        return read_manifest(self.path)


def changed_inputs(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """Names of the inputs that differ, sorted. Of another selector only that it is another: its options, its code and
    what it needs differ with it."""
    changed = sorted(k for k in now.keys() | before.keys() if now.get(k) != before.get(k))
    if "selector" not in changed:
        return changed
    return [k for k in changed if k == "selector" or (k in now and k in before and not k.startswith("selector"))]


def read_manifest(folder: Path) -> dict[str, dict[str, str]]:
    """Returns what each stage of a run folder was made from; nothing where the folder holds no stage.

    Raises:
        DataError: ``manifest.json`` is damaged.
    """
    file = folder / MANIFEST
    if not file.exists():
        return {}
    with reading_back(file, LOST.format(folder)):
        return {stage: dict(inputs) for stage, inputs in read_json(file).items()}


def _make(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"folder: cannot make {path}: {error.strerror}; name another with folder=... or name=..."
        raise ConfigError([problem]) from error


def _sweep(path: Path) -> None:
    found = sweep(path, kept=("subset",))  # replaced as a whole, and its files have the names of the pool's
    if found:
        log.info(f"{path}: removed what a killed run has left unfinished ({len(found)} files and folders)")

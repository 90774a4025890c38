"""Pools, anchors and question sets that are given as objects of the calling program."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

from ostlight.config.schema import Config
from ostlight.errors import ConfigError, RunChangedError

log = logging.getLogger(__name__)

Records = Any
"""A ``datasets.Dataset``, a list of dicts, a DataFrame, an Arrow table; or the path of a file, as in the configuration.
"""


class Given(TypedDict, total=False):
    """Records by the section of the configuration that they are for; they take the place of its ``path``."""

    pool: Records | None
    anchors: Records | None
    dev: Records | None
    test: Records | None


IN_MEMORY = "(in memory)"
"""Stands for a path until the records are written."""


def paths_given(overrides: Sequence[str], given: Given) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The overrides with the paths of what is given, and, by section, what has none since it is in memory.

    Raises:
        TypeError: a section that takes no records.
    """
    if unknown := given.keys() - Given.__annotations__.keys():
        raise TypeError(
            f"unexpected argument {min(unknown)!r}; records are given as {', '.join(Given.__annotations__)}"
        )
    in_memory: dict[str, Any] = {}
    texts = list(overrides)
    for where, records in given.items():
        if isinstance(records, str | os.PathLike):
            texts.append(f"{where}.path={json.dumps(os.fspath(records))}")
        elif records is not None:
            texts.append(f"{where}.path={json.dumps(IN_MEMORY)}")
            in_memory[where] = records
    return tuple(texts), in_memory


@contextmanager
def records_in(folder: Path, config: Config, in_memory: Mapping[str, Any]) -> Iterator[Config]:
    """Writes records from memory to ``folder`` and gives the configuration that reads them there.

    The same records are found again, whatever object holds them. Where the block is refused since the run was made of
    others, what was written for it is removed. Paths of images are relative to ``image_root``, or else to the current
    folder.

    Raises:
        ConfigError: the folder cannot be written.
        DataError: what is given cannot be written as records.
    """
    if not in_memory:
        yield config
        return
    from ostlight.data.in_memory import write_records  # pyarrow, which a typo need not wait for

    written: list[Path] = []
    try:
        for where, records in in_memory.items():
            try:
                path, is_new = write_records(records, folder, where)
            except OSError as error:
                problem = f"folder: cannot write the records of {where} to {folder}: {error.strerror or error}"
                raise ConfigError([problem]) from error
            if is_new:
                written.append(path.parent)
                log.info(f"{where}: its records are written to {path}")
            config = _reading(config, where, path)
        yield config
    except RunChangedError:
        for made in written:
            shutil.rmtree(made, ignore_errors=True)
        raise


def _reading(config: Config, where: str, path: Path) -> Config:
    from ostlight.data.layouts import LAYOUTS

    section = getattr(config, where)
    section = replace(
        section,
        path=str(path),
        format=section.format if section.format in LAYOUTS else "auto",
        image_root=section.image_root or (None if path.is_dir() else str(Path.cwd())),
    )
    return replace(config, **{where: section})

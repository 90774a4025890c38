"""Trials of a run that are done: a file each, so that a run that was killed repeats none of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from ostlight.data.checked_json import read_json, write_json
from ostlight.errors import read_if_whole
from ostlight.ranks import is_first_rank


@dataclass(frozen=True)
class KeptTrials:
    """Results of trials by a hash of the subset, its order of training and all else that they depend on.

    Attributes:
        folder: of the files; made when the first is kept.
        made_from: fingerprints of everything else that a trial depends on, by a name the user understands.
    """

    folder: Path
    made_from: Mapping[str, str]

    def key(self, positions: np.ndarray, seed: int, steps: int) -> str:
        """Name of a trial's result.

        Args:
            positions: of the records, in the order that training is given.
            seed: of the shuffles.
            steps: optimiser steps.
        """
        rows = np.ascontiguousarray(positions, dtype=np.int64)
        digest = hashlib.sha256(json.dumps([sorted(self.made_from.items()), seed, steps]).encode())
        digest.update(rows.tobytes())
        return digest.hexdigest()[:32]

    def get(self, key: str) -> dict[str, Any] | None:
        """What ``put`` was given under this key by an earlier process or this one; ``None`` where it was not."""
        return self._found.get(key)

    def put(self, key: str, result: Mapping[str, Any]) -> None:
        """Keeps a result, plain data; whole or not at all."""
        self._found[key] = dict(result)
        if is_first_rank():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / f"{key}.json", result)

    @cached_property
    def _found(self) -> dict[str, dict[str, Any]]:
        """Read once: all ranks begin with the same ones, before any of them has finished a trial."""
        found = {}
        for file in sorted(self.folder.glob("*.json")):
            result = read_if_whole(file, partial(read_json, file), "the trial is run again")
            if result is not None:
                found[file.stem] = result
        return found

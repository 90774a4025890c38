"""``selection.parquet``: what was kept, and by which settings, which the file itself says."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ostlight.config.schema import Config
from ostlight.data.checked_parquet import read_metadata
from ostlight.data.pool import Pool
from ostlight.errors import RunChangedError, reading_back
from ostlight.pipeline import fingerprint
from ostlight.pipeline.run_folder import SELECT_AGAIN
from ostlight.selection.score_files import ScoreFiles

log = logging.getLogger(__name__)

MADE_FROM = "ostlight.made_from"
"""Of the file's metadata: JSON, by the names of the settings."""

POOL = "pool"
"""Among those: the fingerprint of the pool, whose positions the file holds."""


def write_selection(config: Config, pool: Pool, files: ScoreFiles, kept: np.ndarray, path: Path) -> None:
    """Writes one row per record: its score, whether it was kept, and its rank among the kept (0 is best)."""
    columns = "position, id, state, reason, score, rank IS NOT NULL AS kept, rank"
    files.write(
        f"SELECT {columns} FROM scores LEFT JOIN kept USING (position) ORDER BY position",
        path,
        {MADE_FROM: json.dumps(_settings(config, pool), sort_keys=True)},
        kept=pa.table({"position": kept, "rank": np.arange(len(kept))}),
    )


def read_settings(path: Path) -> dict[str, Any]:
    """Returns the settings that a selection was made with; nothing for one of an earlier version.

    Raises:
        DataError: the file is damaged.
    """
    found = read_metadata(path, SELECT_AGAIN).get(MADE_FROM.encode())
    with reading_back(path, SELECT_AGAIN):
        return {} if found is None else dict(json.loads(found))


def changed_settings(config: Config, pool: Pool, path: Path) -> list[str]:
    """Returns the names of those that the selection was made with and that are others now; none for one of an earlier
    version, which does not say.

    Raises:
        DataError: the file is damaged.
    """
    before, now = read_settings(path), _settings(config, pool)
    return [name for name, value in now.items() if before and before.get(name) != value]


def check_selection(config: Config, pool: Pool, path: Path) -> None:
    """Checks before a training that a selection is of this pool; a warning names other settings that differ.

    Raises:
        RunChangedError: the records are others.
    """
    changed = changed_settings(config, pool, path)
    if POOL in changed:
        raise RunChangedError(
            f"{path} was selected from other records than {config.pool.path} holds now; run `ostlight select` with "
            "this configuration first, or undo the change",
            [POOL],
        )
    if changed:
        log.warning(
            f"train: {path} was selected with other settings than these: {', '.join(changed)}; run `ostlight select` "
            "first to train on what these select"
        )


def _settings(config: Config, pool: Pool) -> dict[str, Any]:
    """Those that decide what is kept, as JSON holds them."""
    settings: dict[str, Any] = {
        POOL: pool.fingerprint()[: fingerprint.LENGTH],
        "pool.unsupported": config.pool.unsupported,
        "selector": config.selector.name,
        "selector.options": fingerprint.of_values(config.selector.options),  # they may hold a key
        "budget": dataclasses.asdict(config.budget),
        "seed": config.seed,
    }
    if config.budget.tokens is not None:  # the target's
        settings["target.path"] = str(config.target.path)
    plain: dict[str, Any] = json.loads(json.dumps(settings, default=str))
    return plain

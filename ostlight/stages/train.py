"""From a subset to a trained target."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ostlight.config.schema import Config
from ostlight.data.quarantine import Quarantine
from ostlight.errors import DataError
from ostlight.model.module import MultimodalModel
from ostlight.run import fingerprint
from ostlight.run.folder import RunFolder, is_first_rank
from ostlight.stages.say import say
from ostlight.stages.sources import open_pool, with_digitmath
from ostlight.training.fit import fit
from ostlight.training.steps import EncodedPool


def train(config: Config) -> Path:
    """Trains the target on the run's selection, best samples of the pool only, and saves it as ``target/``.

    Returns:
        The folder; ``from_pretrained`` and inference servers load it.

    Raises:
        DataError: the run has no selection yet, or an empty one.
        RunChangedError: the folder holds a target trained on other samples or with other settings.
    """
    folder = RunFolder.of(config)
    config = with_digitmath(config, folder)
    kept = read_kept(folder)
    pool = open_pool(config.pool, "pool")
    folder.claim(
        "target",
        {
            "pool": pool.fingerprint()[:16],
            "selection": fingerprint.of_values(kept.tolist()),
            "target.path": fingerprint.of_model(config.target.path, "target"),
            "target": fingerprint.of_values(dataclasses.asdict(config.target) | {"path": None}),
            "seed": str(config.seed),
            "training code": fingerprint.of_code(*fingerprint.TRAINING),
        },
    )
    if (folder.target / "config.json").exists():
        say(f"target: already trained in {folder.target}")
        return folder.target
    model = MultimodalModel.load(config.target, "target", config.target.training)
    with folder.ledger.stage("train", config.selector.shown) as entry:
        refusals = fit(
            model, EncodedPool(pool, kept, model.encoder), config.compute, folder.path, "train", config.seed, entry, say
        )
        entry.more["set_aside"] = len(refusals)
    if refusals:
        say(f"train: {len(refusals)} of {len(kept)} samples could not be used; see {folder.quarantine}")
        quarantine = Quarantine.read(folder.quarantine)
        for position, error in refusals.items():
            quarantine.add(pool, position, error, stage="train")
        quarantine.write(folder.quarantine)
    if is_first_rank():
        model.save(folder.target)
    say(f"target: {folder.target}")
    return folder.target


def read_kept(folder: RunFolder) -> np.ndarray:
    """Positions of the records the run kept, best first.

    Raises:
        DataError: nothing was selected yet.
    """
    if not folder.selection.exists():
        raise DataError(f"{folder.selection} is not there; run `ostlight select` with this configuration first")
    table = pq.read_table(folder.selection)
    kept = table.filter(pc.field("kept")).sort_by("rank")["position"].to_numpy()
    if not len(kept):
        raise DataError(f"{folder.selection} keeps no record; widen the budget")
    return kept

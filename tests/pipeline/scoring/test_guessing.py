"""A proxy that does no better on the anchors than guessing is named before anything is scored."""

from __future__ import annotations

from pathlib import Path

import torch

import ostlight
from ostlight.config.schema import Model
from ostlight.digitmath.model import checkpoint
from ostlight.models.module import MultimodalModel

WARNING = "no better than guessing every token (5.4"


def test_it_is_warned_of(settings, logged, tmp_path: Path):
    ostlight.select(settings(selector={"name": "loss"}))
    assert WARNING not in " ".join(logged().split())
    spoiled = MultimodalModel.load(Model(path=str(checkpoint("proxy"))), "proxy")
    with torch.no_grad():
        spoiled.model.get_output_embeddings().weight.mul_(-1)
    spoiled.save(tmp_path / "spoiled", merge=False)
    proxy = {"path": str(tmp_path / "spoiled"), "warmup": {"fraction": 0}}
    ostlight.select(settings(name="other", proxy=proxy, selector={"name": "loss"}))
    assert WARNING in " ".join(logged().split())

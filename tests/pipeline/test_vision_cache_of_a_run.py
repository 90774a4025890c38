"""A run whose vision tower is frozen selects, trains and answers alike with and without stored features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

import ostlight
from ostlight.config.load import load_config
from ostlight.data.remote_cache import cache_folder
from ostlight.models.vision import frozen_tower
from ostlight.pipeline.run_folder import RunFolder


@pytest.mark.slow
def test_stages_share_features_and_give_what_they_give_without(settings, tmp_path: Path, monkeypatch, logged):
    monkeypatch.setenv("OSTLIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(frozen_tower, "MIN_PARAMETERS", 0)
    monkeypatch.setattr(frozen_tower, "worth_reading", lambda reading, computing: True)
    cache_folder.cache_clear()
    selector = {"name": "ost", "options": {"estimator": "first_order", "step_size": 1e-3, "parameters": "blocks"}}
    made = {}
    for gib in (0, 1):
        config = settings(name=f"run{gib}", selector=selector, budget={"fraction": 0.5})
        config["target"] |= {"freeze": ["vision"], "training": {"epochs": 2, "batch_size": 4, "lr": 1e-4}}
        config["compute"] |= {"vision_cache_gib": gib}
        ostlight.select(config)
        target = ostlight.train(config)
        ostlight.evaluate(config)
        folder = RunFolder.of(load_config(config))
        scores = pq.read_table(folder.scores)["score"].to_numpy()
        weights = load_file(target / "model.safetensors")
        flops = {cost.stage: cost.flops for cost in folder.cost_log.read()}
        made[gib] = scores, weights, pq.read_table(folder.predictions)["text"].to_pylist(), flops, logged()
    (scores, weights, answers, flops, _), (own_scores, own_weights, own_answers, own_flops, lines) = made.values()
    assert np.allclose(own_scores, scores, rtol=1e-3, atol=1e-3 * np.abs(scores).max())
    assert all(torch.allclose(own_weights[name], value, atol=1e-5) for name, value in weights.items())
    assert own_answers == answers
    assert own_flops["score"] < flops["score"]
    assert own_flops["train"] < flops["train"]
    for stage in ("score", "train", "evaluate"):
        assert f"{stage}: vision features of " in lines
    cache_folder.cache_clear()

"""Every documented precision scores, warms up and trains."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
import torch

import ostlight
from ostlight.config.schema import Precision
from ostlight.selection.registry import register
from ostlight.selection.scores import Scores
from ostlight.selection.selector import Selector

pytestmark = pytest.mark.usefixtures("few_samples_compared")

OPTIONS: dict[str, dict[str, Any]] = {"ost": {"selection": "top", "rank": 4}, "loss": {}}


@pytest.mark.parametrize("selector", [pytest.param("ost", marks=pytest.mark.slow), "loss"])
@pytest.mark.parametrize("precision", get_args(Precision))
def test_scores_are_those_of_double_precision_but_for_rounding(precision: str, selector: str, settings) -> None:
    config = settings(selector={"name": selector, "options": OPTIONS[selector]})
    found = scores(config, "found", f"compute.precision={precision}")
    assert np.isfinite(found).all()
    exact = scores(config, "exact", "proxy.dtype=float64")
    off = np.abs(found - exact).max() / np.abs(exact).max()
    bound = 0.05 if precision.startswith("bf16") else 1e-4
    if precision in ("32-true", "auto") and selector == "ost":
        bound = 5e-3  # curvature is a difference of nearly equal logits, and these steps are very short
    assert off < bound


def scores(config: dict[str, Any], name: str, *overrides: str) -> np.ndarray:
    selection = ostlight.select(config, f"name={name}", *overrides)
    return Scores.read(selection.folder.scores).column("score")


@register("tests-new-tensors")
class NewTensors(Selector):
    """Its score has one digit more than bf16 holds."""

    def score(self, batch: Any) -> dict[str, Any]:
        return {"score": torch.full((len(batch),), 257.0)}


def test_a_selector_sums_in_full_precision_whatever_the_weights_have(settings) -> None:
    config = settings(selector={"name": "tests-new-tensors"})
    assert (scores(config, "run", "compute.precision=bf16-true") == 257).all()


@pytest.mark.parametrize("precision", get_args(Precision))
def test_a_proxy_is_warmed_up_and_a_target_trained(precision: str, settings) -> None:
    config = settings(selector={"name": "loss"})
    config["proxy"]["warmup"] = {"fraction": 0.25, "training": {"steps": 2, "batch_size": 4}}
    assert np.isfinite(scores(config, "run", f"compute.precision={precision}")).all()
    ostlight.train(config, "name=run", f"compute.precision={precision}")

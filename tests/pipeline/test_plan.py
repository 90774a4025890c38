"""``ostlight plan``: from shapes alone, and within a fifth of what the cost log says of the run."""

from __future__ import annotations

from pathlib import Path

import pytest

import ostlight
from ostlight.errors import ConfigError
from ostlight.models.module import MultimodalModel
from ostlight.pipeline.cost_log import CostLog

FIRST_ORDER = {"name": "ost", "options": {"selection": "top", "estimator": "first_order", "step_size": 0.01}}


def measured(folder: Path) -> dict[str, float]:
    return {cost.stage: cost.flops for cost in CostLog(folder / "cost_log.jsonl").read() if cost.flops}


def test_the_plan_is_what_a_run_takes(settings, tmp_path: Path, monkeypatch):
    config = settings(selector=FIRST_ORDER, digitmath=None)
    with monkeypatch.context() as patch:
        patch.setattr(MultimodalModel, "load", None)  # no weight is loaded
        planned = ostlight.plan(config)
    ostlight.select(config)
    ostlight.train(config)
    flops = measured(tmp_path / "runs" / "run")
    assert set(flops) == {"score", "train"}
    for stage, expected in flops.items():
        assert planned.stage(stage).flops[1] == pytest.approx(expected, rel=0.2)
    assert planned.stage("train").samples == 3 * 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"selection": "top", "rank": 8},
        {"selection": "top", "estimator": "second_order", "probes": 16, "step": "ekfac"},
        {"selection": "top", "estimator": "exact"},
        {"random_products": 64},
    ],
)
def test_every_way_to_score_takes_what_was_planned(settings, tmp_path: Path, options):
    warmup = {"fraction": 0.5, "training": {"batch_size": 8}}
    config = settings(selector={"name": "ost", "options": options})
    config["proxy"] = config["proxy"] | {"warmup": warmup}
    planned = ostlight.plan(config)
    ostlight.select(config)
    flops = measured(tmp_path / "runs" / "run")
    assert set(flops) == {"warm-up", "score"}
    for stage, expected in flops.items():
        assert planned.stage(stage).flops[1] == pytest.approx(expected, rel=0.2)


def test_a_pool_that_is_not_there_is_planned_by_its_numbers(settings):
    numbers = {"records": 1000, "anchors": 10, "tokens": 32, "answer_tokens": 4, "flops_per_s": 1e9, "device_gib": 1.0}
    config = settings(selector=FIRST_ORDER, plan=numbers, pool={}, anchors={}, test={})
    planned = ostlight.plan(config)
    assert [stage.stage for stage in planned.stages] == ["score", "train"]
    assert planned.stage("score").tokens == 32_000
    assert planned.device_bytes == 2**30
    train = planned.stage("train")
    assert planned.device_hours(train)[0] == pytest.approx(train.flops[0] / 1e9 / 3600)
    more = ostlight.plan(config, "plan.records=2000")
    added = more.stage("score").flops[0] - planned.stage("score").flops[0]
    assert 0 < added < planned.stage("score").flops[0]
    with pytest.raises(ConfigError) as caught:
        ostlight.plan(config, "plan.records=null")
    assert "pool.path" in caught.value.problems[0]


def test_memory_says_what_does_not_fit(settings):
    planned = ostlight.plan(settings(selector=FIRST_ORDER), "plan.device_gib=0.001", "plan.flops_per_s=1e9")
    text = str(planned)
    assert "does not fit" in text
    memory = planned.stage("train").memory
    assert memory["AdamW"] == 2 * memory["gradients"]
    assert memory["gradients"] == pytest.approx(memory["weights"], rel=0.001), "but for computed buffers"
    assert memory["activations"] > 0
    assert "does not fit" not in str(ostlight.plan(settings(), "plan.device_gib=64", "plan.flops_per_s=1e9"))


def test_other_selectors_are_planned_as_a_range(settings):
    planned = ostlight.plan(settings(selector={"name": "loss"}), "plan.flops_per_s=1e9")
    low, high = planned.stage("score").flops
    assert 2 * low < high <= 4 * low
    assert [stage.stage for stage in ostlight.plan(settings(), "plan.flops_per_s=1e9").stages] == ["train", "evaluate"]


def test_unused_numbers_are_refused(settings):
    with pytest.raises(ConfigError):
        ostlight.plan(settings(), "plan.image_tokens=4")
    with pytest.raises(ConfigError):
        ostlight.plan(settings(), "plan.tokens=10", "plan.answer_tokens=10")

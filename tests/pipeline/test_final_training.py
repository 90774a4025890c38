"""Final training: resumed as if never stopped, the best kept, adapters merged, in bf16, in the order asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

import ostlight
from ostlight.errors import ConfigError
from ostlight.pipeline.cost_log import CostLog
from ostlight.training.checkpoints import Checkpoints

TRAINING = {"steps": 9, "batch_size": 4, "lr": 1e-3}


def final(settings, name: str = "run", training: dict[str, Any] | None = None, **target: Any) -> dict[str, Any]:
    config = settings(name=name)
    config["target"] |= {"training": TRAINING | (training or {}), **target}
    return config


def trained(config: dict[str, Any], *overrides: str) -> Path:
    ostlight.select(config, *overrides)
    return ostlight.train(config, *overrides)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


class Killed(RuntimeError):
    pass


def kill_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Checkpoints.on_train_batch_end

    def killed(self: Any, trainer: Any, module: Any, *rest: Any) -> None:
        whole(self, trainer, module, *rest)
        if trainer.global_step == step:
            raise Killed

    monkeypatch.setattr(Checkpoints, "on_train_batch_end", killed)


@pytest.mark.parametrize("lora", [None, pytest.param({"rank": 2}, marks=pytest.mark.slow)])
def test_a_training_that_was_killed_ends_as_the_whole_one(settings, digits, monkeypatch, logged, lora):
    config = final(settings, "whole", checkpoint_minutes=0, patience=None, lora=lora) | {
        "dev": {"path": str(digits.dev)}
    }
    whole = trained(config)
    expected = logged()
    config |= {"name": "killed"}
    ostlight.select(config)
    with monkeypatch.context() as patch:
        kill_after(5, patch)
        with pytest.raises(Killed):
            ostlight.train(config, "compute.workers=2")  # processes that read ahead change nothing
    killed = whole.parent.parent.parent / "killed"
    assert not (killed / "target").exists()
    assert [file.suffix for file in (killed / "targets").iterdir()] == [".ckpt"]
    resumed = ostlight.train(config, "compute.workers=1")
    assert weights(resumed) == weights(whole)
    out = logged()
    assert "resumes from step 5" in out
    kept = [line for line in expected.splitlines() if line.startswith("training ")]
    assert len(kept) == 1
    assert kept[0] in out, "the resumed training read the same losses and kept the same step"
    assert not list(resumed.parent.glob("*.ckpt"))
    sittings = [e for e in CostLog(resumed.parent.parent / "cost_log.jsonl").read() if e.stage == "train"]
    one = next(e for e in CostLog(whole.parent.parent / "cost_log.jsonl").read() if e.stage == "train")
    assert [e.resumed for e in sittings] == [False, True]
    assert [e.more.get("failed") for e in sittings] == ["Killed", None]
    assert [e.samples for e in sittings] == [20, 16]
    assert sum(e.flops for e in sittings) == pytest.approx(one.flops)
    checks = [e.more["checks_flops"] for e in sittings]
    assert checks == pytest.approx([one.more["checks_flops"] * share for share in (6 / 10, 4 / 10)])
    steps = [e.flops - of_checks for e, of_checks in zip(sittings, checks, strict=True)]
    of_steps = [(one.flops - one.more["checks_flops"]) * share for share in (5 / 9, 4 / 9)]
    assert steps == pytest.approx(of_steps, rel=0.05), "steps differ in length by a few percent"
    assert sum(e.tokens for e in sittings) == one.tokens


def test_the_best_weights_by_the_development_loss_are_kept_and_training_stops(settings, digits, logged):
    config = final(settings, training={"lr": 0.3, "warmup": 0, "steps": 24, "schedule": "constant"}, patience=2)
    folder = trained(config | {"dev": {"path": str(digits.dev)}})
    out = logged()
    assert "training undone: loss on the development set " in out
    start = AutoModelForImageTextToText.from_pretrained(config["target"]["path"]).state_dict()
    found = AutoModelForImageTextToText.from_pretrained(folder).state_dict()
    assert all(torch.equal(found[name], start[name]) for name in start)
    entry = next(e for e in CostLog(folder.parent.parent / "cost_log.jsonl").read() if e.stage == "train")
    assert entry.samples == 6 * 4, "stopped at the second reading without a new best"
    assert entry.more["kept_step"] == 0


def test_adapters_are_merged_and_only_they_moved(settings):
    config = final(settings, lora={"rank": 2, "modules": r".*language_model.*\.(q_proj|v_proj)"})
    folder = trained(config)
    start = AutoModelForImageTextToText.from_pretrained(config["target"]["path"]).state_dict()
    found = AutoModelForImageTextToText.from_pretrained(folder).state_dict()
    assert found.keys() == start.keys()
    moved = {name for name in start if not torch.equal(found[name], start[name])}
    assert moved == {n for n in start if "language_model" in n and n.endswith(("q_proj.weight", "v_proj.weight"))}
    change = next(found[n] - start[n] for n in sorted(moved))
    assert torch.linalg.matrix_rank(change, rtol=1e-3) == 2
    assert ostlight.evaluate(config).accuracy["all"] >= 0


def test_adapters_that_fit_no_module_are_refused(settings):
    config = final(settings, lora={"modules": "nothing_of_that_name"})
    ostlight.select(config)
    with pytest.raises(ConfigError) as refused:
        ostlight.train(config)
    assert refused.value.problems[0].startswith("target.lora.modules='nothing_of_that_name'")


def test_blocks_computed_again_give_the_same_weights(settings):
    plain = trained(final(settings, "plain"))
    again = trained(final(settings, "again", gradient_checkpointing=True))
    one, other = (AutoModelForImageTextToText.from_pretrained(f).state_dict() for f in (plain, again))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_bf16_trains_near_float32(settings):
    full = trained(final(settings, "full"))
    half = trained(final(settings, "half"), "compute.precision=bf16-mixed")
    start, one, other = (
        AutoModelForImageTextToText.from_pretrained(f).state_dict()
        for f in (final(settings)["target"]["path"], full, half)
    )
    assert all(w.dtype == torch.float32 for w in other.values()), "mixed precision keeps full weights"
    moved = sum(float((one[n] - start[n]).square().sum()) for n in one) ** 0.5
    apart = sum(float((one[n] - other[n]).square().sum()) for n in one) ** 0.5
    assert 0 < apart < 0.5 * moved


def test_bf16_throughout_lowers_the_loss_and_is_saved_as_such(settings, digits, logged):
    config = final(settings, patience=None) | {"dev": {"path": str(digits.dev)}}
    folder = trained(config, "compute.precision=bf16-true")
    assert "training kept at step 9: loss on the development set " in logged()
    saved = AutoModelForImageTextToText.from_pretrained(folder).state_dict()
    assert {w.dtype for w in saved.values()} == {torch.bfloat16}


def test_all_problems_of_the_settings_are_listed_at_once(settings):
    config = final(
        settings, lora={"rank": 0}, patience=0, checkpoint_minutes=-1, training={"order": "upwards", "clip": 0}
    )
    with pytest.raises(ConfigError) as caught:
        ostlight.train(config, "compute.precision=16-mixed", "proxy.warmup.training.order=annealed")
    problems = "\n".join(caught.value.problems)
    for says in (
        "lora.rank must",
        "patience must",
        "checkpoint_minutes must",
        "training.order must be one of shuffled",
        "training.clip must",
        "precision must be one of auto, 32-true",
        "proxy.warmup.training.order must be shuffled",
    ):
        assert says in problems
    assert len(caught.value.problems) == 7


@pytest.mark.parametrize("order", ["utility_descending", "utility_ascending"])
def test_samples_are_seen_in_the_order_of_their_scores(settings, monkeypatch, order: str):
    from ostlight.training.steps import StepDataset

    seen: dict[int, list[int]] = {}
    whole = StepDataset.__getitem__

    def watched(self: Any, step: int) -> Any:
        seen[step] = [int(self.data.positions[i]) for i in self.plan[step]]
        return whole(self, step)

    config = final(settings, training={"steps": 3, "order": order})
    selection = ostlight.select(config, "budget.stratify_by=task", "budget.fraction=0.25")
    monkeypatch.setattr(StepDataset, "__getitem__", watched)
    ostlight.train(config, "budget.stratify_by=task", "budget.fraction=0.25")
    shown = [position for step in sorted(seen) for position in seen[step]]
    scores = ostlight.Scores.read(selection.folder.scores)
    score_of = dict(zip(scores.positions.tolist(), scores.score.tolist(), strict=True))
    kept = sorted(selection.kept.tolist(), key=lambda position: -score_of[position])
    assert len(shown) == 12 == len(kept)
    assert kept != selection.kept.tolist(), "the selection goes from stratum to stratum"
    assert shown == (kept if order == "utility_descending" else kept[::-1])

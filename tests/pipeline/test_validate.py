"""``ostlight validate``: problems are collected, records encoded, costs estimated; nothing is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

import ostlight
from ostlight.digitmath.model import checkpoint
from ostlight.errors import ConfigError, DataError, SelectorError

OST = {"name": "ost", "options": {"selection": "top", "rank": 8}}


def test_a_sound_configuration(settings, proxy, samples):
    report = ostlight.validate(settings(selector=OST), "proxy.warmup.fraction=0.5", "anchors.group=task")
    assert report.problems == []
    assert report.records == {"pool": 48, "anchors": 14, "test": 21}
    assert (report.read, report.rejected, report.answers_cut) == (48, {}, 0)
    model = proxy("float32")
    lengths = [len(model.encoder.encode(s)) for s in samples("pool")]
    assert report.tokens_per_sample == pytest.approx(sum(lengths) / 48)
    stages = {stage.stage.split()[0]: stage for stage in report.stages}
    assert list(stages) == ["warm-up", "score", "train", "evaluate"]
    assert stages["score"].tokens == pytest.approx(sum(lengths))
    assert 0 < stages["train"].flops[0] == stages["train"].flops[1]
    assert stages["train"].tokens == pytest.approx(3 * 4 * report.tokens_per_sample), "three steps of four samples"


def test_the_sample_shows_answers_marked_and_image_tokens_counted(settings):
    report = ostlight.validate(settings(selector={"name": "loss"}))
    question, _, answer = report.sample.partition("[[")
    assert "<image>[x4]" in question
    assert answer.endswith("]]")
    assert "answer" in answer


def test_all_problems_are_listed(settings, tmp_path: Path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    config = settings(selector=OST, dev={"path": str(empty)}, proxy={"path": "no/such/model"}, target={})
    report = ostlight.validate(config, "anchors.group=skill")
    assert len(report.problems) == 3
    assert [p.split(":")[0].split(".")[0].split()[0] for p in report.problems] == ["proxy", "dev", "anchors"]
    assert "problem: proxy.path: " in str(report)


def test_missing_settings_are_told_before_anything_is_read(settings, monkeypatch):
    monkeypatch.setattr("ostlight.pipeline.validate.open_pool", None)
    monkeypatch.setattr("ostlight.pipeline.validate.load_encoder", None)
    report = ostlight.validate(settings(selector=OST, anchors={}, proxy={}))
    assert [("anchors.path" in p, "proxy.path" in p) for p in report.problems] == [(True, False), (False, True)]
    assert not report.looked
    parts = {"name": "combine", "options": {"of": [{"name": "loss"}, {"name": "length"}]}}
    assert len(ostlight.validate(settings(selector=parts, proxy={})).problems) == 1
    with pytest.raises(SelectorError, match="proxy.path"):
        ostlight.select(settings(selector=OST, anchors={}, proxy={}))
    with pytest.raises(ConfigError) as caught:
        ostlight.select(settings(selector=OST, proxy={}))
    assert len(caught.value.problems) == 1
    assert not Path(settings()["folder"]).exists()


def test_missing_data_and_unknown_selectors_are_refused(settings):
    with pytest.raises(ConfigError, match=r"pool.path: no/pool.jsonl"):
        ostlight.validate(settings(pool={"path": "no/pool.jsonl"}))
    with pytest.raises(SelectorError, match="random"):
        ostlight.validate(settings(selector={"name": "rando"}))


def test_rejected_records_are_counted_by_reason(settings, tmp_path: Path):
    turns = [{"role": "user", "content": "one plus one"}, {"role": "assistant", "content": "2"}]
    records = [{"messages": turns}, {"messages": turns[:1]}, {"messages": [turns[0], turns[1] | {"content": ""}]}]
    pool = tmp_path / "pool.jsonl"
    pool.write_text("".join(json.dumps(r) + "\n" for r in records))
    report = ostlight.validate(settings(pool={"path": str(pool)}, selector={"name": "loss"}))
    assert report.rejected == {"no_answer": 1, "empty_answer": 1}
    pool.write_text("".join(json.dumps(r) + "\n" for r in records[1:]))
    report = ostlight.validate(settings(pool={"path": str(pool)}, selector={"name": "loss"}))
    assert "none of the 2 records read can be used" in report.problems[0]


def test_images_that_the_model_has_no_place_for_are_a_problem(settings):
    image = Image.new("RGB", (32, 32))  # the model takes 16 x 16
    pool = [{"id": f"r{k}", "image": image, "question": "which digit?", "answer": str(k)} for k in range(4)]
    report = ostlight.validate(settings(selector={"name": "loss"}), pool=pool)
    assert report.rejected == {"image_size": 4}
    assert report.problems == ["pool: none of the 4 records read can be used"]
    with pytest.raises(DataError, match=r"none of the 4 records read .* becomes 32 x 32 pixels, and .* takes 16 x 16"):
        ostlight.plan(settings(selector={"name": "loss"}), pool=pool)


def test_strata_by_a_tag_that_no_record_has_are_a_problem(settings):
    report = ostlight.validate(settings(), "budget.stratify_by=tusk")
    (problem,) = report.problems
    assert problem.startswith("budget.stratify_by is 'tusk'")
    assert "task" in problem.partition("tags are: ")[2]
    for known in ("task", "anchors.group", "gradients.cluster"):
        assert ostlight.validate(settings(), f"budget.stratify_by={known}").problems == []
    benchmark = {"selectors": [{"name": "random"}], "budgets": [{"count": 4}, {"count": 4, "stratify_by": "tusk"}]}
    (problem,) = ostlight.validate(settings(benchmark=benchmark)).problems
    assert problem.startswith("benchmark.budgets[1].stratify_by is 'tusk'")


def test_anchors_are_checked_for_every_selector_of_a_benchmark(settings):
    turns = {"name": "ost", "label": "turns", "options": {"selection": "round_robin"}}
    benchmark = {"selectors": [{"name": "random"}, turns], "budgets": [{"count": 4}]}
    (problem,) = ostlight.validate(settings(benchmark=benchmark)).problems
    assert problem.startswith("anchors: selector 'turns': ")
    assert "anchors.group" in problem


def test_nothing_is_written(settings, tmp_path: Path):
    ostlight.validate(settings(selector=OST, target={"path": str(checkpoint("target"))}))
    assert not (tmp_path / "runs").exists()


def test_what_only_the_training_would_refuse_is_a_problem(settings):
    refused = ostlight.validate(settings(), "target.training.lr_vision=1e-4", "target.freeze=[vision]")
    assert refused.problems == ["training.lr_vision: nothing of the vision is trained; leave it out"]
    nothing = ostlight.validate(settings(), "target.freeze=[vision,projector,language]")
    assert nothing.problems

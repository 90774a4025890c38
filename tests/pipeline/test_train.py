"""From a subset to a model that `from_pretrained` loads, and back to an accuracy."""

from __future__ import annotations

import json
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import ostlight
from ostlight.config import load_config
from ostlight.errors import DataError, DivergedError, RunChangedError
from ostlight.pipeline import train
from ostlight.pipeline.inputs import open_pool, read_anchors
from ostlight.pipeline.run_folder import RunFolder
from ostlight.pipeline.train import read_kept
from ostlight.pipeline.warmup import warm_up_proxy
from ostlight.selection.notes import read_notes


def test_select_train_evaluate(settings, logged):
    config = settings()
    ostlight.select(config)
    folder = ostlight.train(config)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    AutoProcessor.from_pretrained(folder)
    start = AutoModelForImageTextToText.from_pretrained(config["target"]["path"])
    moved = [n for n, p in model.named_parameters() if not torch.equal(p, start.get_parameter(n).to(p.dtype))]
    assert any("language_model" in n for n in moved)
    result = ostlight.evaluate(config)
    predictions = pq.read_table(folder / "predictions.parquet")
    assert predictions.num_rows == 21
    assert sum(predictions["correct"].to_pylist()) / 21 == pytest.approx(result.accuracy["all"])
    assert len(result.accuracy) == 8
    assert result.counts["all"] == 21
    lines = [json.loads(line) for line in (folder / "accuracy.jsonl").read_text().splitlines()]
    stored = {(line["group"], line["metric"]): line["value"] for line in lines}
    assert stored["all", "accuracy"] == result.accuracy["all"]
    assert stored["parity", "exact_accuracy"] == result.accuracy["parity"], "parity is answered in words"
    assert {(line["selector"], line["budget"], line["seed"]) for line in lines} == {("random", "20%", 0)}
    stages = [json.loads(line) for line in (folder.parent.parent / "cost_log.jsonl").read_text().splitlines()]
    train = next(s for s in stages if s["stage"] == "train")
    assert train["samples"] == 12
    assert train["flops"] > 0
    assert train["tokens"] > 12 * 10
    assert "train: 3 steps: about" in logged()


def test_training_comes_after_selecting(settings):
    with pytest.raises(DataError, match="run `ostlight select` with this configuration first"):
        ostlight.train(settings())
    ostlight.select(settings())
    with pytest.raises(DataError, match="run `ostlight train` with this configuration first"):
        ostlight.evaluate(settings())


def test_later_stages_leave_what_the_folder_says_of_the_selection(settings):
    folder = ostlight.select(settings(), "budget.fraction=0.5").folder.path
    chosen = load_config(folder / "config.yaml")
    ostlight.train(settings(), "target.training.steps=1", "target.training.epochs=null")
    ostlight.evaluate(settings(), "evaluation.max_new_tokens=2")
    said = load_config(folder / "config.yaml")
    assert (said.target.training.steps, said.evaluation.max_new_tokens) == (1, 2)
    assert replace(said, target=chosen.target, evaluation=chosen.evaluation) == chosen
    again = [ostlight.select(said).kept, ostlight.train(said), ostlight.evaluate(said)]
    assert len(again[0]) == 24


def test_targets_of_one_selection_stand_side_by_side(settings, logged):
    folder = ostlight.select(settings()).folder.path
    first = ostlight.train(settings())
    assert (folder / "target").resolve() == first.resolve()
    second = ostlight.train(settings(), "target.training.lr=0.01")
    third = ostlight.train(settings(), "target.training.lr=0.02", "target.name=fast")
    assert len({first, second, third}) == 3
    assert third == folder / "targets" / "fast"
    assert (folder / "target").resolve() == third.resolve()
    assert ostlight.train(settings()) == first
    assert "already trained" in logged()
    assert (folder / "target").resolve() == first.resolve()
    ostlight.evaluate(settings())
    ostlight.evaluate(settings(), "target.training.lr=0.01")
    ostlight.evaluate(settings(), "target.name=fast")
    for target in (first, second, third):
        assert (target / "predictions.parquet").exists()
    assert f"target {first.name}: " in logged()
    assert json.loads((folder / "accuracy.jsonl").read_text().splitlines()[0])["target"] == "fast"
    page = ostlight.report(folder).read_text()
    assert all(target.name in page for target in (first, second, third))
    with pytest.raises(DataError, match=f"no target was trained with these settings.*{first.name}"):
        ostlight.evaluate(settings(), "target.training.lr=0.03")


def test_a_target_trained_otherwise_is_not_taken_for_this_one(settings):
    ostlight.select(settings())
    ostlight.train(settings(), "target.name=one")
    with pytest.raises(RunChangedError, match=r"target\.name=") as refused:
        ostlight.train(settings(), "target.name=one", "target.training.lr=0.01")
    assert refused.value.changed == ["target"]
    assert ostlight.train(settings(), "target.name=two", "target.training.lr=0.01").name == "two"


def test_a_folder_of_an_earlier_version_is_kept(settings):
    folder = ostlight.select(settings()).folder.path
    (folder / "target").mkdir()
    (folder / "target" / "config.json").write_text("{}")
    ostlight.train(settings())
    assert (folder / "targets" / "earlier" / "config.json").read_text() == "{}"
    assert (folder / "target").is_symlink()


def test_training_takes_the_order_of_the_selection(settings):
    """As a benchmark does: a filter's order is not that of the scores."""
    folder = ostlight.select(settings()).folder
    table = pq.read_table(folder.selection)
    kept = read_kept(folder)
    ranks = dict(zip(table["position"].to_pylist(), table["rank"].to_pylist(), strict=True))
    assert [ranks[position] for position in kept.tolist()] == list(range(len(kept)))


def test_the_same_seed_trains_the_same_target(settings):
    weights = []
    for name in ("one", "two"):
        config = settings(name=name)
        ostlight.select(config)
        weights.append((ostlight.train(config) / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_a_loss_that_blows_up_stops_training_with_the_samples_named(settings):
    ostlight.select(settings())
    with pytest.raises(DivergedError, match=r"at step \d+, on samples pool-\d+"):
        ostlight.train(settings(), "target.training.lr=1e30", "target.training.clip=null", "target.training.steps=8")


def test_the_target_may_be_trained_in_a_precision_of_its_own(settings):
    scores = ostlight.select(settings()).folder.scores
    written = {part: part.stat().st_mtime_ns for part in scores.iterdir()}
    first = ostlight.train(settings())
    assert ostlight.train(settings(), "target.precision=32-true") == first, "what it is anyway: the same target"
    other = ostlight.train(settings(), "target.precision=64-true")
    assert other != first
    ostlight.select(settings(), "target.precision=64-true")
    assert {part: part.stat().st_mtime_ns for part in scores.iterdir()} == written, "the scores stay"
    one, two = (AutoModelForImageTextToText.from_pretrained(folder).state_dict() for folder in (first, other))
    assert any(not torch.equal(one[name], two[name]) for name in one), "float64 rounds otherwise"
    assert all(torch.allclose(one[name].double(), two[name].double(), atol=1e-4) for name in one)


def test_a_target_of_another_selection_is_not_evaluated_under_the_name_of_this_one(settings, logged):
    folder = ostlight.select(settings()).folder.path
    target = ostlight.train(settings())
    ostlight.select(settings(), "budget.count=5")
    with pytest.raises(DataError, match=rf"{target.name}, was trained with another selection .*target\.name="):
        ostlight.evaluate(settings(), "budget.count=5")
    ostlight.evaluate(settings(), "budget.count=5", f"target.name={target.name}")
    row = json.loads((folder / "accuracy.jsonl").read_text().splitlines()[0])
    assert (row["target"], row["budget"], row["seed"]) == (target.name, None, None)
    ostlight.select(settings())
    ostlight.evaluate(settings(), "target.training.lr=0.5")
    assert f"the only target, {target.name}, was trained with other settings" in logged()
    with pytest.raises(DataError, match="was trained with another seed"):
        ostlight.evaluate(settings(), "seed=7")


@pytest.mark.parametrize("options", [{"selection": "filter"}, {"selection": "sample"}])
def test_an_order_by_utility_is_by_utility_however_the_subset_was_drawn(settings, monkeypatch, options: dict):
    given: list[list[int]] = []
    plain = train.fit

    def watched(model, data, *rest):
        given.append(data.positions.tolist())
        return plain(model, data, *rest)

    monkeypatch.setattr(train, "fit", watched)
    ost = {"name": "ost", "options": {"step": "sgd", "step_size": 0.05, "estimator": "first_order", **options}}
    config = settings(selector=ost, budget={"count": 12})
    selection = ostlight.select(config)
    ostlight.train(config, "target.training.order=utility_descending")
    scores = ostlight.Scores.read(selection.folder.scores)
    by_position = dict(zip(scores.positions.tolist(), scores.score.tolist(), strict=True))
    assert sorted(given[0]) == sorted(selection.kept.tolist())
    assert [by_position[p] for p in given[0]] == sorted((by_position[p] for p in given[0]), reverse=True)


def test_an_earlier_warm_up_is_nothing_to_a_proxy_that_is_not_warmed_up(settings):
    warm = {"fraction": 0.5, "training": {"steps": 2, "batch_size": 4, "lr": 1e-3}}
    ost = {"name": "ost", "options": {"step": "adam", "estimator": "first_order", "selection": "top"}}
    config = load_config(settings(selector=ost))
    pool = open_pool(config.pool, "pool")
    warmed = load_config(settings(selector=ost, proxy=settings()["proxy"] | {"warmup": warm}))
    with RunFolder.owned(warmed, "select") as folder:
        warm_up_proxy(warmed, folder, pool, read_anchors(warmed))  # and broken off
    found, fresh = ostlight.select(config), ostlight.select(config, "name=fresh")
    notes = [read_notes(one.folder.path / "selector")["step_size"] for one in (found, fresh)]
    assert notes[0] == notes[1]
    assert found.kept.tolist() == fresh.kept.tolist()

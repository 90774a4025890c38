"""A run that failed or was refused leaves nothing that a corrected one trips over."""

from __future__ import annotations

import json

import pytest

import ostlight
from ostlight.errors import ConfigError, DataError, OstlightError, RunChangedError

OST = {"name": "ost", "options": {"selection": "top"}}


def corrected(settings, wrong: dict, right: dict) -> None:
    """The wrong run ends with an error, and the right one gives what it gives in a folder of its own."""
    with pytest.raises(OstlightError) as refused:
        ostlight.select(settings(name="one", **wrong))
    assert not isinstance(refused.value, RunChangedError)
    after = ostlight.select(settings(name="one", **right))
    alone = ostlight.select(settings(name="two", **right))
    assert after.kept.tolist() == alone.kept.tolist()
    notes = [json.loads((s.folder.path / "selector" / "notes.json").read_text()) for s in (after, alone)]
    assert notes[0] == notes[1]


def test_anchors_that_were_missing(settings):
    corrected(settings, {"selector": OST, "anchors": {}}, {"selector": OST})


@pytest.mark.slow
def test_a_step_size_that_diverged(settings):
    steep = {"name": "ost", "options": {"selection": "top", "step_size": 1e30}}
    corrected(settings, {"selector": steep}, {"selector": OST})


@pytest.mark.slow
def test_a_length_that_no_sample_fits(settings):
    base = settings()["proxy"]
    corrected(settings, {"selector": OST, "proxy": base | {"max_length": 4}}, {"selector": OST})


@pytest.mark.slow
def test_a_learning_rate_that_ruined_the_warm_up(settings, logged):
    """The warm-up went through, and the scoring did not."""
    proxy = settings()["proxy"] | {"warmup": {"fraction": 0.5, "training": {"epochs": 1, "lr": 1e-3}}}
    other = settings()["proxy"] | {"warmup": {"fraction": 0.5, "training": {"epochs": 1, "lr": 1e-4}}}
    broken = {"name": "ost", "options": {"selection": "top", "step_size": 1e30}}
    corrected(settings, {"selector": broken, "proxy": proxy}, {"selector": OST, "proxy": other})
    assert "warmed up again" in logged()


def test_what_was_scored_is_protected(settings):
    folder = ostlight.select(settings(selector=OST)).folder
    before = {part.name: part.read_bytes() for part in folder.scores.iterdir()}
    with pytest.raises(
        RunChangedError, match=r"Undo the change, or give this run another name \(name=\.\.\.\)"
    ) as refused:
        ostlight.select(settings(selector=OST | {"options": {"selection": "top", "parameters": "all"}}))
    assert refused.value.changed == ["selector.options"]
    assert {part.name: part.read_bytes() for part in folder.scores.iterdir()} == before
    ostlight.select(settings(selector=OST))


def test_what_only_adds_goes_on(settings):
    """Another budget, another strategy: the scores are taken as they are."""
    first = ostlight.select(settings(selector=OST))
    calls = len(first.folder.cost_log.read())
    for strategy in ("filter", "sample"):
        other = {"name": "ost", "options": {"selection": strategy, "estimator": "projected", "step": "sgd"}}
        ostlight.select(settings(selector=other), "budget.fraction=0.25")
    stages = [entry.stage for entry in first.folder.cost_log.read()[calls:]]
    assert "score" not in stages


def test_a_training_that_failed_leaves_no_claim(settings):
    ostlight.select(settings())
    with pytest.raises(DataError):
        ostlight.train(settings(), "target.name=a", "target.training.lr=1e30", "target.training.clip=null")
    assert ostlight.train(settings(), "target.name=a").name == "a"


def test_names_are_checked(settings):
    with pytest.raises(ConfigError, match="target.name must be a plain folder name"):
        ostlight.train(settings(), "target.name=..")


@pytest.mark.parametrize("content", [b"", b'{"scores": {"pool"', b"\xff\xfe noise", b"[1]", b'{"scores": 3}'])
def test_a_damaged_manifest_is_named_with_the_cure(settings, content: bytes):
    folder = ostlight.select(settings()).folder.path
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(
        DataError, match=r"manifest\.json is damaged .*remove that folder, or give this run another name"
    ):
        ostlight.select(settings())


@pytest.mark.parametrize("damage", [b"", b"noise" * 40, None], ids=["empty", "noise", "half"])
def test_a_damaged_score_file_is_scored_again(settings, damage, logged):
    first = ostlight.select(settings(selector=OST))
    file = sorted(first.folder.scores.iterdir())[1]
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    again = ostlight.select(settings(selector=OST))
    assert "1 files are damaged (part-000001.parquet)" in logged()
    assert again.kept.tolist() == first.kept.tolist()
    assert file.read_bytes() == whole


def test_records_of_a_score_file_with_another_byte_are_scored_again(settings):
    folder = ostlight.select(settings(selector=OST)).folder
    file = sorted(folder.scores.iterdir())[1]
    whole = file.read_bytes()
    file.write_bytes(whole[:400] + bytes([whole[400] ^ 1]) + whole[401:])
    with pytest.raises(DataError) as caught:
        ostlight.report(folder.path)
    assert caught.value.path == file
    ostlight.select(settings(selector=OST), "budget.fraction=0.3")
    assert file.read_bytes() == whole

"""Pools of real images, prepared from folders made here in the layout of the real ones."""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import _easy_vqa
import numpy as np
import prepare_real_pools
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from _easy_vqa import (
    ANSWERS,
    COLOURS,
    SHAPES,
    SIMILAR_COLOURS,
    SOURCES,
    EasyVqa,
    cut_easy_vqa,
    image_of,
    question_type_of,
)
from _human_noise import cut_human_noise
from PIL import Image

import ostlight
from ostlight.config import load_config

ROOT = Path(__file__).parents[2]
MINI = EasyVqa(pool=80, anchors=4, dev=8, test=16, base=16, defects={"negation": 0.1, "confused": 0.05, "empty": 0.05})


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like easy-VQA: 400 images to train on and 60 to test on, every question_type of question about each."""
    folder, rng = tmp_path_factory.mktemp("easy_vqa"), np.random.default_rng(0)
    for split, count in (("train", 400), ("test", 60)):
        (folder / split).mkdir()
        rows = []
        for i in range(count):
            image, shape, colour = f"{split}/{i}.png", SHAPES[i % 3], COLOURS[i % 8]
            (folder / image).write_bytes(png(rng.integers(0, 256, size=(64, 64, 3))))
            other = COLOURS[(i + 1) % 8]
            for question, answer in (
                ("what shape is present?", shape),
                (f"what color is the {shape}?", colour),
                (f"is there a {colour} shape?", "yes"),
                (f"is there a {other} shape in the image?", "no"),
                (f"is there not a {other} shape?", "yes"),
                (f"is no {colour} shape present?", "no"),
            ):
                turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
                rows.append({"id": f"{split}-{len(rows):06d}", "image": image, "conversations": turns})
        (folder / f"{split}.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten classes, noisy images; two of five pool answers are wrong."""
    folder, rng = tmp_path_factory.mktemp("human_noise"), np.random.default_rng(0)
    truth = ["id,pool_label,true_label,wrong"]
    for part, count in (("pool", 60), ("anchors", 10), ("dev", 10), ("test", 10)):
        rows = []
        for i in range(count):
            name, wrong = f"{part}-{i}", part == "pool" and i % 5 < 2
            label, question = f"class{'abcdefghij'[(i + wrong) % 10]}", "What is shown? Answer with one word."
            turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": label}]
            image = {"bytes": png(rng.integers(0, 256, size=(32, 32, 3))), "path": None}
            rows.append({"id": name, "image": image, "conversations": turns, "annotator": "human"})
            truth += [f"{name},{label},class{'abcdefghij'[i % 10]},{int(wrong)}"] if part == "pool" else []
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{part}.parquet")
    (folder / "truth.csv").write_text("\n".join(truth) + "\n")
    return folder


def test_no_picture_is_in_two_parts(shapes: Path):
    parts = cut_easy_vqa(shapes, MINI).parts
    assert {part: len(records) for part, records in parts.items()} == {
        "pool": 80, "anchors": 4, "dev": 8, "test": 16, "base": 16
    }  # fmt: skip
    images = {part: {image_of(record) for record in records} for part, records in parts.items()}
    assert sum(map(len, images.values())) == len(set().union(*images.values()))
    assert all(record.id.startswith("test") for record in parts["test"])


def test_a_picture_of_the_test_is_in_no_other_part(shapes: Path, tmp_path: Path):
    records = _easy_vqa.read(shapes, "train")
    taken = {image_of(record) for record in records[:600]}
    by_part = _easy_vqa.split_by_image(records, taken, 0)
    assert sum(map(len, by_part.values())) == 1800
    assert not taken & {image_of(record) for part in by_part.values() for record in part}


def test_question_types_and_their_answers_are_in_equal_numbers(shapes: Path):
    parts = cut_easy_vqa(shapes, replace(MINI, defects={})).parts
    assert Counter(record.tags["question_type"] for record in parts["pool"]) == dict.fromkeys(ANSWERS, 20)
    answer = Counter(
        record.answer for record in parts["pool"] if record.tags["question_type"] in ("presence", "absence")
    )
    assert answer == {"yes": 20, "no": 20}
    assert {record.tags["question_type"] for record in parts["base"]} == set(_easy_vqa.BASE_QUESTION_TYPES)


@pytest.mark.parametrize(
    ("question", "answer", "question_type"),
    [
        ("what is the blue shape?", "circle", "shape"),
        ("what is the color of the circle?", "teal", "colour"),
        ("does the image contain a circle?", "no", "presence"),
        ("does the image not contain a circle?", "no", "absence"),
        ("is no red shape present?", "yes", "absence"),
    ],
)
def test_the_type_of_a_question(question: str, answer: str, question_type: str):
    assert question_type_of(question, answer) == question_type


def test_the_truth_is_what_was_put_in(shapes: Path):
    clean = cut_easy_vqa(shapes, replace(MINI, defects={}))
    rates = {"negation": 0.1, "confused": 0.05, "wrong": 0.1, "other_picture": 0.1, "empty": 0.05}
    corrupted = cut_easy_vqa(shapes, replace(MINI, defects=rates))
    assert set(clean.defects) == {"clean"}
    assert Counter(corrupted.defects) == {
        "negation": 8, "confused": 4, "wrong": 8, "other_picture": 8, "empty": 4, "clean": 48
    }  # fmt: skip
    for before, after, defect in zip(clean.parts["pool"], corrupted.parts["pool"], corrupted.defects, strict=True):
        assert (before.id, before.image, before.question) == (after.id, after.image, after.question)
        assert (before.answer == after.answer) == (defect == "clean")
        if defect == "negation":
            assert (after.tags["question_type"], {before.answer, after.answer}) == ("absence", {"yes", "no"})
        elif defect == "confused":
            assert after.answer == SIMILAR_COLOURS[before.answer]
        elif defect in ("wrong", "other_picture"):
            assert after.answer in ANSWERS[after.tags["question_type"]]
        makers = [source for source, made in SOURCES.items() if defect in made]
        assert after.tags["source"] in (makers or SOURCES)
    for part in ("anchors", "dev", "test", "base"):
        assert clean.parts[part] == corrupted.parts[part]


def test_people_are_taken_at_their_word(photographs: Path, tmp_path: Path):
    cut = cut_human_noise(photographs)
    assert cut.defects == ["wrong" if i % 5 < 2 else "clean" for i in range(60)]
    assert cut.parts["base"][:10] == cut.parts["anchors"]
    assert all(record in cut.parts["pool"] for record in cut.parts["base"][10:])
    assert len(cut.parts["base"]) == 10 + 3
    cut.write(tmp_path)
    truth = pq.read_table(tmp_path / "defect_labels.parquet").to_pydict()
    assert (truth["id"][0], truth["defect"][0], truth["defect"][2]) == ("pool-0", "wrong", "clean")
    first = ostlight.Pool.open(tmp_path / "pool.parquet")[0]
    assert (first.answer, first.tags["label"]) == ("classb", "classb")
    assert first.images[0].open().size == (32, 32)


@pytest.mark.parametrize(("pool", "missing"), [("easy_vqa", "train.json"), ("human_noise", "pool.parquet")])
def test_a_missing_folder_is_answered_in_one_line(pool: str, missing: str, tmp_path: Path):
    with pytest.raises(SystemExit, match=rf"none is not the folder of .*{missing}.* missing; .* --data FOLDER") as said:
        prepare_real_pools.main([pool, "--data", str(tmp_path / "none"), "--out", str(tmp_path / "out")])
    assert "\n" not in str(said.value)
    assert not (tmp_path / "out").exists()


def test_a_missing_picture_is_named(shapes: Path, tmp_path: Path):
    (tmp_path / "test.json").write_text("[]")
    (tmp_path / "train.json").write_text(json.dumps(json.loads((shapes / "train.json").read_text())[:1]))
    with pytest.raises(SystemExit, match=r"train/0\.png missing"):
        cut_easy_vqa(tmp_path, MINI)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"defects": {"wronk": 0.1}}, "no defect is called 'wronk'; there are negation, confused"),
        ({"defects": {"wrong": 1.5}}, "a rate is a number from 0 to 1; got wrong=1.5"),
        ({"defects": {"wrong": 0.6, "empty": 0.6}}, "the rates sum to 1.2; they may not exceed 1"),
        ({"defects": {"negation": 0.5}}, "40 records asked for negation, 20 can have it; lower the rate"),
        ({"pool": 4000}, "pool: 334 shape questions with the answer circle asked for, its images have"),
    ],
)
def test_what_cannot_be_met_is_told(shapes: Path, changed: dict, said: str):
    with pytest.raises(SystemExit, match=said):
        cut_easy_vqa(shapes, replace(MINI, **changed))


@pytest.mark.parametrize("name", ["easy_vqa", "human_noise"])
def test_the_configuration_names_what_the_script_writes(name: str):
    config = load_config(ROOT / "configs" / "benchmark" / f"{name}.yaml")
    assert config.benchmark is not None
    home = f"runs/pools/{name}/"
    for part in ("pool", "anchors", "dev", "test"):
        assert getattr(config, part).path == f"{home}{part}.parquet"
    assert (config.proxy.path, config.target.path) == (f"{home}proxy", f"{home}target")
    assert config.benchmark.defect_labels == f"{home}defect_labels.parquet"
    assert {"proxy", "target"} == set(prepare_real_pools.RECIPES[name].sizes)


def prepared(name: str, data: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the script writes, where the configuration looks for it."""
    monkeypatch.chdir(home)
    monkeypatch.setattr(prepare_real_pools, "cut_easy_vqa", lambda data, _: cut_easy_vqa(data, MINI))
    prepare_real_pools.main([name, "--data", str(data), "--steps", "2"])


@pytest.mark.slow
def test_the_same_seed_prepares_the_same(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    written = []
    for home in (tmp_path / "a", tmp_path / "b"):
        home.mkdir()
        prepared("human_noise", photographs, home, monkeypatch)
        files = sorted(p for p in home.rglob("*") if p.is_file() and p.name != "bases.json")
        written.append({p.relative_to(home): p.read_bytes() for p in files})
    assert written[0] == written[1]
    assert "runs/pools/human_noise" in capsys.readouterr().out


@pytest.mark.slow  # a base, a warm-up and six trainings: 20 s
@pytest.mark.parametrize("name", ["easy_vqa", "human_noise"])
def test_the_whole_benchmark_runs_on_a_miniature(
    name: str, shapes: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    prepared(name, shapes if name == "easy_vqa" else photographs, tmp_path, monkeypatch)
    config = asdict(load_config(ROOT / "configs" / "benchmark" / f"{name}.yaml"))
    section = config["benchmark"]
    section |= {"seeds": [0], "workers": 1, "budgets": section["budgets"][-1:]}
    for choice in section["selectors"]:
        if choice["options"].get("selection") == "top":
            choice["options"] |= {"rank": 4}  # a few anchors carry no more directions
        if choice["name"] == "best_of":
            few = {"name": "ost", "options": {"selection": "top", "rank": 4}}
            choice["options"] |= {"steps": 2, "candidates": [few, {"name": "random"}, {"name": "loss"}]}
    small = ("target.training.steps=2", "proxy.warmup.training.epochs=0.5", "compute.progress=false")
    lines = ostlight.benchmark(config, *small)
    named = [choice.get("label") or choice["name"] for choice in section["selectors"]]
    assert [line.label for line in lines] == ["base", "oracle", *named]
    assert {"random", "loss", "ost", "top"} <= set(named)
    assert all(line.defect_share is not None for line in lines[1:])

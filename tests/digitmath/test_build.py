from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ostlight.config.digitmath import DEFECTS, TASKS, default_defects
from ostlight.digitmath import DigitMath, Files, build
from ostlight.digitmath.digits import split
from ostlight.errors import ConfigError


def test_same_configuration_same_bytes_and_another_seed_another_pool(config: DigitMath, files: Files, tmp_path: Path):
    again, other = build(config, tmp_path / "again"), build(replace(config, seed=1), tmp_path / "other")
    for name in ("pool", "anchors", "dev", "test", "defect_labels"):
        assert getattr(again, name).read_bytes() == getattr(files, name).read_bytes(), name
        assert getattr(other, name).read_bytes() != getattr(files, name).read_bytes(), name


def test_no_digit_image_is_shared_between_parts(parts):
    shown = {name: {image for row in rows for image in row.images} for name, rows in parts.items()}
    shown["pretraining"] = set(split()["pretraining"])
    for first in shown:
        for second in shown:
            assert first == second or not shown[first] & shown[second], (first, second)


def test_the_split_uses_every_image_once_and_keeps_the_digits_balanced():
    everything = [index for members in split().values() for index in members]
    assert sorted(everything) == list(range(1797))
    assert min(len(members) for members in split().values()) > 130


def test_columns_are_llava_style_and_say_nothing_of_the_defect(files: Files):
    schema = pq.read_schema(files.pool)
    assert schema.names == ["id", "image", "conversations", "task"]
    assert schema.field("image").type == pa.struct({"bytes": pa.binary(), "path": pa.string()})
    content = files.pool.read_bytes()
    assert not any(name.encode() in content for name in DEFECTS)
    assert pq.read_schema(files.defect_labels).names == ["id", "defect"]


def test_place_in_the_pool_does_not_betray_the_defect(config: DigitMath, defect_of: dict[str, str]):
    assert list(defect_of) == [f"pool-{place:05d}" for place in range(config.pool)]
    flawed = [place for place, defect in enumerate(defect_of.values()) if defect != "clean"]
    assert sum(flawed) / len(flawed) == pytest.approx(config.pool / 2, rel=0.1)


def test_sizes_rates_and_strata(config: DigitMath, parts, defect_of: dict[str, str]):
    assert {name: len(rows) for name, rows in parts.items()} == {"pool": 700, "anchors": 100, "dev": 70, "test": 140}
    expected = {name: round(rate * config.pool) for name, rate in default_defects().items()}
    found = Counter(defect_of.values())
    assert found.pop("clean") == config.pool - sum(expected.values())
    assert found == expected
    for rows in parts.values():
        per_task = Counter(row.task for row in rows)
        assert set(per_task) == set(TASKS)
        assert max(per_task.values()) - min(per_task.values()) <= 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pool": 0}, ["pool must be", "at least 1; got 0"]),
        ({"test": -3}, ["test must be", "got -3"]),
        ({"anchors": 1.5}, ["anchors must be a whole number", "got 1.5"]),
        ({"defects": {"blurred": 0.1}}, ["defects.blurred", *DEFECTS]),
        ({"defects": {"empty": 1.2}}, ["defects.empty must be", "at most 1; got 1.2"]),
        ({"defects": {"empty": 0.6, "truncated": 0.6}}, ["sum to 1.2"]),
        ({"defects": {"arithmetic": 0.5}}, ["defects.arithmetic: 1250", "sum, difference, two_step", "0.428"]),
        ({"defects": {"near_duplicate": 1.0}}, ["no clean sample is left"]),
    ],
)
def test_impossible_configurations_are_refused_by_name(change, words, tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        build(replace(DigitMath(), **change), tmp_path)
    for word in words:
        assert word in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_all_problems_are_listed_at_once(tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        build(DigitMath(pool=0, dev=0, defects={"blurred": 0.1}), tmp_path)
    assert len(caught.value.problems) == 3


def test_a_pool_without_defects_is_clean(tmp_path: Path):
    files = build(DigitMath(pool=14, anchors=7, dev=7, test=7, defects={}), tmp_path)
    assert set(pq.read_table(files.defect_labels)["defect"].to_pylist()) == {"clean"}


def test_sources_tag_every_record_and_change_nothing_else(config: DigitMath, files: Files, tmp_path: Path):
    sources = {"careful": [], "careless": ["arithmetic"], "blind": ["hallucinated", "other_picture"]}
    tagged = build(replace(config, sources=sources), tmp_path)
    table = pq.read_table(tagged.pool)
    assert table.drop_columns(["source"]).equals(pq.read_table(files.pool))
    defects = pq.read_table(tagged.defect_labels)["defect"].to_pylist()
    made = Counter(zip(table["source"].to_pylist(), defects, strict=True))
    for source, own in sources.items():
        assert {d for s, d in made if s == source} & {"arithmetic", "hallucinated", "other_picture"} == set(own)
    assert {s for s, d in made if d == "clean"} == {s for s, d in made if d == "truncated"} == set(sources)
    assert files.anchors.read_bytes() == tagged.anchors.read_bytes()


def test_an_unlabelled_pool_asks_the_same_questions(config: DigitMath, files: Files, tmp_path: Path):
    bare = pq.read_table(build(replace(config, unlabelled=True), tmp_path).pool)
    whole = pq.read_table(files.pool)
    assert bare.drop_columns(["conversations"]).equals(whole.drop_columns(["conversations"]))
    assert bare["conversations"].to_pylist() == [turns[:1] for turns in whole["conversations"].to_pylist()]


def test_a_source_of_no_known_defect_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"sources.bad\[0\] must be one of arithmetic.*got 'sloth'"):
        build(DigitMath(pool=40, sources={"bad": ["sloth"]}), tmp_path)


def test_wrong_anchors_are_as_many_as_asked_for_and_the_rest_is_untouched(tmp_path: Path):
    def answers(name: str, **rates: float) -> list[str]:
        config = DigitMath(pool=20, anchors=100, dev=7, test=7, anchor_defects=rates)
        rows = pq.read_table(build(config, tmp_path / name).anchors).to_pylist()
        return [row["conversations"][1]["value"] for row in rows]

    right, some = answers("right"), answers("some", arithmetic=0.05, hallucinated=0.05)
    assert 8 <= sum(a != b for a, b in zip(right, some, strict=True)) <= 10  # doubling may come out right by chance
    with pytest.raises(ConfigError, match="anchor_defects.arithmetic: 90 samples asked for"):
        build(DigitMath(anchor_defects={"arithmetic": 0.9}), tmp_path / "none")

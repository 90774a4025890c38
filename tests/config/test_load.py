"""Configuration: every problem at once, the nearest name on a miss, and a file that replays."""

from __future__ import annotations

from pathlib import Path

import pytest

from ostlight.config import load_config
from ostlight.config.load import to_plain
from ostlight.errors import ConfigError

POOL = {"pool": {"path": "pool.jsonl"}}


def problems(*overrides: str, **sections: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(POOL | sections, *overrides)
    return caught.value.problems


def test_all_problems_are_listed_at_once():
    found = problems(selector={"nam": "ost"}, compute={"device": 1}, nonsense=3)
    assert len(found) == 3
    assert any("'selector.nam'; did you mean 'name'? valid here: name, options, label" in p for p in found)
    assert any("'compute.device'; did you mean 'devices'?" in p for p in found)
    assert any("unknown key 'nonsense'" in p for p in found)


def test_unknown_keys_do_not_hide_wrong_types():
    found = problems(selector={"nam": "ost"}, seed="many")
    assert len(found) == 2


def test_wrong_types_say_what_is_taken_and_what_was_got():
    found = problems(seed="many", target={"training": {"lr": "fast", "steps": [1]}})
    assert "seed takes a whole number; got 'many' (str)" in found
    assert "target.training.lr takes a number; got 'fast' (str)" in found
    assert any(p.startswith("target.training.steps takes a whole number or null; got [1]") for p in found)


def test_values_out_of_range():
    found = problems(
        "budget.fraction=2", "proxy.warmup.fraction=1.1", "target.training.schedule=linear", "compute.devices=0"
    )
    assert len(found) == 4
    assert any("budget.fraction must be above 0 and at most 1 (0.2 keeps a fifth); got 2" in p for p in found)


def test_a_missing_pool_and_a_missing_file(tmp_path: Path):
    with pytest.raises(ConfigError, match="pool.path is missing"):
        load_config({})
    (tmp_path / "there.yaml").write_text("name: x")
    with pytest.raises(ConfigError, match=r"no such file; the folder holds: there.yaml"):
        load_config(tmp_path / "their.yaml")


def test_broken_yaml_names_the_line(tmp_path: Path):
    file = tmp_path / "broken.yaml"
    file.write_text("pool:\n  path: [a\nbudget: 3\n")
    with pytest.raises(ConfigError, match=r"broken.yaml.*\n.*not YAML.*line 3"):
        load_config(file)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"name: caf\xe9\n", r"no text in UTF-8 \(byte 9\); save it as UTF-8"),
        (b"", "it holds nothing"),
        (b"- a\n", "it holds list"),
        (b"seed: 1\npool: {path: x}\nseed: 2\n", r"the key 'seed' is there twice; remove one \(line 3, column 1\)"),
    ],
)
def test_a_file_that_is_no_mapping_of_settings(tmp_path: Path, content: bytes, told: str):
    file = tmp_path / "odd.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=told):
        load_config(file)


def test_a_folder_names_the_files_in_it(tmp_path: Path):
    (tmp_path / "there.yaml").write_text("name: x")
    with pytest.raises(ConfigError, match=r"a folder, not a file; it holds: there.yaml"):
        load_config(tmp_path)


def test_overrides_are_yaml_and_win():
    config = load_config(POOL, "budget.count=30", "selector.name=full", "compute.workers=2", "anchors.group=task")
    assert (config.budget.count, config.selector.name, config.compute.workers) == (30, "full", 2)
    assert config.anchors.group == "task"


def test_an_override_takes_the_place_of_its_alternatives():
    config = load_config(POOL | {"budget": {"fraction": 0.5}}, "budget.count=30")
    assert (config.budget.fraction, config.budget.count) == (None, 30)
    config = load_config(POOL | {"budget": {"fraction": 0.5}}, "budget.count=30", "budget.fraction=null")
    assert (config.budget.fraction, config.budget.count) == (None, 30)


def test_an_override_without_value_is_refused():
    told = "an override is written key=value, as budget.fraction=0.5; got {!r}"
    assert [problems(text) for text in ("budget", "=3", "budget..count=3")] == [
        [told.format("budget")],
        [told.format("=3")],
        [told.format("budget..count=3")],
    ]
    assert problems("budget.count=") == ["budget.count has no value; write budget.count=null to unset it"]
    assert problems("budget.count=[1") == [
        "'budget.count=[1': the value is not YAML: while parsing a flow sequence, expected ',' or ']', but got "
        "'<stream end>' (line 1, column 3)"
    ]


def test_plain_data_reads_back():
    config = load_config(POOL | {"benchmark": {"selectors": [{"name": "ost"}], "budgets": [{"count": 3}]}}, "seed=7")
    assert load_config(to_plain(config)) == config
    assert config.seed == 7


def test_interpolation():
    assert load_config({"pool": {"path": "${name}.jsonl"}, "name": "mine"}).pool.path == "mine.jsonl"


def test_benchmarks_need_distinct_labels():
    section = {"selectors": [{"name": "ost"}, {"name": "ost"}], "budgets": [{"fraction": 0.2}]}
    assert problems(benchmark=section) == ["two benchmark.selectors are called 'ost'; give one of them a `label`"]


def test_what_is_named_twice_in_a_benchmark_is_refused():
    section = {
        "selectors": [{"name": "ost"}, {"name": "loss", "label": "base"}],
        "budgets": [{"fraction": 0.2}, {"count": 20}, {}],
        "seeds": [0, 1, 0, 0],
        "protocols": ["equal_steps", "equal_steps"],
    }
    told = "benchmark.{} holds {} twice, and one result would be counted as two; remove one"
    assert problems(benchmark=section) == [
        "a benchmark.selector is called 'base', which is another row of the table; give it another `label`",
        told.format("seeds", 0),
        told.format("budgets", "20%"),
        told.format("protocols", "equal_steps"),
    ]


def test_equal_epochs_needs_epochs():
    section = {"selectors": [{"name": "ost"}], "budgets": [{}], "protocols": ["equal_epochs"]}
    assert problems("target.training.steps=7", benchmark=section) == [
        "benchmark.protocols: equal_epochs trains for the target's epochs, but target.training.steps=7 fixes the "
        "steps; set target.training.epochs instead, or drop equal_epochs"
    ]
    load_config(POOL | {"benchmark": section}, "target.training.epochs=2")


@pytest.mark.parametrize(
    "name",
    [
        "proxy.max_length", "target.max_length", "evaluation.max_new_tokens", "evaluation.batch_size",
        "compute.tokens_per_batch", "compute.shard_size", "compute.devices", "compute.num_nodes",
    ],
)  # fmt: skip
def test_what_is_counted_is_at_least_one(name: str):
    assert problems(f"{name}=0") == [f"{name} must be at least 1; got 0"]


def test_workers_that_read_may_be_none_but_not_fewer():
    load_config(POOL, "compute.workers=0")
    assert problems("compute.workers=-1") == ["compute.workers must be at least 0; got -1"]


def test_seeds_are_not_negative():
    assert problems("seed=-1") == ["seeds must be at least 0; got -1"]

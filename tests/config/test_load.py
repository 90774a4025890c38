"""Configuration: every problem at once, the nearest name on a miss, and a file that replays."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from ostlight.config import load_config
from ostlight.config.digitmath import DEFECTS
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


def test_wrong_types_name_the_allowed_values_and_the_value():
    found = problems(seed="many", target={"training": {"lr": "fast", "steps": [1]}})
    assert found == [
        "seed must be a whole number, at least 0; got 'many'",
        "target.training.steps must be a whole number, at least 1, or null; got [1]",
        "target.training.lr must be a number, above 0; got 'fast'",
    ]


@pytest.mark.parametrize("value", ['"3"', "1.5", "3.0", "true", "[3]", "{a: 3}", "0"])
def test_nothing_is_converted_silently(value: str):
    (problem,) = problems(f"budget.count={value}")
    assert problem.startswith("budget.count must be a whole number, at least 1, or null; got ")


def test_whole_numbers_and_exponents_without_a_point_are_numbers():
    training = load_config(POOL, "target.training.lr=2e-5", "target.training.epochs=2").target.training
    assert (training.lr, training.epochs) == (2e-5, 2.0)
    assert isinstance(training.epochs, float)


def test_a_number_for_a_text_is_to_be_quoted_in_a_file():
    assert problems(name=3) == ["name must be text; got 3; put it in quotes"]


@pytest.mark.parametrize("text", ["18448382", "2026-12-01", "1e5", "007", "true", "0x1F", "1.50"])
def test_an_override_of_a_text_is_kept_as_it_is_typed(text: str):
    config = load_config(POOL, f"name={text}", f"target.name={text}")
    assert (config.name, config.target.name) == (text, text)
    assert load_config(config).name == text
    assert load_config(POOL, f'name="{text}"').name == text
    assert load_config(POOL, "target.name=null").target.name is None


def test_an_override_of_a_mix_of_types_stays_what_yaml_reads():
    assert problems("pool.columns.question=3")
    assert problems("budget.count=true")
    assert load_config(POOL, "selector.options.depth=3").selector.options == {"depth": 3}


def test_values_out_of_bounds_and_unknown_choices_are_listed_together():
    assert problems(
        "budget.fraction=2",
        "proxy.warmup.fraction=1.1",
        "target.training.schedule=constat",
        "compute.devices=0",
        "target.dtype=float16",
    ) == [
        "proxy.warmup.fraction must be a number, at least 0 and at most 1; got 1.1",
        "target.dtype must be one of float32, bfloat16, float64; did you mean 'bfloat16'? got 'float16'",
        "target.training.schedule must be one of cosine, constant; did you mean 'constant'? got 'constat'",
        "budget.fraction must be a number, above 0 and at most 1, or null; got 2",
        "compute.devices must be a whole number, at least 1 and at most 1024; got 0",
    ]


def test_items_of_lists_and_mappings_are_named():
    benchmark = {"selectors": [{"name": "ost", "lable": "a"}], "budgets": [{"count": 0}, 5], "seeds": [0, -1]}
    digitmath = {"defects": {"emty": 0.1, "empty": 2}}
    assert problems(benchmark=benchmark, digitmath=digitmath) == [
        "unknown key 'digitmath.defects.emty'; did you mean 'empty'? valid here: " + ", ".join(DEFECTS),
        "digitmath.defects.empty must be a number, at least 0 and at most 1; got 2",
        "unknown key 'benchmark.selectors[0].lable'; did you mean 'label'? valid here: name, options, label",
        "benchmark.budgets[0].count must be a whole number, at least 1, or null; got 0",
        "benchmark.budgets[1] must be a mapping with fraction, count, tokens, threshold, stratify_by; got 5",
        "benchmark.seeds[1] must be a whole number, at least 0; got -1",
    ]


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
    ("content", "message"),
    [
        (b"name: caf\xe9\n", r"not UTF-8 text \(byte 9\); save it as UTF-8"),
        (b"", "it holds nothing"),
        (b"- a\n", "it holds list"),
        (b"seed: 1\npool: {path: x}\nseed: 2\n", r"the key 'seed' occurs twice; remove one \(line 3, column 1\)"),
    ],
)
def test_a_file_without_a_mapping_of_settings_is_refused(tmp_path: Path, content: bytes, message: str):
    file = tmp_path / "odd.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
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


@pytest.mark.parametrize("text", ["budget", "=3", "budget..count=3", "budget.count=", "budget.count=[1"])
def test_an_override_that_is_not_written_key_value_is_named(text: str):
    with pytest.raises(ConfigError) as caught:
        load_config(POOL, text)
    assert (len(caught.value.problems), caught.value.source) == (1, f"override {text}")


def test_overrides_may_be_mappings_and_lists():
    given = POOL | {"budget": {"fraction": 0.5, "stratify_by": "task"}, "selector": {"options": {"a": 1}}}
    expected = load_config(given, "budget.count=30", "selector.options.b=[1, x]", "anchors.path=a/b.json", "seed=3")
    nested = {"budget": {"count": 30}, "selector": {"options": {"b": [1, "x"]}}}
    rest = {"anchors.path": Path("a/b.json"), "seed": np.int64(3)}
    assert load_config(given, nested, rest) == expected
    assert load_config(given, nested, ["anchors.path=a/b.json", "seed=3"]) == expected
    assert expected.budget.stratify_by == "task"
    assert load_config(given, {"budget": {"count": 1}}, "budget.count=2").budget.count == 2
    assert load_config(given, {"budget.stratify_by": None}).budget.stratify_by is None
    assert load_config(given, {"name": "1e5", "folder": "yes: no"}).name == "1e5"


@pytest.mark.parametrize("override", [3, [3], {"seed": object()}, {"seed": {1, 2}}, None])
def test_an_override_of_another_type_is_refused(override):
    with pytest.raises(ConfigError) as caught:
        load_config(POOL, override)
    assert len(caught.value.problems) == 1


def test_a_problem_names_the_override_that_makes_it(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text("pool: {path: pool.jsonl}\n")

    def source(*overrides: str) -> str:
        with pytest.raises(ConfigError) as caught:
            load_config(file, *overrides)
        return caught.value.source

    for override in ("budget.fracton=0.5", "seed=many", "budget.fraction=7", "nonsense.a.b=1", "pool={pth: x}"):
        assert source("name=run", override) == f"override {override}"
    assert source("budget={fraction: 0.1, count: 3}") == "override budget={fraction: 0.1, count: 3}"
    assert source("seed=many", "budget.fracton=0.5") == "overrides"
    file.write_text("pool: {path: pool.jsonl}\nseed: many\n")
    assert source("name=run") == str(file)
    with pytest.raises(ConfigError) as caught:
        load_config(file, "budget.fracton=0.5")
    assert caught.value.source == str(file)
    assert ["override budget.fracton=0.5" in problem for problem in caught.value.problems] == [False, True]


def test_plain_data_reads_back():
    config = load_config(POOL | {"benchmark": {"selectors": [{"name": "ost"}], "budgets": [{"count": 3}]}}, "seed=7")
    assert load_config(asdict(config)) == config
    assert config.seed == 7


def test_interpolation():
    assert load_config({"pool": {"path": "${name}.jsonl"}, "name": "mine"}).pool.path == "mine.jsonl"


def test_benchmarks_need_distinct_labels():
    section = {"selectors": [{"name": "ost"}, {"name": "ost"}], "budgets": [{"fraction": 0.2}]}
    (problem,) = problems(benchmark=section)
    assert problem.startswith("benchmark.selectors: ")
    assert "'ost'" in problem


def test_what_is_named_twice_in_a_benchmark_is_refused():
    section = {
        "selectors": [{"name": "ost"}, {"name": "loss", "label": "base"}],
        "budgets": [{"fraction": 0.2}, {"count": 20}, {}],
        "seeds": [0, 1, 0, 0],
        "protocols": ["equal_steps", "equal_steps"],
    }
    found = problems(benchmark=section)
    assert [problem.split()[0].rstrip(":") for problem in found] == [
        "benchmark.seeds",
        "benchmark.budgets",
        "benchmark.protocols",
        "benchmark.selectors",
    ]
    assert all(value in problem for value, problem in zip(("0", "20%", "equal_steps", "'base'"), found, strict=True))


def test_equal_epochs_needs_epochs():
    section = {"selectors": [{"name": "ost"}], "budgets": [{}], "protocols": ["equal_epochs"]}
    assert problems("target.training.steps=7", benchmark=section) == [
        "benchmark.protocols: equal_epochs needs epochs, but target.training.steps=7 fixes the steps; "
        "set target.training.epochs instead, or drop equal_epochs"
    ]
    load_config(POOL | {"benchmark": section}, "target.training.epochs=2")


def test_a_ray_cluster_needs_its_engine_and_decides_the_number_of_tasks():
    section = {"selectors": [{"name": "ost"}], "budgets": [{}], "workers": 2}
    assert [p.split()[0] for p in problems("compute.address=auto")] == ["compute.address"]
    assert [p.split("=")[0] for p in problems("compute.engine=ray", "compute.address=ray://h:1")] == ["compute.address"]
    (problem,) = problems("compute.engine=ray", benchmark=section)
    assert problem.startswith("benchmark.workers=2: ")
    load_config(POOL, "compute.engine=ray", "compute.address=auto")


def test_rules_over_several_fields_name_the_section():
    section = {"selectors": [{"name": "ost"}], "budgets": [{"count": 3, "tokens": 1}], "baseline": "best"}
    proxy = {"warmup": {"training": {"order": "annealed"}}}
    assert problems(name="a/b", proxy=proxy, benchmark=section) == [
        "name must be a plain folder name; got 'a/b'",
        "proxy.warmup.training.order must be shuffled: no sample has a score before the warm-up",
        "benchmark.baseline must be one of ost, base, oracle; got 'best'",
        "benchmark.budgets[0] takes one of fraction, count, tokens, threshold; got count=3, tokens=1",
    ]


def test_rules_are_checked_beside_wrong_values():
    found = problems("seed=many", "name=a/b", "digitmath.defects={empty: 1, truncated: 1}")
    assert [problem.split()[0] for problem in found] == ["seed", "name", "digitmath.defects:"]


def test_problems_of_variants_name_the_variant():
    variants = [
        {"label": "wide", "overrides": ["target.training.batch_size=0"]},
        {"label": "deep", "overrides": ["benchmark.variants=[]"]},
    ]
    section = {"selectors": [{"name": "ost"}], "budgets": [{}], "variants": variants}
    assert problems(benchmark=section) == [
        "benchmark.variants, 'wide': target.training.batch_size must be a whole number, at least 1; got 0",
        "benchmark.variants, 'deep': it may not change benchmark.variants",
    ]


def test_only_a_sections_own_alternatives_give_way_to_an_override():
    options = {"count": 8, "threshold": 0.5, "steps": 100}
    given = POOL | {"selector": {"options": options}}
    config = load_config(given, "selector.options.threshold=0.9", "selector.options.epochs=2")
    assert config.selector.options == options | {"threshold": 0.9, "epochs": 2}

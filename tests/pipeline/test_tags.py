"""A tag that no record has is answered before anything is scored."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

import ostlight
from ostlight.config.budget import Budget
from ostlight.config.schema import Data
from ostlight.errors import ConfigError, DataError, SelectorError
from ostlight.pipeline.inputs import open_pool
from ostlight.pipeline.tags import READ_FIRST, refuse_missing_tags
from ostlight.selection.registry import create


def problems_of(call: Any) -> list[str]:
    with pytest.raises(ConfigError) as error:
        call()
    return error.value.problems


def test_an_unknown_tag_is_refused_before_any_work(settings, tmp_path: Path):
    config = settings(selector={"name": "loss"}, budget={"fraction": 0.5, "stratify_by": "taks"})
    (problem,) = problems_of(lambda: ostlight.select(config))
    assert problem.startswith("budget.stratify_by is 'taks'")
    assert "did you mean 'task'?" in problem
    assert "gradients.cluster" in problem
    assert not (tmp_path / "runs" / "run" / "scores").exists()
    assert not (tmp_path / "runs" / "run" / "proxy").exists()


@pytest.mark.parametrize(
    ("name", "options", "setting"),
    [
        ("presel", {"task": "skill"}, "selector.options.task"),
        (
            "combine",
            {"of": [{"name": "length"}, {"name": "presel", "options": {"task": "skill"}}]},
            "selector.options.of[1].options.task",
        ),
        (
            "best_of",
            {"candidates": [{"name": "presel", "options": {"task": "skill"}}, {"name": "random"}]},
            "selector.options.candidates[0].options.task",
        ),
    ],
)
def test_so_is_one_that_an_option_names(settings, tmp_path: Path, name: str, options: dict, setting: str):
    config = settings(selector={"name": name, "options": options})
    (problem,) = problems_of(lambda: ostlight.select(config))
    assert problem.startswith(f"{setting} is 'skill', a tag no record of the pool has")
    assert "gradients.cluster" not in problem
    assert not (tmp_path / "runs" / "run" / "dependencies").exists()


def test_a_benchmark_decides_it_for_all_budgets(settings):
    selectors, budgets = [{"name": "random"}], [{"count": 5}, {"count": 5, "stratify_by": "taks"}]
    config = settings(selector={"name": "random"}, benchmark={"selectors": selectors, "budgets": budgets})
    (problem,) = problems_of(lambda: ostlight.benchmark(config))
    assert problem.startswith("benchmark.budgets[1].stratify_by is 'taks'")


def test_anchors_of_one_group_split_no_budget(settings, digits, tmp_path: Path):
    config = settings(anchors={"path": str(digits.anchors)}, selector={"name": "loss"})
    with pytest.raises(DataError, match="all of one group"):
        ostlight.select(config, "budget.stratify_by=anchors.group")
    assert not (tmp_path / "runs" / "run" / "scores").exists()


def test_a_rare_tag_is_found_and_no_more_is_read_than_that_takes(tmp_path: Path, caplog):
    turns = [{"from": "human", "value": "1 + 1?"}, {"from": "gpt", "value": "2"}]
    rows = [{"id": str(k), "conversations": turns, "common": "x"} for k in range(2 * READ_FIRST + 1)]
    rows[-2]["rare"] = "y"
    (tmp_path / "pool.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pool, read = open_pool(Data(str(tmp_path / "pool.jsonl")), "pool"), []
    whole = pool.read
    pool.read = lambda positions: (read.append(k) or one for k, one in enumerate(whole(positions)))  # type: ignore[method-assign]
    selector = create("random")
    with caplog.at_level(logging.INFO, "ostlight"):
        refuse_missing_tags(pool, selector, {"budget": Budget(stratify_by="common")}, list)
    assert len(read) == 1
    assert not caplog.messages
    with caplog.at_level(logging.INFO, "ostlight"):
        refuse_missing_tags(pool, selector, {"budget": Budget(stratify_by="rare")}, list)
    assert "'rare'" in caplog.text


def test_a_pool_without_a_usable_record_is_left_to_the_run(tmp_path: Path):
    (tmp_path / "pool.jsonl").write_text(json.dumps({"conversations": [{"from": "gpt", "value": ""}]}))
    pool = open_pool(Data(str(tmp_path / "pool.jsonl"), format="sharegpt"), "pool")
    refuse_missing_tags(pool, create("random"), {"budget": Budget(stratify_by="task")}, list)


def test_clusters_of_gradients_that_the_estimator_does_not_store_are_refused_before_any_work(settings, tmp_path: Path):
    config = settings(selector={"name": "ost"}, budget={"fraction": 0.5, "stratify_by": "gradients.cluster"})
    with pytest.raises(SelectorError, match="the default estimator does not store; set selector.options.estimator=pro"):
        ostlight.select(config)
    assert not (tmp_path / "runs" / "run" / "proxy").exists()

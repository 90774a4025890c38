"""Two ranks select from a pool of images, text and broken records as one does, also where a rank has only text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from forks import run_script
from mixed_pool import mixed_run

import ostlight
from ostlight.selection.scores import read_score_table

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("few_samples_compared")]

SELECT = """
import sys
import ostlight
from forks import on_ranks
from ostlight_selectors import ost
ostlight.configure_logging()
ost.sample_count = lambda records: 4
sys.exit(not on_ranks(lambda: ostlight.select(sys.argv[1])))
"""
OST = {"step": "sgd", "estimator": "second_order", "probes": 2, "step_size": 0.05, "vector_storage": "split"}


@pytest.fixture
def selected(settings, tmp_path: Path):
    """Selects on one rank here, or on two elsewhere; returns the run folder."""
    config_of = mixed_run(settings, tmp_path)

    def select(name: str, ranks: int, selector: dict[str, Any]) -> Path:
        config = config_of(name, selector)
        # Shards of 16: the first is all images, the second all text, the third is broken.
        config["compute"] |= {"shard_size": 16, "precision": "64-true"}
        if ranks == 1:
            ostlight.select(config)
        else:
            config["compute"] |= {"devices": 2, "strategy": "ddp"}
            (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config))
            (tmp_path / "script.py").write_text(SELECT)
            ended = run_script(tmp_path / "script.py", tmp_path / f"{name}.yaml")
            assert ended.returncode == 0, ended.stdout
        return tmp_path / "runs" / name

    return select


def scores(run: Path) -> pa.Table:
    return read_score_table(run / "scores")


def test_warm_up_and_scores_are_those_of_one_rank(selected: Callable[..., Path]):
    one, two = (selected(f"ost-{ranks}", ranks, {"name": "ost", "options": OST}) for ranks in (1, 2))
    summaries = [json.loads((run / "proxy" / "warmup.json").read_text()) for run in (one, two)]
    assert [loss for _, loss in summaries[1]["losses"]] == pytest.approx(
        [loss for _, loss in summaries[0]["losses"]], rel=1e-9
    )
    tables = [scores(one), scores(two)]
    assert tables[0]["state"] == tables[1]["state"]
    assert tables[0]["state"].to_pylist() == ["ok"] * 32 + ["rejected"] * 8
    usable = [[score for score in table["score"].to_pylist() if score is not None] for table in tables]
    assert usable[1] == pytest.approx(usable[0], rel=1e-7)


def test_trials_are_those_of_one_rank(selected: Callable[..., Path]):
    candidates = [{"name": "random"}, {"name": "loss"}]
    selector = {"name": "best_of", "options": {"candidates": candidates, "steps": 3}}
    noted = []
    for ranks in (1, 2):
        run = selected(f"best-{ranks}", ranks, selector)
        last = (run / "cost_log.jsonl").read_text().splitlines()[-1]
        noted.append(json.loads(last)["more"]["noted"]["best_of"]["losses"])
    assert list(noted[0]) == list(noted[1])
    for name, losses in noted[0].items():
        assert noted[1][name] == pytest.approx(losses, rel=1e-7), name

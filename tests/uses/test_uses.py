"""Every use in `configs/uses` runs as its page says, here on a small pool, and does what it is for."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console

import ostlight
from ostlight.errors import DataError
from ostlight.reporting.sources import sources
from ostlight.selection.registry import register
from ostlight.selection.scores import Scores
from ostlight.selection.selector import Selector

pytestmark = pytest.mark.usefixtures("few_samples_compared")

ROOT = Path(__file__).parents[2]
USES = sorted((ROOT / "configs" / "uses").glob("*.yaml"))
SMALL = (
    "digitmath.pool=42",
    "digitmath.anchors=14",
    "digitmath.dev=14",
    "digitmath.test=14",
    "compute.accelerator=cpu",
    "compute.progress=false",
    "compute.logger=none",
    "proxy.warmup.fraction=0",
)


@pytest.fixture
def small(tmp_path: Path):
    """The overrides that make a use small, and more of them."""

    def overrides(*more: str) -> tuple[str, ...]:
        return (*SMALL, f"folder={tmp_path}", *more)

    return overrides


SHORT_TRIALS = (
    "selector.options.candidates=[{name: ost}, {name: random}]",
    "selector.options.steps=2",
)


def config(name: str) -> Path:
    return ROOT / "configs" / "uses" / f"{name}.yaml"


@pytest.mark.parametrize("path", USES, ids=lambda p: p.stem)
def test_every_use_is_among_the_recipes(path: Path):
    assert f"configs/uses/{path.name}" in (ROOT / "docs" / "how-to" / "use-cases.md").read_text()
    assert yaml.safe_load(path.read_text())["name"] == path.stem


@pytest.mark.slow
def test_filtering_keeps_what_helps_and_nothing_else(small):
    selection = ostlight.select(config("filter"), *small())
    scores = Scores.read(selection.folder.scores)
    assert 0 < len(selection.kept) < 42
    assert set(selection.kept) == set(scores.positions[scores.score > 0])


@pytest.mark.slow
def test_near_duplicates_go_first_and_then_what_harms(small):
    selection = ostlight.select(config("dedupe_filter"), *small("budget.count=6"))
    assert len(selection.kept) == 6
    scores = Scores.read(selection.folder.scores)
    reached = scores.column("scored_by")
    assert Counter(reached.tolist()) == {2: 38, 1: 4}, "nine tenths of 42"
    assert (reached[np.isin(scores.positions, selection.kept)] == 2).all()


@pytest.mark.slow
def test_a_curriculum_trains_on_the_ranking(small):
    overrides = small("selector.options.rank=8", "target.training.steps=3", "target.training.batch_size=4")
    ostlight.select(config("curriculum"), *overrides)
    orders = {}
    for order in ("utility_ascending", "utility_descending"):
        folder = ostlight.train(config("curriculum"), *overrides) if order == "utility_ascending" else None
        if folder is None:
            named = (*overrides, "name=other", f"target.training.order={order}")
            ostlight.select(config("curriculum"), *named)
            folder = ostlight.train(config("curriculum"), *named)
        orders[order] = (folder / "model.safetensors").read_bytes()
    assert orders["utility_ascending"] != orders["utility_descending"]


@pytest.mark.slow
def test_active_learning_names_questions_to_annotate(small):
    overrides = small(
        "budget.count=7",
        "selector.options.rank=8",
        "selector.options.answers=2",
        "selector.options.max_new_tokens=12",
    )
    selection = ostlight.select(config("active"), *overrides)
    assert not selection.rejected
    subset = pq.read_table(next(selection.folder.subset.glob("*.parquet")))
    assert subset.num_rows == 7
    assert all(len(turns) == 1 for turns in subset["conversations"].to_pylist()), "questions without answers"
    assert Counter(subset["task"].to_pylist()) == dict.fromkeys(set(subset["task"].to_pylist()), 1), "one of each task"
    assert len(Scores.read(selection.folder.scores).table["answers"][0]) >= 1


@pytest.mark.slow
def test_a_mix_keeps_a_share_of_every_task_and_knows_whom_a_sample_helps(small):
    selection = ostlight.select(config("multitask"), *small(*SHORT_TRIALS))
    scores = Scores.read(selection.folder.scores)
    kept = Counter(scores.tag("task")[selection.kept])
    assert set(kept) == set(scores.tag("task"))
    assert max(kept.values()) <= 2, "six of each task, a fifth of each"
    by_group = scores.column("utility_by_group")
    assert by_group.shape == (42, 7)
    assert np.isfinite(by_group).all()


@pytest.mark.slow
def test_sources_run_from_the_configuration(small, capsys):
    selection = ostlight.select(config("sources"), *small())
    matrix = ostlight.sources(selection.folder.path, "source")
    assert {row.value for row in matrix.rows} == {"careful", "sloppy", "blind", "bad_at_sums"}
    assert len(matrix.columns) == 8
    assert sum(row.count for row in matrix.rows) == 42
    assert "bad_at_sums" in capsys.readouterr().out


@register("tests-planted")
class Planted(Selector):
    """Hurts where the source is `bad`, helps where it is `good`, and neither where it is `mixed`."""

    scores_utility = True

    def score(self, batch):
        means = {"good": 2.0, "bad": -2.0, "mixed": 0.0}
        scores = [means[s.tags["source"]] + (1 if s.position % 2 else -1) for s in batch.samples]
        return {"score": scores}


def test_a_toxic_source_is_told_from_a_helpful_and_a_mixed_one(settings, tmp_path: Path):
    table = pq.read_table(settings()["pool"]["path"])
    kinds = ["good", "good", "bad", "bad", "mixed", "mixed"]
    tagged = table.append_column("source", [[kinds[k % 6] for k in range(len(table))]])
    pq.write_table(tagged, tmp_path / "pool.parquet")
    run = settings(pool={"path": str(tmp_path / "pool.parquet")}, selector={"name": "tests-planted"})
    folder = ostlight.select(run).folder.path
    console = Console(width=200, record=True)
    matrix = sources(folder, "source", console)
    assert {row.value: row.utilities[0].effect for row in matrix.rows} == {
        "good": "help",
        "bad": "hurt",
        "mixed": "unclear",
    }
    assert {row.value: row.utilities[0].mean for row in matrix.rows} == pytest.approx(
        {"good": 2, "bad": -2, "mixed": 0}
    )
    text = console.export_text()
    assert re.search(r"bad .* -2000\.00 ± .* hurt", text)
    with pytest.raises(DataError, match="tag 'sauce' .*: source"):
        sources(folder, "sauce", console)

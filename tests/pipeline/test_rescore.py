"""``ostlight rescore``: scores for other anchors from stored products, in a folder of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import ostlight
from ostlight.errors import ConfigError, DataError, RunChangedError, SelectorError
from ostlight.selection.notes import read_notes
from ostlight.selection.scores import Scores, read_score_table

pytestmark = pytest.mark.usefixtures("few_samples_compared")

PRODUCTS = {"step": "sgd", "step_size": 0.05, "parameters": "last:1", "random_products": 4096}
WARM = {"fraction": 1.0, "training": {"steps": 2, "batch_size": 8, "lr": 1e-4}}


@pytest.fixture
def run(settings, digits):
    """A scored run, and the override that names other anchors."""

    def make(**options: Any) -> tuple[dict[str, Any], str]:
        config = settings(selector={"name": "ost", "options": PRODUCTS | options})
        if options.get("step") == "adam":
            config["proxy"] = config["proxy"] | {"warmup": WARM}
        ostlight.select(config)
        return config, f"anchors.path={digits.dev}"

    return make


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_another_budget_for_other_anchors_needs_no_scoring(run):
    config, other = run()
    old = Path(config["folder"]) / "run"
    before = contents(old)
    new = ostlight.rescore(config, other, "anchors.group=task")
    assert contents(old) == before
    assert new == old.with_name("run-dev")
    selection = ostlight.select(new / "config.yaml", "budget.count=9", "selector.options.selection=filter")
    assert len(selection.kept) == 9
    assert [cost.stage for cost in selection.folder.cost_log.read()] == ["rescore", "select"]
    found, fresh = Scores.read(new / "scores"), ostlight.select(config, "name=fresh", other, "anchors.group=task")
    expected = Scores.read(fresh.folder.scores)
    assert found.ids == expected.ids
    for column in ("score", "alignment"):
        assert np.corrcoef(found.column(column), expected.column(column))[0, 1] > 0.95
    by_group, expected_by_group = (one.column("utility_by_group") for one in (found, expected))
    assert np.corrcoef(by_group.ravel(), expected_by_group.ravel())[0, 1] > 0.9
    assert (found.column("gradient_norm") == expected.column("gradient_norm")).all()
    signs = (found.column("alignment") > 0) == (expected.column("alignment") > 0)
    agreement = read_notes(new / "selector")["rescored"]
    assert agreement == {
        "samples": 48,
        "signs": pytest.approx(signs.mean()),
        "spearman": pytest.approx(agreement["spearman"]),
    }
    assert agreement["spearman"] > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("step", ["adam", "kfac", "ekfac"])
def test_preconditioned_steps(run, step: str):
    config, other = run(step=step, utility_by_anchor=True)
    new = ostlight.rescore(config, other)
    found = Scores.read(new / "scores")
    fresh = ostlight.select(config, "name=fresh", other)
    expected = Scores.read(fresh.folder.scores)
    assert np.corrcoef(found.score, expected.score)[0, 1] > 0.9
    assert found.column("utility_by_anchor").shape == (len(found), 14)


def test_products_are_told_and_not_read_with_the_scores(run, caplog):
    caplog.set_level("INFO", logger="ostlight")
    config, _ = run(random_products=24)
    assert "32 bytes a sample" in caplog.text
    folder = Path(config["folder"]) / "run" / "scores"
    stored = pq.read_table(next(folder.glob("*.parquet")))
    assert {len(row) for row in stored["_random_products"].to_pylist()} == {24}
    assert "_random_products" not in read_score_table(folder).column_names


def test_rejected_records_stay_rejected(settings, digits, tmp_path):
    table = pq.read_table(digits.pool)
    rows = table.to_pylist()
    rows[3]["conversations"] = []
    pool = tmp_path / "pool.parquet"
    pq.write_table(pa.Table.from_pylist(rows, table.schema), pool)
    config = settings(pool={"path": str(pool)}, selector={"name": "ost", "options": PRODUCTS | {"random_products": 64}})
    ostlight.select(config)
    new = ostlight.rescore(config, f"anchors.path={digits.dev}", name="other")
    assert new.name == "other"
    before, after = (read_score_table(new.with_name(name) / "scores") for name in ("run", "other"))
    for column in ("position", "id", "state", "reason", "detail", "tokens"):
        assert before[column].equals(after[column])
    assert after["state"].to_pylist().count("rejected") == 1
    assert after["score"].null_count == 1


def test_what_cannot_be_rescored_is_refused(run, digits):
    config, other = run(random_products=24)
    with pytest.raises(DataError, match="these very anchors"):
        ostlight.rescore(config)
    with pytest.raises(ConfigError, match="does not exist"):
        ostlight.rescore(config, "anchors.path=nowhere.jsonl")
    with pytest.raises(DataError, match="holds no scores"):
        ostlight.rescore(config, other, "name=unknown")
    with pytest.raises(RunChangedError) as changed:
        ostlight.rescore(config, other, "seed=3")
    assert changed.value.changed == ["seed"]
    new = ostlight.rescore(config, other)
    assert ostlight.rescore(config, other) == new
    with pytest.raises(DataError, match="rescored itself"):
        ostlight.rescore(new / "config.yaml", f"anchors.path={digits.test}")
    with pytest.raises(RunChangedError, match="holds something else"):
        ostlight.rescore(config, other, "anchors.group=task")


def test_a_rescoring_that_was_broken_off_is_not_completed_by_scoring(run):
    config, other = run(random_products=24)
    new = ostlight.rescore(config, other)
    (new / "scores" / "part-000001.parquet").unlink()
    with pytest.raises(DataError, match="ostlight rescore"):
        ostlight.select(new / "config.yaml")
    ostlight.rescore(config, other)
    assert len(ostlight.select(new / "config.yaml", "budget.count=5").kept) == 5


def test_scores_without_products_cannot_be_rescored(settings, digits):
    plain = settings(selector={"name": "ost", "options": {k: v for k, v in PRODUCTS.items() if k != "random_products"}})
    ostlight.select(plain)
    with pytest.raises(SelectorError, match="random_products"):
        ostlight.rescore(plain, f"anchors.path={digits.dev}")
    other = settings(name="loss", selector={"name": "loss"})
    ostlight.select(other)
    with pytest.raises(SelectorError, match="cannot score for other anchors"):
        ostlight.rescore(other, f"anchors.path={digits.dev}")


@pytest.mark.parametrize("estimator", ["exact", "finite_difference"])
def test_estimators_without_a_backward_pass_take_no_products(settings, estimator: str):
    options = PRODUCTS | {"estimator": estimator}
    with pytest.raises(ConfigError, match="random_products"):
        ostlight.select(settings(selector={"name": "ost", "options": options}))


def test_adam_by_the_anchors_moments_takes_no_products(settings):
    with pytest.raises(SelectorError, match="second moments"):
        ostlight.select(settings(selector={"name": "ost", "options": PRODUCTS | {"step": "adam"}}))


def test_images_that_are_others_than_those_scored_are_refused(settings, digits, tmp_path: Path):
    rows = pq.read_table(digits.pool).to_pylist()
    for k, row in enumerate(rows):
        (tmp_path / f"{k}.png").write_bytes(row["image"]["bytes"])
        row["image"] = f"{k}.png"
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = settings(selector={"name": "ost", "options": PRODUCTS}, pool={"path": str(tmp_path / "pool.jsonl")})
    ostlight.select(config)
    new = ostlight.rescore(config, f"anchors.path={digits.dev}")
    ostlight.select(new / "config.yaml")
    (tmp_path / "3.png").write_bytes((tmp_path / "4.png").read_bytes() + b" ")
    for again in (
        lambda: ostlight.select(new / "config.yaml"),
        lambda: ostlight.rescore(config, f"anchors.path={digits.dev}", name="again"),
        lambda: ostlight.train(new / "config.yaml"),
    ):
        with pytest.raises(RunChangedError, match=r"images \(1 of .*3\.png"):
            again()

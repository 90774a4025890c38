"""A selection from files to files: every record accounted for, resumed, refused when its inputs changed."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import ostlight
from ostlight.errors import ConfigError, DataError, RunChangedError, SelectorError
from ostlight.pipeline.fingerprint import of_values
from ostlight.pipeline.scoring.writer import audit
from ostlight.selection.registry import register
from ostlight.selection.scores import read_score_table
from ostlight.selection.selector import Selector

pytestmark = pytest.mark.usefixtures("few_samples_compared")


def table_of(folder: Path) -> list[dict[str, Any]]:
    return read_score_table(folder / "scores").to_pylist()


def broken_pool(digits: Any, path: Path) -> Path:
    """The pool with a corrupt picture, an empty answer and a double id among its records."""
    rows = pq.read_table(digits.pool).to_pylist()
    rows[3]["image"] = {"bytes": b"no picture", "path": None}
    rows[7]["conversations"][1]["value"] = ""
    rows[11]["id"] = rows[10]["id"]
    pq.write_table(pa.Table.from_pylist(rows, pq.read_schema(digits.pool)), path)
    return path


def test_kept_dropped_and_set_aside_are_all_there_is(settings, digits, tmp_path: Path, logged):
    pool = broken_pool(digits, tmp_path / "pool.parquet")
    config = settings(
        pool={"path": str(pool), "duplicates": "first"},
        selector={"name": "ost", "options": {"estimator": "first_order", "step_size": 0.1}},
    )
    selection = ostlight.select(config)
    assert selection.rejected == {"corrupt_image": 1, "duplicate_id": 1, "empty_answer": 1}
    assert len(selection.kept) + selection.dropped + 3 == 48
    rows = table_of(selection.folder.path)
    assert [r["position"] for r in rows] == list(range(48))
    assert all((r["score"] is None) == (r["state"] != "ok") for r in rows)
    quarantine = pq.read_table(selection.folder.quarantine).to_pylist()
    assert {(q["position"], q["reason"]) for q in quarantine} == {
        (3, "corrupt_image"),
        (7, "empty_answer"),
        (11, "duplicate_id"),
    }
    assert "48 records read = 9 kept (20%) + 36 dropped + 3 rejected" in logged()


def test_a_refused_run_leaves_what_the_folder_says_of_the_work_in_it(settings):
    config = ostlight.select(settings(), "budget.count=5").folder.path / "config.yaml"
    before = config.read_text()
    with pytest.raises(RunChangedError):
        ostlight.select(settings(selector={"name": "length"}))
    with pytest.raises(SelectorError, match="unknown selector"):
        ostlight.select(settings(selector={"name": "lenght"}))
    assert config.read_text() == before
    ostlight.select(settings(), "budget.count=6")
    assert "count: 6" in config.read_text()


def test_a_mistyped_selector_makes_no_run_folder(settings, tmp_path: Path):
    with pytest.raises(SelectorError, match="unknown selector"):
        ostlight.select(settings(selector={"name": "lenght"}))
    assert not (tmp_path / "runs").exists()


def test_the_subset_holds_the_kept_records(settings):
    selection = ostlight.select(settings(), "budget.count=5")
    subset = pq.read_table(next(selection.folder.subset.glob("*.parquet")))
    kept = pq.read_table(selection.folder.selection).filter(pa.compute.field("kept"))
    assert set(subset["id"].to_pylist()) == set(kept["id"].to_pylist())
    assert subset.num_rows == 5


def test_a_stopped_run_resumes_and_gives_the_same_table(settings):
    whole = ostlight.select(settings(name="whole"))
    expected = table_of(whole.folder.path)
    stopped = ostlight.select(settings(name="stopped")).folder
    (stopped.scores / "part-000001.parquet").unlink()
    mtime = (stopped.scores / "part-000000.parquet").stat().st_mtime_ns
    ostlight.select(settings(name="stopped"))
    assert table_of(stopped.path) == expected
    assert (stopped.scores / "part-000000.parquet").stat().st_mtime_ns == mtime
    assert [e.resumed for e in stopped.cost_log.read() if e.stage == "score"] == [False, True]


def test_a_new_budget_picks_anew_without_scoring(settings):
    first = ostlight.select(settings(), "budget.fraction=0.5")
    second = ostlight.select(settings(), "budget.fraction=0.25")
    assert (len(first.kept), len(second.kept)) == (24, 12)
    assert set(second.kept) <= set(first.kept)
    assert [e.stage for e in second.folder.cost_log.read()] == ["score", "select", "select"]


def test_changed_inputs_are_refused_by_name(settings, samples):
    ostlight.select(settings())
    with pytest.raises(RunChangedError) as refused:
        ostlight.select(settings(), "seed=5")
    assert refused.value.changed == ["seed"]
    assert "name=" in str(refused.value), "what to do"
    ost = {"name": "ost", "options": {"estimator": "first_order", "step_size": 0.1}}
    with pytest.raises(RunChangedError) as refused:
        ostlight.select(settings(selector=ost))
    assert "selector" in refused.value.changed


def test_a_changed_pool_is_refused(settings, digits, tmp_path: Path):
    pool = tmp_path / "pool.parquet"
    shutil.copy(digits.pool, pool)
    ostlight.select(settings(pool={"path": str(pool)}))
    broken_pool(digits, pool)
    with pytest.raises(RunChangedError) as refused:
        ostlight.select(settings(pool={"path": str(pool)}))
    assert refused.value.changed == ["pool"]


def test_an_audit_finds_missing_and_double_rows(settings):
    folder = ostlight.select(settings()).folder.scores
    assert audit(folder, 48) == f"audit: each of the 48 records has exactly one row in {folder}"
    shutil.copy(folder / "part-000000.parquet", folder / "part-000009.parquet")
    with pytest.raises(DataError, match="0 of 48 records have no row .* 20 have several"):
        audit(folder, 48)
    (folder / "part-000009.parquet").unlink()
    (folder / "part-000001.parquet").unlink()
    with pytest.raises(DataError, match=r"20 of 48 records have no row \(first: \[20, 21, 22, 23, 24\]\)"):
        audit(folder, 48)


def test_anchors_in_the_pool_are_reported_with_ids(settings, digits, logged):
    ostlight.select(settings(anchors={"path": str(digits.test)}))
    out = logged()
    assert "21 anchors also occur in the test set, as 21 records (anchor = record): " in out
    assert "in the pool" not in out


def test_ost_without_anchors_says_what_is_missing(settings):
    with pytest.raises(
        SelectorError, match="selector 'ost' needs anchors; name a file of trusted samples in anchors.path"
    ):
        ostlight.select(settings(anchors={}, selector={"name": "ost"}))


def test_an_empty_anchors_file_is_refused(settings, tmp_path: Path):
    empty = tmp_path / "anchors.jsonl"
    empty.write_text("")
    with pytest.raises(DataError, match="anchors"):
        ostlight.select(settings(anchors={"path": str(empty)}))


def test_anchors_without_the_group_are_named(settings):
    with pytest.raises(DataError, match="anchors.group is 'skill', a tag these anchors lack: "):
        ostlight.select(settings(), "anchors.group=skill")


@register("tests-picky")
class Picky(Selector):
    """Fails on some samples and returns NaN for others."""

    def score(self, batch: Any) -> dict[str, Any]:
        if any(s.position == 4 for s in batch.samples):
            raise ValueError("four")
        return {"score": [float("nan") if s.position == 6 else float(s.position) for s in batch.samples]}


def test_a_failed_score_is_a_state_never_a_number(settings):
    selection = ostlight.select(settings(selector={"name": "tests-picky"}))
    assert selection.rejected == {"score_not_finite": 1, "selector_error": 1}
    rows = {r["position"]: r for r in table_of(selection.folder.path)}
    assert (rows[4]["state"], rows[4]["score"], rows[4]["detail"]) == ("rejected", None, "ValueError: four")
    assert (rows[6]["state"], rows[6]["score"]) == ("rejected", None)
    assert selection.kept.tolist() == list(range(47, 38, -1))


def test_a_kind_nearly_left_out_is_told(settings, digits, tmp_path: Path, logged):
    """And with shares by that tag it is kept, and nothing is logged."""
    rows = pq.read_table(digits.pool).to_pylist()
    for i, row in enumerate(rows):
        row["task"] = "early" if i < 24 else "late"
    pool = tmp_path / "pool.parquet"
    pq.write_table(pa.Table.from_pylist(rows, pq.read_schema(digits.pool)), pool)
    config = settings(pool={"path": str(pool)}, selector={"name": "tests-picky"}, budget={"fraction": 0.5})
    selection = ostlight.select(config)
    assert [(one.value, one.scored, one.kept) for one in selection.rare] == [("early", 22, 0)]
    warning = "hardly any kept of task=early (0 of 22); a model forgets what its subset lacks: budget.stratify_by=task"
    assert warning in logged()
    assert ostlight.select(config, "budget.stratify_by=task").rare == []
    assert "hardly any kept" not in logged()


@register("tests-broken")
class Broken(Selector):
    """Always fails."""

    def score(self, batch: Any) -> dict[str, Any]:
        raise KeyError("no such thing")


def test_a_selector_that_fails_on_everything_stops_the_run(settings):
    with pytest.raises(SelectorError, match="Broken.score failed on every sample of a batch: KeyError"):
        ostlight.select(settings(selector={"name": "tests-broken"}))


@register("tests-late")
class BrokenLater(Selector):
    """Fails on every record behind the twentieth."""

    def score(self, batch: Any) -> dict[str, Any]:
        if batch.samples[-1].position >= 20:
            raise KeyError("no such thing")
        return {"score": [0.0] * len(batch)}


def test_a_batch_that_fails_after_others_were_scored_costs_its_own_records(settings):
    selection = ostlight.select(settings(selector={"name": "tests-late"}, budget={"fraction": 1.0}))
    assert len(selection.kept) == 20
    assert selection.rejected == {"selector_error": 28}


class Stopped(BaseException):
    """As Ctrl-C, which Lightning turns into the end of the process."""


@register("tests-closing")
class Closing(Selector):
    """Fails on the second shard, and says whether it was closed."""

    ends: ClassVar[list[str]] = []

    def setup(self, context: Any) -> None:
        self.ends.append("open")

    def score(self, batch: Any) -> dict[str, Any]:
        if batch.samples[0].position >= 20:
            raise Stopped
        return {"score": [0.0] * len(batch)}

    def teardown(self) -> None:
        self.ends.append("closed")
        raise OSError("already gone")


def test_a_run_that_is_stopped_closes_its_selector_and_tells_why_it_ended(settings):
    with pytest.raises(Stopped):
        ostlight.select(settings(selector={"name": "tests-closing"}))
    assert Closing.ends == ["open", "closed"]


@register("tests-together")
class Together(Selector):
    """Fails on every batch of several."""

    def score(self, batch: Any) -> dict[str, Any]:
        if len(batch) > 1:
            raise RuntimeError("another event loop")
        return {"score": [0.0]}


def test_batches_that_fail_where_their_samples_do_not_are_told(settings, logged):
    selection = ostlight.select(settings(selector={"name": "tests-together"}))
    assert selection.rejected == {}
    warning = "Together.score failed on a batch of 20 and on none of its samples alone: RuntimeError"
    assert " ".join(logged().split()).count(warning) == 1
    entry = next(e for e in selection.folder.cost_log.read() if e.stage == "score")
    assert entry.more["failed_together"] == {"batches": 3, "last": "RuntimeError: another event loop"}


@register("tests-short")
class Short(Selector):
    """Returns too few scores."""

    def score(self, batch: Any) -> dict[str, Any]:
        return {"score": [1.0]}


def test_a_wrong_number_of_scores_is_refused(settings):
    with pytest.raises(SelectorError, match="column 'score' has 1 values for 20 samples"):
        ostlight.select(settings(selector={"name": "tests-short"}))


def test_a_token_budget_counts_the_targets_tokens(settings, proxy):
    selection = ostlight.select(settings(), "budget.tokens=300")
    encoder = proxy("float32").encoder
    pool = ostlight.Pool.open(settings()["pool"]["path"])
    lengths = [len(encoder.encode(pool[int(p)])) for p in selection.kept]
    assert sum(lengths) <= 300
    assert sum(lengths) + 60 > 300


def test_full_keeps_everything_and_random_depends_on_the_seed(settings):
    assert len(ostlight.select(settings(name="full", selector={"name": "full"})).kept) == 48
    one = ostlight.select(settings(name="one")).kept.tolist()
    two = ostlight.select(settings(name="two"), "seed=1").kept.tolist()
    again = ostlight.select(settings(name="again")).kept.tolist()
    assert one == again != two


@pytest.mark.slow
def test_scores_do_not_depend_on_batches_shards_or_workers(settings):
    ost = {"name": "ost", "options": {"estimator": "first_order", "step_size": 0.1}}
    tables = []
    for name, compute in (
        ("one", {"tokens_per_batch": 1, "shard_size": 48}),
        ("some", {"tokens_per_batch": 150, "shard_size": 7}),
        ("all", {"tokens_per_batch": 100_000, "shard_size": 48, "workers": 1}),
    ):
        config = settings(name=name, selector=ost)
        config["compute"] |= compute
        tables.append([row["score"] for row in table_of(ostlight.select(config).folder.path)])
    middle = sorted(map(abs, tables[0]))[24]
    for other in tables[1:]:
        assert max(abs(a - b) for a, b in zip(tables[0], other, strict=True)) / middle < 1e-3


def test_cut_answers_are_counted(settings, logged):
    config = settings(selector={"name": "loss"})
    lengths = [row["tokens"] for row in table_of(ostlight.select(config).folder.path)]
    config["proxy"] |= {"max_length": max(lengths) - 1}
    selection = ostlight.select(config | {"name": "cut"})
    assert selection.answers_cut == lengths.count(max(lengths))
    assert f"{selection.answers_cut} answers were cut by the length limit" in logged()


def test_missing_files_are_listed_at_once(settings):
    config = settings(pool={"path": "no/pool.jsonl"}, anchors={"path": "no/anchors.jsonl"})
    with pytest.raises(ConfigError) as refused:
        ostlight.select(config)
    assert [problem.partition(":")[0] for problem in refused.value.problems] == ["pool.path", "anchors.path"]


@register("reads-a-file")
class ReadsAFile(Selector):
    """Scores by a number in a file."""

    compute_options = ("threads",)

    @dataclass
    class Options:
        file: str = ""
        threads: int = 1

    def fingerprints(self) -> dict[str, str]:
        return {"file": of_values(Path(self.options.file).read_text())}

    def score(self, batch: Any) -> dict[str, Any]:
        return {"score": [float(Path(self.options.file).read_text())] * len(batch)}


def test_a_file_an_option_names_counts_by_its_content_and_a_compute_option_not_at_all(settings, tmp_path: Path):
    file = tmp_path / "number.txt"
    file.write_text("1")
    choice = {"name": "reads-a-file", "options": {"file": str(file)}}
    first = ostlight.select(settings(selector=choice)).folder
    ostlight.select(settings(selector=choice), "selector.options.threads=8")
    assert [e.stage for e in first.cost_log.read()] == ["score", "select", "select"]
    file.write_text("2")
    with pytest.raises(RunChangedError) as refused:
        ostlight.select(settings(selector=choice))
    assert refused.value.changed == ["selector.options.file"]

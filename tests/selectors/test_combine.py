"""Selectors combined: by the mean of their ranks, or one after the other without paying for what was dropped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from scipy.stats import rankdata

import ostlight
from ostlight.config.budget import Budget
from ostlight.errors import BadRecord, ConfigError, RunChangedError, SelectorError
from ostlight.pipeline.cost_log import CostLog
from ostlight.selection.registry import create, register
from ostlight.selection.scores import Scores, read_score_table
from ostlight.selection.selector import Selector

pytestmark = pytest.mark.usefixtures("few_samples_compared")

ASKED: list[str] = []
TEARDOWNS: list[str] = []


@register("counts-what-it-scores")
class Counts(Selector):
    """Prefers short answers, and remembers whom it was asked about."""

    def score(self, batch: Any) -> dict[str, Any]:
        ASKED.extend(sample.id for sample in batch.samples)
        return {"score": [-len(s.answer) for s in batch.samples], "vector": [np.ones(3)] * len(batch)}

    def teardown(self) -> None:
        TEARDOWNS.append("counts")


@register("fails-on-some")
class FailsOnSome(Selector):
    """Scores by length, and fails where the question is about order."""

    def score(self, batch: Any) -> dict[str, Any]:
        failures = [BadRecord("no_order", "order is not scored") if "sort" in s.prompt else None for s in batch.samples]
        return {"score": [float(len(s.prompt)) for s in batch.samples], "failure": failures}


@register("draws-what-it-selects")
class Draws(Selector):
    """Scores all alike, and selects half of the budget by the seed."""

    stochastic_selection = True

    def score(self, batch: Any) -> dict[str, Any]:
        return {"score": [0.0] * len(batch)}

    def select(self, scores: Scores, budget: Budget) -> np.ndarray:
        return np.random.default_rng(scores.context.seed).permutation(len(scores))[: budget.size(len(scores)) // 2]


def combined(how: str, *parts: tuple) -> dict[str, Any]:
    of = [{"name": n, "options": o, "keep": k} for n, o, k in parts]
    return {"name": "combine", "options": {"how": how, "of": of}}


DRAWS = ("draws-what-it-selects", {})
LOSS, LONG, COUNTS = ("loss", {}), ("length", {"prefer": "high"}), ("counts-what-it-scores", {})


@pytest.mark.parametrize(("how", "of_places"), [("rank_mean", np.mean), ("rank_product", np.prod)])
def test_ranks_are_the_mean_or_product_of_places(settings, how: str, of_places: Any):
    choice = combined(how, (*LOSS, None), ("el2n", {"prefer": "low"}, None))
    selection = ostlight.select(settings(selector=choice), "budget.count=10")
    folder = selection.folder
    parts = [Scores.read(folder.path / "dependencies" / name / "scores") for name in ("1-loss", "2-el2n")]
    places = [1 - (rankdata(-part.score) - 1) / 48 for part in parts]
    scores = Scores.read(folder.scores)
    assert scores.score == pytest.approx(of_places(places, axis=0))
    assert scores.column("place_by_part") == pytest.approx(np.stack(places, axis=1))
    assert sorted(selection.kept) == sorted(np.argsort(-of_places(places, axis=0), kind="stable")[:10])
    stages = [(e.stage, e.selector) for e in folder.cost_log.read()]
    assert stages == [("score", "1-loss"), ("score", "2-el2n"), ("score", "combine"), ("select", "combine")]


def test_equal_scores_share_their_places(settings, samples):
    folder = ostlight.select(settings(selector=combined("rank_mean", (*LONG, None), (*COUNTS, None)))).folder
    lengths = np.array([len(s.answer) for s in samples("pool")])
    assert len(set(lengths)) < 48
    expected = [1 - (rankdata(sign * lengths) - 1) / 48 for sign in (-1, 1)]
    assert Scores.read(folder.scores).column("place_by_part") == pytest.approx(np.stack(expected, axis=1))


def test_a_rank_is_a_place_in_the_order_a_part_picks_in(settings):
    """The middle of the loss, and only what IFD would keep."""
    choice = combined("rank_mean", ("loss", {"prefer": "middle"}, None), ("ifd", {}, None))
    folder = ostlight.select(settings(selector=choice)).folder
    places = Scores.read(folder.scores).column("place_by_part")
    losses = Scores.read(folder.path / "dependencies" / "1-loss" / "scores").score
    assert sorted(losses[places[:, 0] > 0.9]) == sorted(losses)[21:26]
    ifd = Scores.read(folder.path / "dependencies" / "2-ifd" / "scores").column("ifd")
    assert ((places[:, 1] == 0) == (ifd >= 1)).all()


def test_a_cascade_asks_the_last_only_about_what_is_left(settings):
    ASKED.clear()
    selection = ostlight.select(settings(selector=combined("cascade", (*LOSS, 0.5), (*COUNTS, None))), "budget.count=6")
    scores = Scores.read(selection.folder.scores)
    first = Scores.read(selection.folder.path / "dependencies" / "1-loss" / "scores")
    left = set(np.argsort(-first.score)[:24])
    assert set(ASKED) == {scores.ids[k] for k in left}
    stage = scores.column("scored_by")
    assert set(np.flatnonzero(stage == 2)) == left
    lengths = -scores.score
    assert set(selection.kept) <= left
    assert sorted(lengths[selection.kept]) == sorted(lengths[sorted(left)])[:6]
    assert len(selection.kept) + selection.dropped == 48
    assert scores.score[stage == 1] == pytest.approx(first.score[stage == 1])


INTERSECTION = [
    {"name": "loss", "keep": 0.6},
    {"name": "ifd"},
    {"name": "length", "options": {"prefer": "high"}, "threshold": 8.0},
]


def intersected(folder) -> tuple[np.ndarray, np.ndarray]:
    """``[N, 3]`` what the parts of ``INTERSECTION`` admit, and ``[N, 3]`` places, from their own tables."""
    loss, ifd, length = (
        Scores.read(folder.path / "dependencies" / name / "scores") for name in ("1-loss", "2-ifd", "3-length")
    )
    lowest = np.isin(np.arange(48), np.argsort(-loss.score, kind="stable")[: round(0.6 * 48)])
    admitted = np.stack([lowest, ifd.column("ifd") < 1, length.score >= 8], axis=1)
    places = np.stack([1 - (rankdata(-part.score) - 1) / 48 for part in (loss, ifd, length)], axis=1)
    places[~admitted[:, 1], 1] = 0  # never selected
    return admitted, places


@pytest.mark.parametrize("then", ["random", "rank"])
def test_an_intersection_takes_what_every_part_admits(settings, then: str, caplog):
    options = {"how": "intersection", "of": INTERSECTION, "then": then}
    choice = {"name": "combine", "options": options}
    selection = ostlight.select(settings(selector=choice), "budget.count=4")
    folder, scores = selection.folder, Scores.read(selection.folder.scores)
    admitted, places = intersected(folder)
    all_admit = admitted.all(1)
    assert 4 < all_admit.sum() < admitted.sum(0).min()
    assert (scores.column("admitted_by_part") == admitted).all()
    assert scores.score == pytest.approx(admitted.sum(1) + places.mean(1) * 48 / 49)
    assert all_admit[selection.kept].all()
    best = np.flatnonzero(all_admit)[np.argsort(-scores.score[all_admit], kind="stable")][:4]
    assert (sorted(selection.kept) == sorted(best)) == (then == "rank")
    another = ostlight.select(settings(selector=choice), f"budget.threshold={len(INTERSECTION)}")
    assert sorted(another.kept) == np.flatnonzero(all_admit).tolist()
    with caplog.at_level("WARNING", "ostlight"):
        more = ostlight.select(settings(selector=choice), "budget.count=30")
    assert set(np.flatnonzero(all_admit)) < set(more.kept)
    rest = more.kept[all_admit.sum() :]
    assert scores.score[rest].tolist() == sorted(scores.score[~all_admit], reverse=True)[: len(rest)]
    assert f"{len(rest)} of 30 selected samples are not admitted by all parts" in caplog.text


def test_of_an_intersection_that_is_empty_the_closest_are_taken(settings, caplog):
    of = [{"name": "length", "threshold": 1e9}, {"name": "loss", "keep": 0.5}]
    choice = {"name": "combine", "options": {"how": "intersection", "of": of}}
    selection = ostlight.select(settings(selector=choice), "budget.count=6")
    assert "6 of 6 selected samples are not admitted" in caplog.text
    losses = Scores.read(selection.folder.path / "dependencies" / "2-loss" / "scores").score
    assert losses[selection.kept].min() >= np.sort(losses)[24]


def test_an_intersection_of_a_filter_has_its_admissions(settings):
    ost = {"name": "ost", "options": {"estimator": "finite_difference", "step_size": 0.1, "selection": "filter"}}
    options = {"how": "intersection", "of": [ost, {"name": "loss", "keep": 0.5}]}
    folder = ostlight.select(settings(selector={"name": "combine", "options": options})).folder
    alignment = Scores.read(folder.path / "dependencies" / "1-ost" / "scores").column("alignment")
    assert 0 < (alignment > 0).sum() < 48
    assert (Scores.read(folder.scores).column("admitted_by_part")[:, 0] == (alignment > 0)).all()


def test_a_part_that_needs_a_size_says_so(settings):
    presel = {"name": "presel", "options": {"reference": 0.2}}
    options = {"how": "intersection", "of": [{"name": "loss"}, presel]}
    with pytest.raises(SelectorError, match=r"selector\.options\.of\[1\]: presel shares a budget .* keep"):
        ostlight.select(settings(selector={"name": "combine", "options": options}))


def test_every_part_is_torn_down_once(settings):
    for how, keep in (("cascade", 0.5), ("rank_mean", None)):
        TEARDOWNS.clear()
        ostlight.select(settings(name=how, selector=combined(how, (*LOSS, keep), (*COUNTS, None))))
        assert TEARDOWNS == ["counts"]


def test_a_cascade_of_three_narrows_twice(settings):
    ASKED.clear()
    choice = combined("cascade", (*LOSS, 0.5), (*LONG, 0.25), (*COUNTS, None))
    selection = ostlight.select(settings(selector=choice), "budget.fraction=0.5")
    stage = Scores.read(selection.folder.scores).column("scored_by")
    assert [int((stage == k).sum()) for k in (1, 2, 3)] == [24, 12, 12]
    assert len(set(ASKED)) == 12
    # The budget is half of the pool, and a quarter reached the end: what was dropped on the way stays dropped.
    assert sorted(selection.kept) == np.flatnonzero(stage == 3).tolist()


def test_judging_on_what_ost_left(settings):
    ost = ("ost", {"estimator": "first_order", "step_size": 0.1}, 0.4)
    deita = ("deita", {"complexity": None, "quality": None}, None)
    selection = ostlight.select(settings(selector=combined("cascade", ost, deita)), "budget.fraction=0.2")
    scores = Scores.read(selection.folder.scores)
    assert int((scores.column("scored_by") == 2).sum()) == 19
    vectors = np.stack(scores.take(selection.kept).column("embedding"))
    cosines = vectors @ vectors.T
    assert (cosines[~np.eye(len(cosines), dtype=bool)] <= 0.9).all()


@pytest.mark.parametrize(("how", "keep", "column"), [("cascade", 0.5, "scored_by"), ("rank_mean", None, "score")])
def test_a_part_that_draws_has_the_seed_of_the_run(settings, how: str, keep: float | None, column: str):
    choice = combined(how, (*DRAWS, keep), (*COUNTS, None))
    columns = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        folder = ostlight.select(settings(name=name, selector=choice, seed=seed)).folder
        columns.append(Scores.read(folder.scores).column(column).tolist())
    assert columns[0] == columns[1] != columns[2]


def test_a_combination_whose_scores_change_with_the_seed_says_so():
    for how, parts, stochastic in (
        ("cascade", [(*DRAWS, 0.5), (*COUNTS, None)], True),
        ("cascade", [(*COUNTS, 0.5), (*DRAWS, None)], False),
        ("rank_mean", [(*COUNTS, None), (*DRAWS, None)], True),
        ("rank_mean", [(*COUNTS, None), (*LONG, None)], False),
        ("intersection", [(*COUNTS, None), (*DRAWS, None)], False),
        ("intersection", [(*COUNTS, None), (*DRAWS, 0.5)], True),
    ):
        selector = create(**combined(how, *parts))
        assert selector.stochastic == stochastic
        assert selector.stochastic_selection == (how == "intersection" or DRAWS[0] in [part[0] for part in parts])


def test_best_of_as_an_earlier_part_tries_nothing(settings):
    best_of = ("best_of", {"candidates": [{"name": "loss"}, {"name": "random"}]}, 0.5)
    selection = ostlight.select(settings(selector=combined("cascade", best_of, (*COUNTS, None))))
    assert all("trials" not in entry.more for entry in selection.folder.cost_log.read())


def test_a_stratum_that_nobody_of_reached_the_last_part_keeps_nobody(settings):
    choice = combined("cascade", (*LOSS, 0.05), (*DRAWS, None))
    selection = ostlight.select(settings(selector=choice), "budget.fraction=0.5")
    scores = Scores.read(selection.folder.scores)
    selector = create(**choice)
    selector.last.select = lambda *_: pytest.fail("called with an empty table")
    left = scores.take(np.flatnonzero(scores.column("scored_by") == 1))
    assert not len(selector.select(left, Budget(count=3)))


def test_a_sample_a_part_failed_on_is_rejected_with_its_reason(settings, samples):
    failed = sum("sort" in s.prompt for s in samples("pool"))
    assert failed
    for how, keep in (("rank_mean", None), ("cascade", 0.9)):
        choice = combined(how, ("fails-on-some", {}, keep), (*COUNTS, None))
        selection = ostlight.select(settings(name=how, selector=choice))
        assert selection.rejected == {"no_order": failed}
        assert len(selection.kept) + selection.dropped + failed == 48


def test_a_stopped_combination_resumes_its_parts(settings):
    choice = combined("cascade", (*LOSS, 0.5), (*COUNTS, None))
    whole = ostlight.select(settings(name="whole", selector=choice)).folder
    stopped = ostlight.select(settings(name="stopped", selector=choice)).folder
    (stopped.scores / "part-000001.parquet").unlink()
    (stopped.path / "dependencies" / "1-loss" / "scores" / "part-000002.parquet").unlink()
    ostlight.select(settings(name="stopped", selector=choice))
    assert read_score_table(stopped.scores).to_pylist() == read_score_table(whole.scores).to_pylist()


def test_a_changed_part_is_refused(settings):
    ostlight.select(settings(selector=combined("rank_mean", (*LOSS, None), (*LONG, None))))
    with pytest.raises(RunChangedError, match=r"changed: .*selector\.options"):
        ostlight.select(settings(selector=combined("rank_mean", (*LOSS, None), ("length", {"prefer": "low"}, None))))


@pytest.mark.slow
def test_a_benchmark_counts_the_cost_of_the_parts(settings, tmp_path: Path):
    config = settings(
        selector={"name": "random"},
        benchmark={
            "selectors": [combined("cascade", (*LOSS, 0.5), ("el2n", {}, None)) | {"label": "both"}],
            "budgets": [{"fraction": 0.2}],
            "seeds": [0],
        },
    )
    (line,) = [line for line in ostlight.benchmark(config) if line.label == "both"]
    cost_logs = (tmp_path / "runs" / "run" / "selectors").glob("*/cost_log.jsonl")
    usage = {e.selector: e for file in cost_logs for e in CostLog(file).read() if e.stage == "score"}
    assert set(usage) == {"loss", "both"}
    assert line.selection_s >= sum(e.device_s for e in usage.values())
    assert line.selection_flops == pytest.approx(sum(e.flops for e in usage.values()))


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        (
            combined("sum", (*LOSS, None), (*LONG, None)),
            "how must be one of rank_mean, rank_product, intersection, cascade; got 'sum'",
        ),
        (combined("cascade", (*LOSS, None)), "of names 1 selectors; name at least two"),
        (combined("cascade", (*LOSS, None), (*LONG, None)), r"of\[0\].keep must be a share of the pool .* got None"),
        (combined("cascade", (*LOSS, 0.5), (*LONG, 0.6), (*COUNTS, None)), r"of\[1\].keep .* at most 0.5; got 0.6"),
        (combined("cascade", (*LOSS, 0.5), (*LONG, 0.2)), "the last part keeps what the budget says"),
        (combined("rank_mean", (*LOSS, 0.5), (*LONG, None)), "keep belongs to a cascade or an intersection"),
        (combined("intersection", (*LOSS, 0.5)), "of names 1 selectors; name at least two"),
        (
            {"name": "combine", "options": {"of": [{"name": "loss"}, {"name": "length"}], "then": "rank"}},
            "then belongs to an intersection; how is rank_mean",
        ),
        (
            {"name": "combine", "options": {"of": [{"name": "loss", "threshold": 0}, {"name": "length"}]}},
            r"of\[0\].threshold belongs to an intersection",
        ),
        (
            {
                "name": "combine",
                "options": {
                    "how": "intersection",
                    "of": [{"name": "loss"}, {"name": "length", "threshold": 3, "keep": 0.5}],
                },
            },
            r"of\[1\] takes one of keep, threshold",
        ),
        (combined("rank_mean", (*LOSS, None), ("lenght", {}, None)), "unknown selector 'lenght'"),
        (combined("rank_mean", (*LOSS, None), ("active", {}, None)), "some parts score answers and some do without"),
        (
            combined("cascade", (*LOSS, 0.5), ("combine", {"of": [{"name": "loss"}, {"name": "length"}]}, None)),
            "the last part of a cascade cannot be 'combine'",
        ),
    ],
)
def test_parts_that_cannot_be_combined_are_refused(choice: dict, says: str):
    with pytest.raises((ConfigError, SelectorError), match=says):
        create(choice["name"], choice["options"])


@pytest.mark.slow
def test_two_ranks_give_the_same_cascade(settings, tmp_path: Path):
    """Started by the command, which starts the second rank itself; other tests fork theirs."""
    choice = combined("cascade", (*LOSS, 0.5), ("deita", {"complexity": None, "quality": None}, None))
    configs = {}
    for name, ranks in (("one", {}), ("two", {"devices": 2, "strategy": "ddp"})):
        configs[name] = settings(name=name, selector=choice)
        configs[name]["compute"] |= ranks | {"shard_size": 5}
    ostlight.select(configs["one"])
    file = tmp_path / "two.yaml"
    file.write_text(yaml.safe_dump(configs["two"]))
    arguments = [sys.executable, "-m", "ostlight.cli", "select", str(file)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = (read_score_table(tmp_path / "runs" / name / "scores") for name in configs)
    assert one["scored_by"].to_pylist() == two["scored_by"].to_pylist()
    assert one["score"].to_pylist() == pytest.approx(two["score"].to_pylist(), rel=1e-4)


REFUSES = {"now": True}


@register("refuses-for-a-while")
class RefusesForAWhile(Selector):
    """Scores by length, and gives no answer on the first task's records while the server is down."""

    retried_reasons = ("server_down",)

    def score(self, batch: Any) -> dict[str, Any]:
        down = [REFUSES["now"] and "sort" in s.prompt for s in batch.samples]
        failures = [BadRecord("server_down", "try again") if one else None for one in down]
        return {"score": [float(len(s.prompt)) for s in batch.samples], "failure": failures}


@pytest.mark.parametrize("how", ["rank_mean", "cascade"])
def test_what_a_part_gave_no_score_for_is_tried_again_and_ranks_are_those_of_a_fresh_run(settings, how: str):
    parts: list[dict[str, Any]] = [{"name": "length"}, {"name": "refuses-for-a-while"}]
    if how == "cascade":
        parts[0]["keep"] = 0.8
    config = settings(selector={"name": "combine", "options": {"how": how, "of": parts}})
    REFUSES["now"] = True
    assert ostlight.select(config).rejected["server_down"] > 0
    REFUSES["now"] = False
    again, fresh = ostlight.select(config), ostlight.select(config, "name=fresh")
    assert again.rejected == fresh.rejected == {}
    scores = [Scores.read(one.folder.scores).score for one in (again, fresh)]
    assert scores[0].tolist() == scores[1].tolist()
    assert again.kept.tolist() == fresh.kept.tolist()


@pytest.mark.parametrize("name", ["semdedup", "facility_location"])
def test_images_that_come_later_move_the_clusters_of_all(settings, digits, tmp_path: Path, name: str):
    rows = pq.read_table(digits.pool).to_pylist()
    for k, row in enumerate(rows):
        (tmp_path / f"{k}.png").write_bytes(row["image"]["bytes"])
        row["image"] = f"{k}.png"
    late = [tmp_path / f"{k}.png" for k in (3, 8, 14)]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    held = {file: file.read_bytes() for file in late}
    for file in late:
        file.unlink()
    config = settings(selector={"name": name}, pool={"path": str(tmp_path / "pool.jsonl")})
    assert ostlight.select(config).rejected == {"missing_image": 3}
    for file, content in held.items():
        file.write_bytes(content)
    again, fresh = ostlight.select(config), ostlight.select(config, "name=fresh")
    scores = [Scores.read(one.folder.scores).score for one in (again, fresh)]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-6)
    assert sorted(again.kept) == sorted(fresh.kept)


def test_records_that_one_part_rejects_move_no_rank_of_another(settings):
    parts = [{"name": "length"}, {"name": "fails-on-some"}]
    selection = ostlight.select(settings(selector={"name": "combine", "options": {"how": "rank_mean", "of": parts}}))
    assert selection.rejected["no_order"] > 0
    scores = Scores.read(selection.folder.scores)
    lengths = {
        row["position"]: row["score"]
        for row in read_score_table(selection.folder.path / "dependencies" / "1-length" / "scores").to_pylist()
    }
    own = np.array([lengths[p] for p in scores.positions.tolist()])
    expected = 1 - (rankdata(-own) - 1) / len(own)
    np.testing.assert_allclose(scores.column("place_by_part")[:, 0], expected)


def test_a_cascade_that_cannot_fill_the_budget_says_so(settings, logged):
    parts = [{"name": "length", "keep": 0.2}, {"name": "random"}]
    config = settings(selector={"name": "combine", "options": {"how": "cascade", "of": parts}})
    assert len(ostlight.select(config, "budget={fraction: 0.5}").kept) == 10
    assert "the budget asks for 24 of 48 samples, and 10 of them reached the last part" in logged()


def test_the_last_part_of_a_cascade_is_fitted_and_asked_about_the_budget(settings, logged):
    last = {"name": "ost", "options": {"parameters": "auto", "estimator": "first_order"}}
    options = {"how": "cascade", "of": [{"name": "random", "keep": 0.5}, last]}
    config = settings(selector={"name": "combine", "options": options})
    selection = ostlight.select(config)
    assert len(selection.kept)
    assert "(blocks)" in logged()
    with pytest.raises(SelectorError, match="gradients.cluster"):
        create("combine", options).check_budget(Budget(count=2, stratify_by="gradients.cluster"))

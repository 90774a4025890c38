"""Several candidates' subsets are tried on the proxy, and the one that trains it best is kept."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import ostlight
from ostlight.config.budget import Budget
from ostlight.errors import ConfigError, DivergedError, SelectorError
from ostlight.pipeline.scoring.rows import to_table
from ostlight.selection.notes import UTILITY
from ostlight.selection.random_numbers import uniform_by_id
from ostlight.selection.registry import create
from ostlight.selection.scores import Scores, SelectionContext
from ostlight.training.trial import TrialLoss
from ostlight_selectors.best_of import default_candidates, first_of_the_best, worst_group
from ostlight_selectors.ost.set_selection import select_set

ROWS, ETA, SEED, REPEATS = 60, 0.1, 5, 2
RNG = np.random.default_rng(4)
SLOPES, PHI, LOSSES = RNG.standard_normal(ROWS), 2 * RNG.standard_normal((ROWS, 4)), RNG.uniform(0, 3, ROWS)
UTILITIES = ETA * SLOPES - ETA**2 / 2 * (PHI**2).sum(1)
RANDOM = np.array(uniform_by_id(SEED, [f"s{i}" for i in range(ROWS)]))
TASKS = np.array(list("aaabbc" * (ROWS // 6)))
BUDGET = Budget(count=12)
TOP = {"name": "ost", "options": {"selection": "top"}}
SETS = [
    {"name": "ost", "options": {"selection": "set", "set_step_size": float(k)}, "label": f"set {k}x"}
    for k in (1, 10, 100)
]
CANDIDATES = [TOP, {"name": "random"}, {"name": "loss", "label": "low loss"}, *SETS]


def best_of(**options: Any) -> Any:
    return create("best_of", {"candidates": CANDIDATES} | options)


class Run:
    """A selection context whose trials return a loss by a rule, and the score table that ``best_of`` stores."""

    def __init__(self, loss: Callable[[set[int]], float] = len) -> None:
        self.loss = loss
        self.tried: list[set[int]] = []
        self.repeats: list[int] = []
        self.steps: set[int | None] = set()
        self.notes: dict[str, Any] = {}

    def trial(self, positions: np.ndarray, repeat: int, steps: int | None) -> float:
        self.tried.append(set(positions.tolist()))
        self.repeats.append(repeat)
        self.steps.add(steps)
        return self.loss(set(positions.tolist()))

    def scores(self) -> Scores:
        columns = {
            "score": UTILITIES,
            "alignment": SLOPES,
            "phi": PHI.tolist(),
            "loss": LOSSES,
            "step_size": [ETA] * ROWS,
            "1-ost.score": UTILITIES,
            "2-random.score": RANDOM,
        }
        rows = [
            {"position": i, "id": f"s{i}", "state": "ok", "tags": [("task", TASKS[i])], "tokens": 1 + i % 7}
            | {name: values[i] for name, values in columns.items()}
            for i in range(ROWS)
        ]
        return Scores(to_table(rows), SelectionContext(self.trial, list, self.notes.__setitem__, SEED))


SUBSETS = {
    "ost": set(np.argsort(-UTILITIES)[:12].tolist()),
    "random": set(np.argsort(RANDOM)[-12:].tolist()),
    "low loss": set(np.argsort(LOSSES)[:12].tolist()),
    **{f"set {k}x": set(select_set(Run().scores(), BUDGET, k, 32).tolist()) for k in (1, 10, 100)},
}


@pytest.mark.parametrize("best", SUBSETS)
def test_the_best_candidate_is_kept_and_all_losses_are_noted(best: str, logged):
    run = Run(lambda rows: 0.25 if rows == SUBSETS[best] else 0.75)
    rows = best_of().select(run.scores(), BUDGET)
    assert set(rows.tolist()) == SUBSETS[best]
    note = json.loads(json.dumps(run.notes["best_of"], allow_nan=False))
    if not note["selected"].startswith("set"):
        assert (np.diff(UTILITIES[rows]) <= 0).all(), "in the order of the first candidate's score"
    distinct = list(map(set, dict.fromkeys(map(frozenset, SUBSETS.values()))))
    assert run.tried == distinct * REPEATS, "equal subsets are tried once in every order"
    assert run.repeats == [k for k in range(REPEATS) for _ in distinct]
    assert run.steps == {25}, "as few as there may be, on so small a pool"
    assert note["losses"] == {
        label: [0.25 if rows == SUBSETS[best] else 0.75] * REPEATS for label, rows in SUBSETS.items()
    }
    assert SUBSETS[note["selected"]] == SUBSETS[best]
    assert note["samples"] == 12
    assert [note["notes"][f"set {k}x"]["set"]["step_size"] for k in (1, 10, 100)] == pytest.approx([0.1, 1, 10])
    assert f"selected: {note['selected']} 0.25" in logged()


def test_of_equal_candidates_the_first_is_kept_best_first():
    assert best_of().select(Run().scores(), BUDGET).tolist() == np.argsort(-UTILITIES)[:12].tolist()


def test_the_first_candidate_that_none_beats_beyond_the_noise_is_kept():
    calm = np.array([[0.50, 0.51], [0.48, 0.47], [0.30, 0.31]])
    assert first_of_the_best(calm) == 2
    assert first_of_the_best(calm[:2]) == 1
    noisy = np.array([[0.60, 0.40], [0.55, 0.38], [0.20, 0.21]])
    assert first_of_the_best(noisy[:2]) == 0
    assert first_of_the_best(noisy[:2], "lowest") == 1
    assert first_of_the_best(noisy) == 2
    assert first_of_the_best(10 * noisy[:2]) == 0, "whatever the unit of the loss"
    assert first_of_the_best(np.array([[0.1, np.inf], [0.9, 0.8]])) == 1
    with pytest.raises(DivergedError):
        first_of_the_best(np.array([[0.1, np.inf], [np.inf, 0.8]]))


def test_noise_alone_seldom_displaces_the_first_candidate():
    """Equal subsets: the last of six is the lowest a sixth of the time, and is kept far less often."""
    rng = np.random.default_rng(0)
    kept = [first_of_the_best(np.exp(rng.normal(-3, 0.1, (6, 2)))) for _ in range(4_000)]
    assert np.mean(np.array(kept) == 5) < 0.08


def test_a_subset_whose_training_diverged_is_never_kept():
    run = Run(lambda rows: math.inf if rows == SUBSETS["ost"] else 2.0)
    assert set(best_of().select(run.scores(), BUDGET).tolist()) == SUBSETS["random"]
    assert run.notes["best_of"]["losses"]["ost"] is None
    with pytest.raises(DivergedError):
        best_of().select(Run(lambda rows: math.inf).scores(), BUDGET)


@pytest.mark.parametrize(
    "budget", [Budget(count=12, stratify_by="task"), Budget(tokens=60), Budget(tokens=60, stratify_by="task")]
)
def test_every_subset_keeps_to_the_budget_and_its_shares(budget: Budget):
    run = Run()
    scores = run.scores()
    best_of().select(scores, budget)
    assert list(run.notes["best_of"]["losses"]) == list(SUBSETS)
    for rows in map(list, run.tried):
        assert (len(rows) == 12) if budget.count else (scores.tokens[rows].sum() <= 60)
        if budget.stratify_by and budget.count:
            assert [(TASKS[rows] == task).sum() for task in "abc"] == [6, 4, 2]


def test_steps_and_repeats_are_options():
    run = Run()
    create("best_of", {"steps": 7, "repeats": 3, "candidates": [TOP, {"name": "random"}]}).select(run.scores(), BUDGET)
    assert list(run.notes["best_of"]["losses"]) == ["ost", "random"]
    assert (len(run.tried), run.steps) == (6, {7})


@pytest.mark.parametrize(("rule", "kept"), [("one_standard_error", "ost"), ("lowest", "random")])
def test_the_rule_says_whether_noise_counts(rule: str, kept: str):
    """The losses of a subset differ by 0.2 between its trials; the means of the two subsets by 0.02."""
    run = Run()
    mean = {frozenset(SUBSETS["ost"]): 1.0, frozenset(SUBSETS["random"]): 0.98}
    run.loss = lambda rows: mean[frozenset(rows)] + (0.1 if run.repeats[-1] else -0.1)
    options = {"rule": rule, "candidates": [TOP, {"name": "random"}]}
    rows = create("best_of", options).select(run.scores(), BUDGET)
    assert set(rows.tolist()) == SUBSETS[kept]
    assert run.notes["best_of"]["selected"] == kept


def test_one_trial_a_subset_is_enough_for_the_lowest_loss():
    run = Run(lambda rows: 1.0 if rows == SUBSETS["random"] else 2.0)
    options = {"rule": "lowest", "repeats": 1, "candidates": [TOP, {"name": "random"}]}
    assert set(create("best_of", options).select(run.scores(), BUDGET).tolist()) == SUBSETS["random"]
    assert run.repeats == [0, 0]


@pytest.mark.parametrize("budget", [Budget(threshold=0.0), Budget(fraction=1.0)])
def test_nothing_is_tried_where_there_is_nothing_to_choose(budget: Budget):
    run = Run()
    assert best_of().select(run.scores(), budget).tolist() == budget.top(run.scores()).tolist()
    assert run.tried == []
    assert run.notes == {}


def test_outside_a_run_the_first_candidate_is_kept():
    scores = Scores(Run().scores().table)
    assert best_of().select(scores, BUDGET).tolist() == BUDGET.top(scores).tolist()


def test_a_candidate_that_keeps_nothing_is_not_tried():
    run = Run()
    candidates = [TOP, {"name": "random"}, {"name": "ifd"}]
    ifd = {"3-ifd.score": np.zeros(ROWS), "3-ifd.ifd": np.full(ROWS, 2.0)}
    scores = run.scores()
    for name, values in ifd.items():
        scores = Scores(scores.table.append_column(name, [values]), scores.context)
    create("best_of", {"candidates": candidates}).select(scores, BUDGET)
    assert list(run.notes["best_of"]["losses"]) == ["ost", "random"]


def test_what_one_table_holds_is_scored_once():
    assert [(d.name, d.options, d.label) for d in best_of().dependencies()] == [
        ("ost", {"estimator": "projected", "step": "sgd"}, "1-ost"),
        ("random", {}, "2-random"),
    ]
    other = {"candidates": [{"name": "loss"}, {"name": "ost", "options": {"estimator": "first_order"}}]}
    assert [d.shown for d in create("best_of", other).dependencies()] == ["1-ost"]
    alone = {"candidates": [{"name": "loss"}, {"name": "loss", "options": {"prefer": "high"}, "label": "high"}]}
    assert [d.shown for d in create("best_of", alone).dependencies()] == ["1-loss", "2-loss"]


@pytest.mark.slow
def test_a_run_on_the_defaults_tries_six_subsets_in_two_orders(settings, logged):
    selection = ostlight.select(settings(selector={"name": "best_of"}), "budget.count=10")
    assert "at most 12 trials of 25 steps on the proxy" in logged(), "fewer than 100: the pool has 48 records"
    entry = selection.folder.cost_log.read()[-1]
    losses = entry.more["noted"]["best_of"]["losses"]
    assert list(losses) == [choice.shown for choice in default_candidates()]
    assert 6 <= entry.more["trials"] <= 12
    notes = json.loads((selection.folder.path / "selector" / "notes.json").read_text())
    assert notes["rank_agreement"]["samples"] == 16


@pytest.mark.usefixtures("few_samples_compared")
def test_a_run_tries_for_every_budget_and_scores_once(settings):
    cheap = {"estimator": "second_order", "step": "sgd", "probes": 4, "parameters": "head", "step_size": 0.05}
    candidates = [
        {"name": "ost", "options": cheap | {"selection": "top"}},
        {"name": "random"},
        {"name": "loss", "label": "low loss"},
        {"name": "ost", "options": cheap | {"selection": "set"}, "label": "set"},
    ]
    config = settings(selector={"name": "best_of", "options": {"steps": 2, "candidates": candidates}})
    for budget in ("budget.count=10", "budget.count=20"):
        selection = ostlight.select(config, budget)
    entries = selection.folder.cost_log.read()
    assert [e.selector for e in entries if e.stage == "score"] == ["1-ost", "2-random", "best_of"]
    assert entries[2].flops < 0.01 * entries[0].flops, "what the candidates' tables hold is not measured again"
    first, second = entries[3:]
    for entry in (first, second):
        losses = entry.more["noted"]["best_of"]["losses"]
        assert list(losses) == ["ost", "random", "low loss", "set"]
        assert 4 <= entry.more["trials"] <= 2 * len(losses)
        assert entry.flops > 0
    assert [first.more["budget"], second.more["budget"]] == ["10", "20"]
    assert len(selection.kept) == 20
    notes = json.loads((selection.folder.path / "selector" / "notes.json").read_text())
    assert "rank_agreement" in notes, "the report finds what the first candidate noted"
    assert notes[UTILITY]
    ranking = ostlight.select(config, "budget.threshold=0").folder.cost_log.read()[-1]
    assert "trials" not in ranking.more


@pytest.mark.usefixtures("few_samples_compared")
def test_a_loss_from_the_table_of_ost_is_no_utility(settings):
    ost = {"name": "ost", "options": {"estimator": "first_order", "parameters": "head", "step_size": 0.05}}
    options = {"steps": 1, "candidates": [{"name": "loss"}, ost]}
    selection = ostlight.select(settings(selector={"name": "best_of", "options": options}))
    notes = json.loads((selection.folder.path / "selector" / "notes.json").read_text())
    assert "step_size" in notes
    assert UTILITY not in notes


def test_the_score_shown_is_the_first_candidates(settings):
    candidates = [{"name": "loss"}, {"name": "length"}, {"name": "el2n"}]
    config = settings(selector={"name": "best_of", "options": {"steps": 2, "candidates": candidates}})
    selection = ostlight.select(config, "budget.count=5")
    scores = Scores.read(selection.folder.scores)
    parts = {
        label: Scores.read(selection.folder.path / "dependencies" / label / "scores")
        for label in ("1-loss", "2-length", "3-el2n")
    }
    assert scores.score.tolist() == parts["1-loss"].score.tolist() == (-scores.column("loss")).tolist()
    assert scores.column("2-length.score").tolist() == parts["2-length"].score.tolist()
    assert scores.column("3-el2n.el2n").tolist() == parts["3-el2n"].column("el2n").tolist()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"candidates": [{"name": "ost"}]}, "at least two"),
        ({"candidates": [{"name": "ost"}, {"name": "ost"}]}, "two are called 'ost'"),
        ({"candidates": [{"name": "ost"}, {"name": "active"}]}, "'active' selects samples without answers"),
        ({"candidates": [{"name": "ost"}, {"name": "oost"}]}, "unknown selector 'oost'"),
        ({"repeats": 1}, "repeats must be at least 2 with rule=one_standard_error"),
        ({"rule": "best"}, "rule must be one of one_standard_error, lowest; .*got 'best'"),
        ({"steps": 0}, "steps must be a whole number, at least 1, or null; got 0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], match: str):
    with pytest.raises((ConfigError, SelectorError), match=match):
        create("best_of", options)


def test_a_candidate_that_a_group_forgets_is_refused(logged):
    """The ranking has the lowest mean loss, and ten times the loss of one task after a random subset."""
    noise = np.random.default_rng(0)

    def loss(rows: set[int]) -> TrialLoss:
        ranking = rows == SUBSETS["ost"]
        by_group = {name: 0.5 + 0.01 * noise.random() for name in "ab"}
        by_group["c"] = 5.0 if ranking else 0.5
        return TrialLoss(0.25 if ranking else 0.75, by_group)

    run = Run(loss)
    rows = best_of(refuse_worse_groups=True).select(run.scores(), BUDGET)
    assert set(rows.tolist()) == SUBSETS["random"]
    note = json.loads(json.dumps(run.notes["best_of"], allow_nan=False))
    assert note["refused"] == {"ost": ["c", pytest.approx(10)]}
    assert "refused: ost: after it the loss of 'c' is 10.00 times that after a random subset" in logged()
    assert set(best_of().select(Run(loss).scores(), BUDGET).tolist()) == SUBSETS["random"]
    by_mean = best_of(refuse_worse_groups=False)
    assert set(by_mean.select(Run(loss).scores(), BUDGET).tolist()) == SUBSETS["ost"]


def test_noise_within_groups_refuses_nobody():
    """Two subsets of the same loss, 7 groups, 2 repeats: the false alarm rate over 300 draws."""
    rng = np.random.default_rng(1)
    draw = lambda: [{g: float(np.exp(0.1 * rng.standard_normal())) for g in "abcdefg"} for _ in range(2)]  # noqa: E731
    alarms = sum(worst_group(draw(), draw(), gain=0.0) is not None for _ in range(300))
    assert alarms < 30


def test_a_group_may_lose_less_than_all_gain():
    """A small loss that trebles is no forgotten task."""
    before = [{"a": 0.4, "b": 0.01}, {"a": 0.41, "b": 0.0101}]
    after = [{"a": 0.1, "b": 0.03}, {"a": 0.102, "b": 0.0303}]
    assert worst_group(after, before, gain=0.14) is None
    assert worst_group(after, before, gain=0.01) == ("b", pytest.approx(3))
    assert worst_group(before, after, gain=-0.14) == ("a", pytest.approx(4, rel=0.02))


@pytest.mark.parametrize("options", [{"repeats": 1, "rule": "lowest"}, {"candidates": ["ost", "loss"]}])
def test_refusing_needs_a_random_candidate_and_repeats(options: dict[str, Any]):
    if "candidates" in options:
        options = {"candidates": [{"name": name} for name in options["candidates"]]}
    with pytest.raises(ConfigError, match="refuse_worse_groups compares with a candidate random"):
        create("best_of", options | {"refuse_worse_groups": True})


def test_a_random_subset_that_diverged_once_or_is_empty_refuses_nobody(logged, monkeypatch):
    run = Run()

    def loss(rows: set[int]) -> TrialLoss:
        if rows == SUBSETS["random"] and run.repeats[-1] == 1:
            return TrialLoss(math.inf)
        return TrialLoss(
            0.25 if rows == SUBSETS["ost"] else 0.75, {"a": 0.5, "c": 5.0 if rows == SUBSETS["ost"] else 0.5}
        )

    run.loss = loss
    selector = best_of(refuse_worse_groups=True)
    assert set(selector.select(run.scores(), BUDGET).tolist()) == SUBSETS["ost"]
    assert "random, which the others are compared with, diverged in a trial" in logged()
    assert "no candidate is refused" not in logged()
    monkeypatch.setattr(type(selector.candidates[1]), "select", lambda *_: [])
    selector.select(run.scores(), BUDGET)
    assert "random, which the others are compared with, keeps no sample" in logged()
    assert "no candidate is refused" not in logged()


def test_another_preference_of_the_first_candidate_is_not_taken_for_the_same_scores():
    """Its column is in the table of another candidate, which knows no preference."""
    choices = [
        {"candidates": [{"name": "loss", "options": {"prefer": prefer}}, {"name": "ost"}]} for prefer in ("low", "high")
    ]
    low, high = (create("best_of", options) for options in choices)
    assert low.dependencies() == high.dependencies()
    assert low.fingerprints() != high.fingerprints()


def test_it_draws_where_a_candidate_draws():
    assert not best_of().stochastic_selection
    drawing = {"name": "ost", "options": {"selection": "sample"}, "label": "sampled"}
    assert create("best_of", {"candidates": [TOP, drawing]}).stochastic_selection


def test_without_groups_nobody_is_refused(logged):
    run = Run(lambda rows: 0.25 if rows == SUBSETS["ost"] else 0.75)
    best_of(refuse_worse_groups=True).select(run.scores(), BUDGET)
    assert "no candidate is refused" in logged()


@pytest.mark.parametrize(("records", "steps"), [(60, 25), (9_600, 50), (1_000_000, 100)])
def test_trials_take_no_longer_than_scoring_unless_they_would_say_nothing(records: int, steps: int):
    one_pass = best_of(repeats=1, rule="lowest")
    assert one_pass.trials_at_most(records, 32) == (6, steps)
    assert best_of(repeats=1, rule="lowest", steps=100).trials_at_most(records, 32) == (6, 100)


def test_the_log_says_how_many_trials_there_are_and_that_they_are_smaller(logged):
    run = Run()
    best_of().select(run.scores(), BUDGET)
    distinct = len(set(map(frozenset, SUBSETS.values())))
    lines = logged()
    assert f"{2 * distinct} trials on the proxy: {distinct} different subsets, 2 orders of each, 25 steps" in lines
    assert "trials: 25 steps instead of 100" in lines


EXACT = {"name": "ost", "options": {"estimator": "exact"}, "label": "exact"}


def with_exact(scores: Scores, exact: np.ndarray) -> Scores:
    """The table of best_of with another candidate's utilities, which have no ``alignment``."""
    return scores.with_columns({"2-ost.score": exact, "3-random.score": RANDOM})


@pytest.mark.parametrize("tag", [None, "task", "gradients.cluster"])
def test_a_candidate_reads_no_column_of_another(tag: str | None):
    run = Run(lambda positions: float(np.exp(SLOPES[list(positions)].mean())))  # least where the slope is
    opposite = -SLOPES
    budget = Budget(count=12, stratify_by=tag)
    selector = create("best_of", {"candidates": [TOP, EXACT, {"name": "random"}]})
    rows = selector.select(with_exact(run.scores(), opposite), budget)
    assert run.notes["best_of"]["selected"] == "exact"
    assert len(rows) == 12
    if tag is None:
        assert (opposite[rows] > 0).all(), "admitted by its own utility"


def test_a_first_candidate_that_keeps_nothing_is_not_the_end():
    run = Run()
    ifd = {"1-ifd.score": np.zeros(ROWS), "1-ifd.ifd": np.full(ROWS, 2.0), "score": np.zeros(ROWS)}
    scores = run.scores().with_columns(ifd | {"ifd": np.full(ROWS, 2.0)})
    rows = create("best_of", {"candidates": [{"name": "ifd"}, {"name": "random"}, {"name": "loss"}]}).select(
        scores.with_columns({"3-loss.score": -LOSSES}), BUDGET
    )
    assert len(rows) == 12
    assert list(run.notes["best_of"]["losses"]) == ["random", "loss"]


def test_where_no_candidate_keeps_anything_nothing_is_tried():
    run = Run()
    two = [{"name": "ifd"}, {"name": "ifd", "label": "again"}]
    scores = run.scores().with_columns({"ifd": np.full(ROWS, 2.0), "1-ifd.score": np.zeros(ROWS)})
    assert not len(create("best_of", {"candidates": two}).select(scores, BUDGET))
    assert not run.tried


def test_strata_by_gradient_need_one_candidate_that_stores_them():
    budget = Budget(count=12, stratify_by="gradients.cluster")
    create("best_of", {"candidates": [TOP, {"name": "ost", "label": "filter"}]}).check_budget(budget)
    with pytest.raises(SelectorError, match="gradients.cluster"):
        create("best_of", {"candidates": [{"name": "ost"}, {"name": "random"}]}).check_budget(budget)

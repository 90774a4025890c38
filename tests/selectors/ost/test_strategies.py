"""``selection: filter``, ``sample`` and ``round_robin`` against brute force, and what they do at the edges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import ostlight
from ostlight.config.budget import Budget
from ostlight.errors import ConfigError, DataError
from ostlight.pipeline.scoring.rows import to_table
from ostlight.selection.random_numbers import uniform_by_id
from ostlight.selection.registry import create
from ostlight.selection.scores import Scores, SelectionContext
from ostlight_selectors.ost import ANCHOR_SCALE, BY_ANCHOR, in_half_precision
from ostlight_selectors.ost.filter import sign_confidence
from ostlight_selectors.ost.round_robin import take_turns

ROWS, ANCHORS = 200, 7
RNG = np.random.default_rng(5)
BY_ANCHOR_VALUES = RNG.standard_normal((ROWS, ANCHORS)) + 0.3 * RNG.standard_normal((ROWS, 1))
ALIGNMENTS = BY_ANCHOR_VALUES.mean(1)
ADMITTED = ALIGNMENTS > 0
SCALES = np.abs(BY_ANCHOR_VALUES).max(1)
STORED = (BY_ANCHOR_VALUES / SCALES[:, None]).astype(np.float16)
LOSSES = RNG.random(ROWS)
TASKS = np.array(list("aabbc" * (ROWS // 5)))
TOKENS = RNG.integers(5, 40, ROWS)


def table(**changes: np.ndarray) -> Scores:
    columns = {"score": ALIGNMENTS, "alignment": ALIGNMENTS, "loss": LOSSES, "gradient_norm": 1 + LOSSES} | changes
    rows = [
        {
            "position": i,
            "id": str(i),
            "state": "ok",
            "tags": [("task", TASKS[i])],
            "tokens": int(TOKENS[i]),
            "phi": BY_ANCHOR_VALUES[i, :4].tolist(),
            BY_ANCHOR: (BY_ANCHOR_VALUES[i] / SCALES[i]).astype(np.float16),
            ANCHOR_SCALE: SCALES[i],
        }
        | {name: float(values[i]) for name, values in columns.items()}
        for i in range(len(columns["score"]))
    ]
    return Scores(to_table(rows))


def in_run(scores: Scores, seed: int, notes: dict[str, Any] | None = None) -> Scores:
    noted = {} if notes is None else notes
    return scores.with_context(SelectionContext(lambda *_: 0.0, list, noted.__setitem__, seed))


def turns(utilities: np.ndarray, wanted: int) -> np.ndarray:
    return take_turns(lambda anchor: utilities[:, anchor], utilities.shape[1], wanted)


def select(scores: Scores, budget: Budget, **options: Any) -> np.ndarray:
    return np.asarray(create("ost", options).select(scores, budget))


def test_filter_is_a_random_subset_of_the_admitted():
    expected = sorted(np.flatnonzero(ADMITTED), key=lambda i: uniform_by_id(3, [str(i)])[0])[:40]
    notes: dict[str, Any] = {}
    rows = select(in_run(table(), 3, notes), Budget(count=40), selection="filter")
    assert rows.tolist() == expected
    assert set(rows) != set(select(in_run(table(), 4), Budget(count=40), selection="filter"))
    assert notes["admitted"]["samples"] == ADMITTED.sum()
    for task, share in notes["admitted"]["by_tag"]["task"].items():
        assert share == pytest.approx(ADMITTED[task == TASKS].mean())


def test_filter_does_not_depend_on_the_pools_order():
    order = np.random.default_rng(1).permutation(ROWS)
    rows = select(table().take(order), Budget(count=40), selection="filter")
    assert order[rows].tolist() == select(table(), Budget(count=40), selection="filter").tolist()


def test_filter_gives_strata_their_shares():
    rows = select(table(), Budget(count=50, stratify_by="task"), selection="filter")
    assert {task: int((TASKS[rows] == task).sum()) for task in "abc"} == {"a": 20, "b": 20, "c": 10}
    assert ADMITTED[rows].all()


def test_filter_keeps_to_a_token_budget():
    rows = select(table(), Budget(tokens=500), selection="filter")
    assert 460 < TOKENS[rows].sum() <= 500
    assert ADMITTED[rows].all()


@pytest.mark.parametrize(("then", "sign"), [("loss", -1), ("-loss", 1)])
def test_filter_then_a_column(then: str, sign: int):
    admitted = np.flatnonzero(ADMITTED)
    expected = admitted[np.argsort(sign * LOSSES[admitted])][:30]
    assert select(table(), Budget(count=30), selection="filter", then=then).tolist() == expected.tolist()


def test_filter_then_coverage_takes_clusters_in_turn():
    rows = select(table(), Budget(count=30), selection="filter", then="coverage")
    assert ADMITTED[rows].all()
    assert len(set(rows)) == 30
    bare = Scores(table().table.drop_columns(["phi"]))
    with pytest.raises(DataError, match="phi"):
        select(bare, Budget(count=30), selection="filter", then="coverage")


def test_too_few_admitted_are_filled_up_with_the_closest(logged):
    rows = select(table(), Budget(fraction=0.8), selection="filter")
    few = int(ADMITTED.sum())
    assert set(rows[:few]) == set(np.flatnonzero(ADMITTED))
    rest = np.flatnonzero(~ADMITTED)
    assert rows[few:].tolist() == rest[np.argsort(-ALIGNMENTS[rest])][: 160 - few].tolist()
    assert f"{160 - few} of 160 selected samples are not admitted" in logged()


@pytest.mark.parametrize("shift", [-100.0, 100.0])
def test_nobody_or_everybody_admitted(shift: float, logged):
    rows = select(table(alignment=ALIGNMENTS + shift), Budget(count=40), selection="filter")
    assert len(rows) == 40
    said = logged()
    assert ("not admitted" in said) == (shift < 0)
    assert ("hardly more than a plain random one" in said) == (shift > 0)


@pytest.mark.parametrize(("share", "warned"), [(0.85, False), (0.95, True)])
def test_a_draw_among_nearly_all_is_said_to_be_hardly_a_selection(share: float, warned: bool, logged):
    shift = 1e-9 - np.sort(ALIGNMENTS)[round((1 - share) * len(ALIGNMENTS))]
    select(table(alignment=ALIGNMENTS + shift), Budget(count=40), selection="filter")
    assert ("hardly more than a plain random one" in logged()) == warned


def test_exact_has_no_alignment_and_admits_by_the_utility():
    scores = Scores(table().table.drop_columns(["alignment"]))
    assert ADMITTED[select(scores, Budget(count=40), selection="filter")].all()


@pytest.mark.parametrize("then", ["los", "id", "phi", "tags", "reason"])
def test_what_is_no_column_of_numbers_is_named_with_those_there_are(then: str):
    with pytest.raises(DataError, match=rf"then={then} .* random, coverage, .*loss"):
        select(table(), Budget(count=40), selection="filter", then=then)


def test_with_a_threshold_only_the_admitted_are_kept(logged):
    rows = select(table(score=-ALIGNMENTS), Budget(threshold=-0.2), selection="filter")
    assert set(rows) == set(np.flatnonzero(ADMITTED & (-ALIGNMENTS >= -0.2)))
    assert "not admitted" not in logged()


def test_tags_of_many_values_are_not_noted(monkeypatch):
    monkeypatch.setattr("ostlight_selectors.ost.filter.MOST_VALUES", 2)
    notes: dict[str, Any] = {}
    select(in_run(table(), 0, notes), Budget(count=20), selection="filter")
    assert notes["admitted"]["by_tag"] == {}


def test_half_precision_holds_utilities_of_any_size():
    """A short step makes utilities of 1e-11 nats, which half precision alone would make 0."""
    for size in (1e-11, 1.0, 1e6):
        columns = in_half_precision((size * BY_ANCHOR_VALUES[:3]).tolist())
        found = np.array(columns[BY_ANCHOR], dtype=np.float64) * np.array(columns[ANCHOR_SCALE])[:, None]
        np.testing.assert_allclose(found, size * BY_ANCHOR_VALUES[:3], atol=1e-3 * size * 4)
    assert in_half_precision([None, [0.0, 0.0]])[ANCHOR_SCALE] == [None, 0.0]


def test_confidence_is_the_bootstraps():
    """The normal approximation against 4,000 resamples of 100 anchors."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((30, 100)) + rng.normal(0, 0.15, (30, 1))
    draws = rng.integers(0, 100, (4000, 100))
    share = (values[:, draws].mean(2) > 0).mean(1)
    assert np.abs(sign_confidence(values) - share).max() < 0.03
    assert sign_confidence(np.array([[1.0, 1.0], [-1.0, -1.0], [0.0, 0.0]])).tolist() == [1.0, 0.0, 0.5]


def test_min_confidence_admits_fewer():
    notes: dict[str, Any] = {}
    options = {"selection": "filter", "min_confidence": 0.9, "utility_by_anchor": True}
    select(in_run(table(), 0, notes), Budget(count=20), **options)
    expected = ADMITTED & (sign_confidence(STORED) >= 0.9)
    assert notes["admitted"]["samples"] == expected.sum() < ADMITTED.sum()
    confidence = sign_confidence(STORED)
    assert notes["admitted"]["sure"] == ((confidence >= 0.95) | (confidence <= 0.05)).mean()
    with pytest.raises(DataError, match="utility_by_anchor"):
        select(Scores(table().table.drop_columns([BY_ANCHOR])), Budget(count=20), **options)


def test_sample_goes_from_the_ranking_to_a_uniform_draw():
    ranked = set(np.argsort(-ALIGNMENTS)[:40])
    cold = set(select(in_run(table(), 1), Budget(count=40), selection="sample", temperature=1e-6))
    hot = set(select(in_run(table(), 1), Budget(count=40), selection="sample", temperature=1e9))
    assert cold == ranked
    assert hot == set(np.argsort([-u for u in uniform_by_id(1, map(str, range(ROWS)))])[:40])


def test_sample_draws_in_proportion_to_the_exponential():
    """Of three samples one is drawn; 1,000 seeds against the softmax."""
    scores = table(score=np.array([0.0, 1.0, 2.0]), alignment=np.ones(3))
    spread = 1.0 / 1.349
    weights = np.exp((np.array([0.0, 1.0, 2.0]) - 1) / spread)
    drawn = [select(in_run(scores, s), Budget(count=1), selection="sample")[0] for s in range(1000)]
    assert np.abs(np.bincount(drawn, minlength=3) / 1000 - weights / weights.sum()).max() < 0.05


def test_sample_prefers_higher_utilities_where_most_are_equal():
    score = np.where(np.arange(ROWS) < 160, 0.0, 1.0)
    rows = select(table(score=score), Budget(count=40), selection="sample", temperature=0.1)
    assert score[rows].mean() > 0.9


@pytest.mark.parametrize("wanted", [1, 40, ROWS])
@pytest.mark.parametrize("ties", [False, True])
def test_round_robin_is_brute_force(wanted: int, ties: bool):
    values = np.round(BY_ANCHOR_VALUES, 0 if ties else 9).astype(np.float32)
    expected: list[int] = []
    active = list(range(ANCHORS))
    while active and len(expected) < wanted:
        for a in list(active):
            left = [i for i in range(ROWS) if i not in expected and values[i, a] > 0]
            if not left:
                active.remove(a)
            elif len(expected) < wanted:
                expected.append(min(left, key=lambda i: (-values[i, a], i)))
    assert turns(values, wanted).tolist() == expected


def test_round_robin_normalizes_and_fills_up():
    stored = STORED.astype(np.float32) * SCALES[:, None].astype(np.float32)
    scaled = stored * (1 / (1 + LOSSES)).astype(np.float32)[:, None]
    assert select(table(), Budget(count=20), selection="round_robin").tolist() == turns(scaled, 20).tolist()
    helped = (BY_ANCHOR_VALUES > 0).any(1)
    rows = select(table(), Budget(fraction=1.0), selection="round_robin")
    assert sorted(rows) == list(range(ROWS))
    assert helped[rows[: helped.sum()]].all()
    with pytest.raises(DataError, match="utility_by_anchor=true"):
        select(Scores(table().table.drop_columns([BY_ANCHOR])), Budget(count=20), selection="round_robin")


def test_a_gradient_of_rounding_alone_takes_no_turn():
    """Its utilities are noise, and divided by next to nothing they would be the largest."""
    norms = np.where(np.arange(ROWS) == 7, 1e-17, 1.0)
    scores = table(gradient_norm=norms)
    assert 7 not in select(scores, Budget(count=60), selection="round_robin")


def test_round_robin_keeps_to_tokens():
    everything = select(table(), Budget(fraction=1.0), selection="round_robin")
    rows = select(table(), Budget(tokens=500), selection="round_robin")
    assert rows.tolist() == everything[np.cumsum(TOKENS[everything]) <= 500].tolist()


def test_round_robin_keeps_to_a_threshold():
    rows = select(table(), Budget(threshold=0.2), selection="round_robin")
    assert set(rows) == set(np.flatnonzero(ALIGNMENTS >= 0.2))


def test_an_anchor_nobody_helps_takes_no_turn():
    values = np.array([[-1.0, 3.0], [-1.0, 2.0], [-1.0, 1.0]])
    assert turns(values, 3).tolist() == [0, 1, 2]
    assert turns(-np.ones((3, 2)), 2).tolist() == []
    assert turns(np.array([[np.nan], [1.0]]), 2).tolist() == [1]


@pytest.mark.parametrize(
    "options",
    [
        {"rank": 4, "estimator": "exact"},
        {"probes": 4, "estimator": "first_order"},
        {"damping": 0.1, "step": "sgd"},
        {"damping": 0.1, "selection": "top"},
        {"then": "loss", "selection": "top"},
        {"admit": "own_group", "selection": "top"},
        {"temperature": 2.0},
        {"normalize": True, "selection": "filter"},
        {"set_batch_size": 8},
        {"min_confidence": 0.9, "selection": "filter"},
        {"utility_by_anchor": True, "estimator": "finite_difference"},
    ],
)
def test_an_option_that_nothing_reads_is_refused(settings, options: dict[str, Any]):
    with pytest.raises(ConfigError) as error:
        ostlight.select(settings(selector={"name": "ost", "options": options}))
    assert any(next(iter(options)) in problem for problem in error.value.problems)


@pytest.mark.parametrize("selection", ["filter", "round_robin", "sample"])
def test_in_a_run(settings, selection: str):
    options = {"estimator": "projected", "rank": 4, "parameters": "last:1", "utility_by_anchor": True}
    options |= {"selection": selection, "step": "kfac"}
    found = ostlight.select(settings(selector={"name": "ost", "options": options}))
    scores = Scores.read(found.folder.scores)
    by_anchor = scores.column(BY_ANCHOR).astype(np.float64) * scores.column(ANCHOR_SCALE)[:, None]
    assert by_anchor.shape == (len(scores), 14)
    assert by_anchor.mean(1) == pytest.approx(scores.score, rel=2e-3, abs=1e-3 * np.abs(scores.score).max())
    assert len(found.kept) == 10


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"selection": "filter"}, {"selection": "sample"}, {"selection": "round_robin"}])
def test_a_million_samples_in_a_tenth_of_the_time_that_ten_million_have(options: dict[str, Any]):
    import time

    import pyarrow as pa

    count = 1_000_000
    rng = np.random.default_rng(0)
    small = table().table
    columns: dict[str, Any] = {
        "position": np.arange(count),
        "id": np.arange(count).astype(str),
        "state": np.full(count, "ok"),
        "score": rng.standard_normal(count),
        "alignment": rng.standard_normal(count),
        "gradient_norm": np.ones(count),
    }
    arrays = {name: pa.array(values) for name, values in columns.items()}
    arrays["tags"] = pa.array([[("task", "a")]] * count, small.schema.field("tags").type)
    by_anchor = rng.standard_normal(count * 100, dtype=np.float32).astype(np.float16)
    arrays[ANCHOR_SCALE] = pa.array(np.ones(count))
    arrays[BY_ANCHOR] = pa.FixedSizeListArray.from_arrays(pa.array(by_anchor), 100)
    scores = Scores(pa.table(arrays))
    start = time.process_time()
    rows = select(scores, Budget(fraction=0.2), **options)
    assert len(set(rows.tolist())) == count // 5
    assert time.process_time() - start < 6


def grouped(groups: list[str], notes: dict[str, Any] | None = None) -> tuple[Scores, np.ndarray]:
    """Rows with utilities by group, the columns in sorted order of ``groups``; the mean over groups is the score."""
    by_group = np.random.default_rng(8).standard_normal((ROWS, len(set(groups))))
    scores = table(score=by_group.mean(1), alignment=by_group.mean(1)).with_columns({"utility_by_group": [*by_group]})
    noted = {} if notes is None else notes
    context = SelectionContext(lambda *_: 0.0, lambda: groups, noted.__setitem__, 1, group_tag="task")
    return scores.with_context(context), by_group


def test_filter_by_own_group_admits_what_helps_the_samples_group():
    notes: dict[str, Any] = {}
    scores, by_group = grouped(["b", "a", "a"], notes)  # no anchor of task c
    admitted = np.where(TASKS == "a", by_group[:, 0], np.where(TASKS == "b", by_group[:, 1], by_group.mean(1))) > 0
    rows = select(scores, Budget(count=int(admitted.sum())), selection="filter", admit="own_group")
    assert sorted(rows) == np.flatnonzero(admitted).tolist()
    assert notes["admitted"]["samples"] == admitted.sum()


def test_filter_with_no_group_hurt_admits_no_rise_above_the_mean_gain():
    scores, by_group = grouped(["a", "b", "c"])
    mean = by_group.mean(1)
    admitted = (mean > 0) & (by_group.min(1) > -mean)
    assert 0 < admitted.sum() < (mean > 0).sum()
    rows = select(scores, Budget(count=int(admitted.sum())), selection="filter", admit="no_group_hurt")
    assert sorted(rows) == np.flatnonzero(admitted).tolist()


def test_filter_by_groups_needs_groups():
    for admit in ("own_group", "no_group_hurt"):
        with pytest.raises(DataError, match=r"anchors\.group"):
            select(in_run(table(), 1), Budget(count=4), selection="filter", admit=admit)
        with pytest.raises(ConfigError, match="finite_difference"):
            create("ost", {"estimator": "finite_difference", "selection": "filter", "admit": admit})
    ungrouped = grouped(["a", "b"])[0].with_context(SelectionContext(lambda *_: 0.0, list, {}.__setitem__, 1))
    with pytest.raises(DataError, match=r"anchors\.group"):
        select(ungrouped, Budget(count=4), selection="filter", admit="own_group")

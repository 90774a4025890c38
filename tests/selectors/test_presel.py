"""PreSel against its formulas, written out."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

import ostlight
from ostlight.config.budget import Budget
from ostlight.data.sample import Sample
from ostlight.errors import DataError, ModelError, SelectorError
from ostlight.models.batch import Batch
from ostlight.pipeline.scoring.rows import scored_rows, to_table
from ostlight.selection.context import ScoringContext
from ostlight.selection.registry import create
from ostlight.selection.scores import Scores
from ostlight_selectors.embed import rows_by_cluster
from ostlight_selectors.presel import PreSel, neighbour_centrality, task_shares, without_instruction


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def scored(tmp_path, monkeypatch):
    """Scores for vectors, tasks and instruction relevances given by hand; ids are ``s000`` and so on."""

    def make(vectors, tasks, relevance=lambda id: 0.5, order=None, tokens=None, seed=0, **options) -> Scores:
        half = np.asarray(vectors, dtype=np.float16)
        order = np.arange(len(half)) if order is None else np.asarray(order)
        samples = [
            Sample(f"s{k:03d}", (), position=p, tags={"task": tasks[k]} if tasks[k] else {"other": "x"})
            for p, k in enumerate(order)
        ]
        embedded = to_table(scored_rows(Batch(samples), {"score": np.zeros(len(half)), "embedding": list(half[order])}))
        selector = create("presel", options)
        monkeypatch.setattr(
            PreSel, "_relevance", lambda self, batch: torch.tensor([relevance(s.id) for s in batch.samples]).double()
        )
        monkeypatch.setattr(Batch, "rows", lambda self, rows: Batch([self.samples[row] for row in rows]))
        selector.model = None
        context = ScoringContext([], [], seed, tmp_path, dependencies={"embed": embedded})
        super(PreSel, selector).setup(context)
        table = to_table(scored_rows(Batch(samples), selector.score(Batch(samples))))
        scores = Scores(table)
        return scores if tokens is None else scores.with_tokens(np.asarray(tokens)[order][scores.positions])

    return make


VECTORS = np.random.default_rng(0).normal(size=(60, 6))
TASKS = ["count"] * 30 + ["read"] * 20 + ["sort"] * 10


def test_the_instruction_is_removed_and_the_images_and_answers_stay(proxy, samples, selector_setting):
    model = proxy("float64")
    (batch,) = model.batches(samples("pool")[:5], 100_000)
    selector = create("presel")
    selector.model = model
    relevance = selector._relevance(batch)
    for k, sample in enumerate(batch.samples):
        bare = without_instruction(sample)
        assert [turn.text for turn in bare.turns if not turn.trained] == ["<image>"]
        assert [turn for turn in bare.turns if turn.trained] == [turn for turn in sample.turns if turn.trained]
        assert bare.images == sample.images
        (alone,) = model.batches([bare], 1)
        with torch.no_grad():
            expected = model.losses(batch.rows([k])) / model.losses(alone)
        assert float(relevance[k]) == pytest.approx(float(expected), rel=1e-9)


def test_a_run_measures_the_reference_share_of_every_task_alone(settings):
    options = {"reference": 0.3, "clusters": 2}
    choice = {"name": "presel", "options": options}
    selection = ostlight.select(settings(selector=choice), "budget.count=20")
    scores = Scores.read(selection.folder.scores)
    tasks, is_reference = scores.tag("task"), scores.column("is_reference").astype(bool)
    for task in set(tasks):
        of_task = tasks == task
        assert is_reference[of_task].sum() == max(1, round(0.3 * of_task.sum()))
    relevance = scores.column("instruction_relevance")
    assert (np.isfinite(relevance) == is_reference).all()
    assert len(selection.kept) == 20
    assert set(np.flatnonzero(is_reference)) <= set(selection.kept)
    wider = ostlight.select(settings(selector=choice), "budget.fraction=1.0")
    assert len(wider.kept) == len(scores)


def test_the_score_is_the_mean_cosine_with_the_nearest_of_the_cluster(scored):
    scores = scored(VECTORS, TASKS, clusters=3, neighbours=4)
    vectors, clusters, tasks = unit(VECTORS.astype(np.float16).astype(float)), scores.column("cluster"), np.array(TASKS)
    for members in rows_by_cluster(clusters):
        assert len(set(tasks[members])) == 1
        for i in members:
            cosines = sorted((vectors[i] @ vectors[j] for j in members if j != i), reverse=True)[:4]
            assert scores.score[i] == pytest.approx(np.mean(cosines) if cosines else 0, abs=1e-5)


def test_shares_are_a_softmax_of_what_the_instruction_leaves_unsaid():
    relevance = np.array([0.2, 0.5, 0.9])
    weights = np.exp(-relevance * np.sqrt(3))
    np.testing.assert_allclose(task_shares(relevance, None), weights / weights.sum())
    weights = np.exp(-relevance / 0.1)
    np.testing.assert_allclose(task_shares(relevance, 0.1), weights / weights.sum())
    assert task_shares(np.array([700.0, 1.0]), 1e-6).tolist() == [0, 1]
    assert task_shares(np.array([3.0]), None).tolist() == [1]


def test_the_budget_is_shared_over_tasks_by_relevance_and_over_clusters_by_size(scored):
    of_task = {"count": 0.9, "read": 0.4, "sort": 0.2}
    relevance = {f"s{k:03d}": of_task[task] for k, task in enumerate(TASKS)}
    options = {"clusters": 2, "keep_reference": False, "temperature": 0.5}
    scores = scored(VECTORS, TASKS, relevance.__getitem__, **options)
    kept = create("presel", options).select(scores, Budget(count=12))
    tasks, clusters = np.array(TASKS), scores.column("cluster")
    weights = np.exp(-np.array([0.9, 0.4, 0.2]) / 0.5)
    exact = 12 * weights / weights.sum()
    for task, share in zip(("count", "read", "sort"), exact, strict=True):
        mine = kept[tasks[kept] == task]
        assert abs(len(mine) - share) < 1
        for cluster in set(clusters[tasks == task]):
            members = np.flatnonzero(clusters == cluster)
            kept_here = [row for row in mine if row in members]
            assert abs(len(kept_here) - len(mine) * len(members) / (tasks == task).sum()) < 1
            best = members[np.argsort(-scores.score[members], kind="stable")][: len(kept_here)]
            assert set(kept_here) == set(best)


def test_what_a_small_task_cannot_use_goes_to_the_others(scored):
    relevance = {f"s{k:03d}": 0.0 if task == "sort" else 5.0 for k, task in enumerate(TASKS)}
    scores = scored(VECTORS, TASKS, relevance.__getitem__)
    kept = create("presel").select(scores, Budget(count=25))
    assert len(set(kept.tolist())) == 25
    assert np.sum(np.array(TASKS)[kept] == "sort") == 10


def test_the_reference_comes_first_and_may_fill_the_budget(scored, caplog):
    scores = scored(VECTORS, TASKS, reference=0.2)
    reference = set(np.flatnonzero(scores.column("is_reference")))
    assert len(reference) == 12
    kept = create("presel").select(scores, Budget(count=20))
    assert set(kept[:12]) == reference
    with caplog.at_level(logging.WARNING, "ostlight"):
        kept = create("presel").select(scores, Budget(count=6))
    assert len(kept) == 6
    assert set(kept) < reference
    assert {TASKS[row] for row in kept[:3]} == set(TASKS)
    assert "6 of 12 reference samples" in caplog.text
    without = create("presel", {"keep_reference": False}).select(scores, Budget(count=60))
    assert sorted(without) == list(range(60))


def test_budgets_by_tokens_are_kept_to(scored):
    tokens = np.random.default_rng(1).integers(1, 9, 60)
    scores = scored(VECTORS, TASKS, tokens=tokens)
    for size in (3, 40, 150):
        kept = create("presel").select(scores, Budget(tokens=size))
        assert len(set(kept.tolist())) == len(kept)
        assert tokens[kept].sum() <= size
    assert tokens[kept].sum() > 130
    with pytest.raises(SelectorError, match="threshold|fraction"):
        create("presel").select(scores, Budget(threshold=0.5))


def test_the_pools_order_decides_nothing_and_the_seed_draws_the_reference(scored):
    def outcome(**changes):
        scores = scored(VECTORS, TASKS, **changes)
        kept = create("presel").select(scores, Budget(count=20))
        return {scores.ids[row] for row in kept}, {scores.ids[k] for k in np.flatnonzero(scores.column("is_reference"))}

    assert outcome() == outcome() == outcome(order=np.arange(60)[::-1])
    assert outcome(seed=1)[1] != outcome()[1]


def test_one_task_few_samples_and_more_clusters_than_samples(scored):
    scores = scored(VECTORS[:7], ["count"] * 7, clusters=50)
    assert scores.score.tolist() == [0] * 7  # each alone in its cluster
    assert len(create("presel").select(scores, Budget(count=3))) == 3
    alone = scored(VECTORS[:1], ["count"])
    assert create("presel").select(alone, Budget(fraction=1.0)).tolist() == [0]
    same = scored(np.repeat(VECTORS[:1], 5, axis=0), ["count"] * 5, clusters=3)
    assert same.score == pytest.approx([1] * 5, abs=1e-6)


def test_a_pool_without_the_tag_is_refused_and_samples_without_it_are_a_task(scored):
    with pytest.raises(DataError, match="no sample has a tag 'task'"):
        scored(VECTORS[:4], [None] * 4)
    scores = scored(VECTORS[:10], ["count"] * 5 + [None] * 5)
    kept = create("presel").select(scores, Budget(count=4))
    assert len({bool(row < 5) for row in kept}) == 2


def test_a_reference_sample_that_cannot_be_measured_is_rejected_and_its_task_stays(scored, caplog):
    unmeasured = {f"s{k:03d}" for k, task in enumerate(TASKS) if task == "sort"}
    scores = scored(VECTORS, TASKS, lambda id: float("nan") if id in unmeasured else 0.5)
    assert len(scores) == 59
    with caplog.at_level(logging.WARNING, "ostlight"):
        kept = create("presel").select(scores, Budget(count=30))
    assert "'sort'" in caplog.text
    assert len(kept) == 30
    tasks = scores.tag("task")
    assert np.sum(tasks[kept] == "sort") > 5  # as many as the other tasks, of which no relevance differs
    nothing = scored(VECTORS, TASKS, lambda id: float("inf"))
    assert len(nothing) == 60 - 4
    assert len(create("presel").select(nothing, Budget(count=28))) == 28


def test_samples_without_an_image_are_rejected_and_text_only_models_refused(
    proxy, samples, selector_setting, monkeypatch
):
    (choice,) = create("presel").dependencies()
    assert choice.options == {"tokens": "image"}
    (choice,) = create("presel", {"embedding": {"source": "folder"}}).dependencies()
    assert choice.options == {"source": "folder", "tokens": "image"}
    model = proxy("float64")
    embed = create("embed", {"tokens": "image"})
    embed.setup(selector_setting(model))
    sample = samples("pool")[0]
    turns = tuple(replace(turn, text=turn.text.replace("<image>", "")) for turn in sample.turns)
    (batch,) = model.batches([replace(sample, turns=turns, images=())], 10_000)
    table = to_table(scored_rows(batch, embed.score(batch)))
    selector = create("presel")
    selector.setup(selector_setting(model, dependencies={"embed": table}))
    columns = selector.score(batch)
    assert [failure.reason for failure in columns["failure"]] == ["no_image"]
    monkeypatch.setattr(type(model.encoder), "image_token_id", None)
    with pytest.raises(ModelError, match="text-only"):
        embed.setup(selector_setting(model))


def test_centrality_equals_brute_force_on_2000_samples():
    vectors = unit(np.random.default_rng(3).normal(size=(2000, 8))).astype(np.float32)
    cosines = vectors.astype(float) @ vectors.T.astype(float)
    np.fill_diagonal(cosines, -2)
    expected = -np.sort(-cosines, axis=1)[:, :5]
    np.testing.assert_allclose(neighbour_centrality(vectors, 5), expected.mean(1), atol=1e-6)


def test_a_stratum_of_which_no_sample_has_the_task_is_one_task(scored):
    scores = scored(VECTORS, ["count"] * 30 + [""] * 30)
    rows = create("presel", {}).select(scores.take(np.arange(30, 60)), Budget(count=6))
    assert len(rows) == 6

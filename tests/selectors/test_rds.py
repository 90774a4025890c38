"""RDS+ against turns taken by hand."""

from __future__ import annotations

import numpy as np
import pytest

from ostlight.config.budget import Budget
from ostlight.errors import ConfigError, SelectorError
from ostlight.pipeline.scoring.rows import to_table
from ostlight.selection.registry import create
from ostlight.selection.scores import Scores
from ostlight_selectors.rds import in_rounds

RANDOM = np.random.default_rng(0)
VECTORS = RANDOM.normal(size=(20, 5))
ANCHORS = RANDOM.normal(size=(3, 5))


def cosines():
    pool, anchors = (v.astype(np.float16).astype(float) for v in (VECTORS, ANCHORS))
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (pool, anchors)]
    return unit[0] @ unit[1].T


def in_turn(similarities):
    """In each round every anchor names the next of its ranking; a sample that is already taken is passed over."""
    rankings = [np.argsort(-of_anchor, kind="stable").tolist() for of_anchor in similarities.T]
    order = []
    while len(order) < len(similarities):
        for ranking in rankings:
            named = ranking.pop(0)
            if named not in order:
                order.append(named)
    return order


def test_the_anchors_take_turns(scored_by_embeddings):
    selector = create("rds")
    scores = scored_by_embeddings(selector, VECTORS, ANCHORS)
    np.testing.assert_allclose(scores.column("similarity_by_anchor"), cosines(), atol=1e-6)
    np.testing.assert_allclose(scores.score, cosines().max(1), atol=1e-6)
    assert scores.column("nearest_anchor").tolist() == [f"a{k}" for k in cosines().argmax(1)]
    order = in_turn(cosines())
    for count in (1, 4, 20):
        assert create("rds").select(scores, Budget(count=count)).tolist() == order[:count]
    reached = [k for k in order if cosines()[k].max() >= 0.5]
    assert create("rds").select(scores, Budget(threshold=0.5)).tolist() == reached


def test_an_anchor_that_names_what_is_taken_loses_its_turn():
    similarities = np.array([[9, 9, 1], [8, 8, 2], [7, 1, 3], [1, 7, 4], [0, 0, 9]])
    # Round 1: 0, (0 again), 4; round 2: 1, (1 again), 3; round 3: 2.
    assert in_rounds(similarities).tolist() == [0, 4, 1, 3, 2] == in_turn(similarities)


def test_groups_of_anchors_take_turns_by_their_nearest_anchor(scored_by_embeddings):
    scores = scored_by_embeddings(create("rds"), VECTORS, ANCHORS, groups=["b", "a", "b"])
    found = cosines()
    by_group = np.stack([found[:, 1], found[:, [0, 2]].max(1)], axis=1)  # in the order of the names
    np.testing.assert_allclose(scores.column("similarity_by_group"), by_group, atol=1e-6)
    assert create("rds").select(scores, Budget(count=9)).tolist() == in_turn(by_group)[:9]
    np.testing.assert_allclose(scores.score, found.max(1), atol=1e-6)


def test_cosines_that_differ_in_the_last_digit_are_not_equal():
    cosines = np.float32([0.1, 0.1, 0.1])
    cosines[1] = np.nextafter(cosines[1], np.float32(1))
    rows = [
        {"position": k, "id": f"s{k}", "state": "ok", "score": float(c), "similarity_by_anchor": [c]}
        for k, c in enumerate(cosines)
    ]
    assert create("rds").select(Scores(to_table(rows)), Budget(count=2)).tolist() == [1, 0]


def test_budgets_by_tokens_follow_the_turns_until_one_does_not_fit(scored_by_embeddings):
    tokens = np.arange(1, 21)
    scores = scored_by_embeddings(create("rds"), VECTORS, ANCHORS, tokens=tokens)
    order = np.array(in_turn(cosines()))
    kept = create("rds").select(scores, Budget(tokens=60)).tolist()
    assert kept == order[np.cumsum(tokens[order]) <= 60].tolist()


def test_the_order_of_the_pool_and_rejected_samples_decide_nothing(scored_by_embeddings):
    shuffled = np.random.default_rng(1).permutation(20)
    kept = []
    for order in (np.arange(20), shuffled):
        scores = scored_by_embeddings(create("rds"), VECTORS, ANCHORS, rejected=(4, 7), order=order)
        kept.append([scores.ids[row] for row in create("rds").select(scores, Budget(count=9))])
    assert kept[0] == kept[1]
    assert not {"s004", "s007"} & set(kept[0])


def test_anchors_are_required(scored_by_embeddings):
    with pytest.raises(SelectorError, match="'rds' needs anchors"):
        scored_by_embeddings(create("rds"), VECTORS)


def test_its_embeddings_are_those_of_the_paper_unless_options_say_otherwise():
    (choice,) = create("rds").dependencies()
    assert choice.options == {"layers": [1.0], "tokens": "all", "pooling": "weighted_mean"}
    (choice,) = create("rds", {"embedding": {"tokens": "text"}}).dependencies()
    assert choice.options == {"layers": [1.0], "tokens": "text", "pooling": "weighted_mean"}
    (choice,) = create("rds", {"embedding": {"source": "folder"}}).dependencies()
    assert choice.options == {"source": "folder"}
    with pytest.raises(ConfigError, match="tokenz"):
        create("rds", {"embedding": {"tokenz": "text"}})

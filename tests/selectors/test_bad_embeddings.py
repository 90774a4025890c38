"""Pools that give an embedding selector little or nothing to work with: no error, nothing lost, no NaN."""

from __future__ import annotations

import numpy as np
import pytest

from ostlight.config.budget import Budget
from ostlight.errors import ModelError
from ostlight.selection.registry import create
from ostlight.selection.scores import Scores
from ostlight.selection.select_rows import select_rows

RANDOM = np.random.default_rng(0)
ANCHORS = RANDOM.normal(size=(3, 5))
SELECTORS = ["coincide", "facility_location", "rds", "semdedup"]
MANY = {"coincide": {"clusters": 50}, "facility_location": {"neighbours": 50}, "semdedup": {"clusters": 50}}
"""More clusters or neighbours than there are samples."""
POOLS = {
    "one sample": RANDOM.normal(size=(1, 5)),
    "two samples": RANDOM.normal(size=(2, 5)),
    "all alike": np.repeat(RANDOM.normal(size=(1, 5)), 6, axis=0),
    "opposites": np.repeat(RANDOM.normal(size=(1, 5)), 6, axis=0) * np.array([1, -1, 1, -1, 1, -1])[:, None],
    "far from every anchor": -np.repeat(ANCHORS, 2, axis=0),
    "tiny": 1e-4 * RANDOM.normal(size=(6, 5)),
}


def holds_nan(scores: Scores) -> list[str]:
    columns = {name: scores.column(name) for name in scores.table.column_names if name not in ("tags", "tokens")}
    return [name for name, values in columns.items() if values.dtype.kind == "f" and np.isnan(values).any()]


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize("vectors", POOLS.values(), ids=POOLS)
def test_every_sample_has_a_score_and_every_budget_is_kept_to(scored_by_embeddings, name: str, vectors: np.ndarray):
    for options in ({}, MANY.get(name, {})):
        selector = create(name, options)
        scores = scored_by_embeddings(selector, vectors, ANCHORS)
        assert len(scores) == len(vectors)
        assert holds_nan(scores) == []
        for budget in (Budget(count=1), Budget(count=99), Budget(fraction=0.5)):
            kept = select_rows(create(name, options), scores, budget)
            assert len(kept) == budget.size(len(vectors))


@pytest.mark.parametrize("name", SELECTORS)
def test_a_pool_of_which_nothing_could_be_embedded_is_rejected_with_the_reasons(scored_by_embeddings, name: str):
    selector = create(name)
    scores = scored_by_embeddings(selector, RANDOM.normal(size=(4, 5)), ANCHORS, rejected=(0, 1, 2, 3))
    assert len(scores) == 0
    assert len(select_rows(create(name), scores, Budget(count=2))) == 0


@pytest.mark.parametrize(
    "content", [{}, {"config.json": "{}"}, {"config.json": "no json"}, {"config.json": '{"model_type": "gpt2"}'}]
)
def test_a_folder_that_is_no_embedding_model_is_named(tmp_path, selector_setting, content: dict[str, str]):
    for file, text in content.items():
        (tmp_path / file).write_text(text)
    with pytest.raises(ModelError) as error:
        create("embed", {"source": str(tmp_path)}).setup(selector_setting(None))
    assert error.value.setting == "selector.options.source"
    assert str(tmp_path) in str(error.value)

"""How much is kept: sizes, ties, tags, and what is refused."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ostlight.config.bind import bind
from ostlight.config.budget import Budget, apportion
from ostlight.errors import ConfigError, DataError, SelectorError
from ostlight.pipeline.scoring.rows import to_table
from ostlight.selection.scores import Scores
from ostlight.selection.select_rows import select_rows
from ostlight.selection.selector import Selector


def scores_of(values: list[float], tasks: str | None = None, tokens: list[int] | None = None) -> Scores:
    rows = [
        {
            "position": i,
            "id": str(i),
            "state": "ok",
            "score": v,
            "tags": [("task", tasks[i])] if tasks else [],
            "tokens": tokens[i] if tokens else None,
        }
        for i, v in enumerate(values)
    ]
    return Scores(to_table(rows))


class Top(Selector):
    """The highest score."""

    def score(self, batch: Any) -> dict[str, Any]:
        return {"score": [0.0] * len(batch)}


@pytest.mark.parametrize(
    ("budget", "kept"),
    [
        (Budget(fraction=0.5), [3, 1, 0]),
        (Budget(count=2), [3, 1]),
        (Budget(count=99), [3, 1, 0, 4, 5, 2]),
        (Budget(threshold=2.0), [3, 1, 0, 4]),
        (Budget(tokens=25), [3, 1]),
        (Budget(), [3]),
    ],
)
def test_the_top_fits_the_budget_and_ties_keep_the_pools_order(budget: Budget, kept: list[int]):
    scores = scores_of([2.0, 3.0, -1.0, 9.0, 2.0, 0.0], tokens=[10] * 6)
    assert select_rows(Top(), scores, budget).tolist() == kept


def test_stratifying_gives_each_tag_its_share_and_every_prefix_is_spread():
    scores = scores_of([9, 8, 7, 6, 5, 4, 3, 2], tasks="aaaaaabb")
    rows = select_rows(Top(), scores, Budget(count=4, stratify_by="task"))
    assert sorted(rows.tolist()) == [0, 1, 2, 6]
    assert set(rows[:2].tolist()) == {0, 6}


def test_stratifying_shares_a_token_budget_by_tokens():
    scores = scores_of([4, 3, 2, 1], tasks="aabb", tokens=[10, 10, 30, 30])
    rows = select_rows(Top(), scores, Budget(tokens=40, stratify_by="task"))
    assert sorted(rows.tolist()) == [0, 2]


def test_an_unknown_tag_lists_those_there_are():
    with pytest.raises(DataError, match="no sample has a tag 'skill'; the pool's tags are: task"):
        select_rows(Top(), scores_of([1.0, 2.0], tasks="ab"), Budget(count=1, stratify_by="skill"))


def test_a_token_budget_needs_counts():
    with pytest.raises(DataError, match="target.path"):
        select_rows(Top(), scores_of([1.0, 2.0]), Budget(tokens=10))


def test_apportion_adds_up_and_is_proportional():
    assert apportion(10, {"a": 1, "b": 1, "c": 1}) == {"a": 4, "b": 3, "c": 3}
    assert apportion(7, {"a": 70, "b": 30}) == {"a": 5, "b": 2}


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (Budget(fraction=1.5), "above 0 and at most 1"),
        (Budget(fraction=0.0), "above 0 and at most 1"),
        (Budget(count=0), "at least 1"),
        (Budget(tokens=-5), "at least 1"),
        (Budget(threshold=float("nan")), "budget.threshold must be a number"),
        (Budget(fraction=0.2, count=3), "takes one of fraction, count, tokens, threshold; got fraction=0.2, count=3"),
    ],
)
def test_budgets_out_of_bounds_are_refused(budget: Budget, message: str):
    with pytest.raises(ConfigError, match=message):
        bind(Budget, asdict(budget), "budget")


def test_a_selection_of_rows_that_do_not_exist_is_refused():
    class Wild(Top):
        """Selects a row that does not exist."""

        def select(self, scores: Scores, budget: Budget) -> np.ndarray:
            return np.array([0, 7])

    with pytest.raises(SelectorError, match="Wild.select returned row 7 of 2"):
        select_rows(Wild(), scores_of([1.0, 2.0]), Budget(count=1))

    class Double(Top):
        """Selects a row twice."""

        def select(self, scores: Scores, budget: Budget) -> list[int]:
            return [1, 1]

    with pytest.raises(SelectorError, match="Double.select returned a row twice"):
        select_rows(Double(), scores_of([1.0, 2.0]), Budget(count=1))


def test_rejected_rows_are_never_selected():
    table = to_table(
        [
            {"position": 0, "id": "a", "state": "rejected", "reason": "missing_image", "tags": []},
            {"position": 1, "id": "b", "state": "ok", "score": -5.0, "tags": []},
        ]
    )
    assert isinstance(table, pa.Table)
    scores = Scores(table)
    assert scores.positions[select_rows(Top(), scores, Budget(fraction=1.0))].tolist() == [1]

"""The kinds of samples a budget is shared out to, and picking kind by kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ostlight.config.budget import Budget, shared_out
from ostlight.errors import DataError, SelectorError
from ostlight.pipeline.scoring.rows import to_table
from ostlight.selection.registry import create
from ostlight.selection.scores import Scores, SelectionContext
from ostlight.selection.select_rows import select_rows
from ostlight.selection.selector import Selector
from ostlight.selection.strata import Strata


class Top(Selector):
    """The highest score."""

    def score(self, batch: Any) -> dict[str, Any]:
        return {"score": [0.0] * len(batch)}


def scores_of(
    utilities: Sequence[Sequence[float]], anchors: str = "xy", tokens: Sequence[int] = (), **columns: Any
) -> Scores:
    """Rows whose score is their mean utility; ``anchors`` has one letter an anchor, its group."""
    rows = [
        {
            "position": i,
            "id": str(i),
            "state": "ok",
            "score": float(np.mean(each)),
            "tags": [("task", "a")],
            "tokens": tokens[i] if tokens else 1,
            "utility_by_group": list(each),
            **{name: values[i] for name, values in columns.items()},
        }
        for i, each in enumerate(utilities)
    ]
    context = SelectionContext(lambda positions, repeat, steps: 0.0, lambda: list(anchors), lambda name, value: None, 0)
    return Scores(to_table(rows)).with_context(context)


UTILITIES = [(3, 1), (2, 0), (5, 4), (1, 0), (0, 2), (-3, -1), (1, 1)]
"""Rows 4 and 5 help group y most, or hurt it least; the others x, the last by name."""


def test_a_sample_counts_for_the_anchor_group_it_helps_most():
    strata = Strata.of(scores_of(UTILITIES), "anchors.group")
    assert "".join(strata.labels) == "xxxxyyx"


def test_shares_by_anchor_group_are_the_anchors_and_what_is_over_goes_to_the_others():
    half = select_rows(Top(), scores_of(UTILITIES), Budget(count=4, stratify_by="anchors.group"))
    assert sorted(half.tolist()) == [0, 2, 4, 5]
    mostly_y = select_rows(
        Top(), scores_of(UTILITIES, anchors="xyyyyyyy"), Budget(count=4, stratify_by="anchors.group")
    )
    assert sorted(mostly_y.tolist()) == [0, 2, 4, 5]
    mostly_x = select_rows(Top(), scores_of(UTILITIES, anchors="xxxy"), Budget(count=4, stratify_by="anchors.group"))
    assert sorted(mostly_x.tolist()) == [0, 1, 2, 4]


def test_shares_of_tokens_by_anchor_group():
    scores = scores_of(UTILITIES, tokens=[10, 10, 10, 10, 20, 20, 10])
    rows = select_rows(Top(), scores, Budget(tokens=40, stratify_by="anchors.group"))
    assert sorted(rows.tolist()) == [0, 2, 4]


def test_clusters_of_gradients_share_like_tags():
    rng = np.random.default_rng(0)
    centres = np.eye(4)[[0] * 30 + [1] * 10]
    phi = centres + 0.01 * rng.standard_normal((40, 4))
    scores = scores_of([(1.0, 1.0)] * 40, phi=phi.tolist(), alignment=[0.0] * 40)
    labels = Strata.of(scores, "gradients.cluster").labels
    assert not set(labels[:30]) & set(labels[30:])
    rows = select_rows(Top(), scores, Budget(count=8, stratify_by="gradients.cluster"))
    assert 1 <= sum(row >= 30 for row in rows) <= 3


def test_kinds_the_scores_do_not_tell_apart_are_refused_with_the_mend():
    with pytest.raises(DataError, match=r"all of one group; name the tag that splits them in anchors\.group"):
        Strata.of(scores_of(UTILITIES, anchors="xxx"), "anchors.group")
    with pytest.raises(DataError, match="the scores hold utilities of 2 groups, the anchors have 3: x, y, z"):
        Strata.of(scores_of(UTILITIES, anchors="xyz"), "anchors.group")
    with pytest.raises(DataError, match=r"gradients\.cluster needs the column 'alignment'.*projected or second"):
        Strata.of(scores_of(UTILITIES), "gradients.cluster")
    with pytest.raises(DataError, match=r"no sample has a tag 'skill'.*it also takes anchors\.group and gradients"):
        Strata.of(scores_of(UTILITIES), "skill")
    with pytest.raises(SelectorError, match="belong to no run"):
        Strata.of(Scores(scores_of(UTILITIES).table), "anchors.group")


def test_a_selector_that_sees_to_the_kinds_itself_is_asked_once():
    class Asked(Top):
        """Keeps what it was asked."""

        handles_strata = True

        def select(self, scores: Scores, budget: Budget) -> list[int]:
            self.budget = budget
            return [0]

    selector = Asked()
    assert select_rows(selector, scores_of(UTILITIES), Budget(count=4, stratify_by="task")).tolist() == [0]
    assert selector.budget.stratify_by == "task"


def test_a_sample_no_budget_can_afford_does_not_stand_in_the_way():
    scores = scores_of([(9, 9), (8, 8), (7, 7)], tokens=[2**31 - 1, 10, 10])
    assert select_rows(Top(), scores, Budget(tokens=20)).tolist() == [1, 2]
    assert select_rows(Top(), scores, Budget(tokens=20, stratify_by="task")).tolist() == [1, 2]


def test_sharing_out_fills_the_room_and_no_more():
    assert shared_out(10, {"a": 30, "b": 10}) == {"a": 8, "b": 2}
    assert shared_out(10, {"a": 2, "b": 50, "c": 50}, {"a": 8, "b": 1, "c": 1}) == {"a": 2, "b": 4, "c": 4}
    assert shared_out(99, {"a": 2, "b": 3}) == {"a": 2, "b": 3}
    assert shared_out(5, {"a": 2, "b": 9}, {"a": 1}) == {"a": 2, "b": 3}
    assert shared_out(0, {"a": 2}) == {"a": 0}


@pytest.mark.parametrize("total", [1000, 1900, 150])
def test_a_budget_of_tokens_is_used_up_to_one_sample_however_many_strata_share_it(total: int):
    kinds = [f"k{i // 5:02d}" for i in range(100)]
    scores = scores_of([(i, i) for i in range(100)], tokens=[100] * 100).with_columns(
        {"tags": pa.chunked_array([pa.array([[("task", kind)] for kind in kinds], pa.map_(pa.string(), pa.string()))])}
    )
    rows = select_rows(Top(), scores, Budget(tokens=total, stratify_by="task"))
    assert len(rows) == total // 100
    counts = Counter(kinds[row] for row in rows)
    assert max(counts.values()) == 1, "no stratum is served twice where others have none"


def test_a_sample_longer_than_its_stratums_share_does_not_use_it_up():
    scores = scores_of([(3, 0), (2, 0), (1, 0), (0, 3), (0, 2)], tokens=[60, 10, 10, 10, 10])
    rows = select_rows(Top(), scores, Budget(tokens=70, stratify_by="anchors.group"))
    assert {1, 2, 3} <= set(rows.tolist()), "shares are 35 each, and the first sample is longer"
    assert scores.tokens[rows].sum() <= 70


def test_full_is_full_however_it_is_stratified():
    scores = scores_of([(1, 0)] * 9 + [(0, 1)], tokens=[1] * 10)
    for budget in (Budget(fraction=0.2, stratify_by="anchors.group"), Budget(tokens=2, stratify_by="task")):
        assert len(select_rows(create("full"), scores, budget)) == 10

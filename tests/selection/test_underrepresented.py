"""Kinds of sample that a subset has nearly left out."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from ostlight.pipeline.scoring.rows import to_table
from ostlight.selection.scores import Scores
from ostlight.selection.underrepresented import find_underrepresented


def scores_of(tags: list[list[tuple[str, str]] | None]) -> Scores:
    rows = [{"position": i, "id": str(i), "state": "ok", "score": 0.0, "tags": each} for i, each in enumerate(tags)]
    return Scores(to_table(rows))


TASKS = ["sum"] * 60 + ["parity"] * 100 + ["read"] * 240


def test_what_is_rare_beside_its_share_is_told_the_rarest_first() -> None:
    scores = scores_of([[("task", task), ("source", "web")] for task in TASKS])
    rows = np.r_[np.arange(58, 62), np.arange(200, 296)]  # 2 of 60, 2 of 100 and 96 of 240: a quarter of all
    assert [str(one) for one in find_underrepresented(scores, rows)] == ["task=parity (2 of 100)", "task=sum (2 of 60)"]


def test_a_fair_share_is_not_told_nor_what_may_be_chance() -> None:
    scores = scores_of([[("task", task)] for task in TASKS])
    assert find_underrepresented(scores, np.arange(0, 400, 4)) == []
    # 20 rows: 3 sums and 5 of parity would be chance.
    assert [str(one) for one in find_underrepresented(scores, np.arange(380, 400))] == []
    assert find_underrepresented(scores, np.arange(0)) == []


def test_samples_without_tags_and_tables_in_pieces() -> None:
    assert find_underrepresented(scores_of([None] * 30), np.arange(15)) == []
    assert find_underrepresented(scores_of([]), np.arange(0)) == []
    tags = [None if i % 2 else [("task", "sum" if i < 100 else "read")] for i in range(200)]
    whole = scores_of(tags).table
    pieces = pa.concat_tables([whole.slice(0, 70), whole.slice(70)])
    told = find_underrepresented(Scores(pieces), np.arange(100, 200))
    assert [str(one) for one in told] == ["task=sum (0 of 50)"]

"""Near-duplicates are found, and nothing else is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ostlight.reporting.near_duplicates import find_near_duplicates
from ostlight.reporting.score_columns import ScoreColumns


def scores(phi: np.ndarray | None, **columns: Any) -> ScoreColumns:
    count = 5 if phi is None else len(phi)
    place = np.arange(count)
    sketch = None if phi is None else phi.astype(np.float32)
    return ScoreColumns(
        ids=[str(k) for k in place],
        position=place,
        score=-place.astype(float),
        extra=columns,
        phi=sketch,
        by_group=None,
        groups=[],
        tags={},
        selections=[],
        records=count,
        rejected=0,
    )


def test_copies_form_groups_and_other_samples_do_not():
    rng = np.random.default_rng(0)
    phi = rng.standard_normal((200, 32))
    phi[10] = phi[11] * 1.01
    phi[50:54] = phi[50] + 0.003 * rng.standard_normal((4, 32))
    groups = find_near_duplicates(scores(phi))
    assert groups is not None
    assert groups.sizes.tolist() == [4, 2]
    assert groups.members(0).tolist() == [50, 51, 52, 53]
    assert groups.members(1).tolist() == [10, 11]
    assert (groups.group_of >= 0).sum() == 6


def test_same_direction_with_another_length_is_no_near_duplicate():
    phi = np.random.default_rng(1).standard_normal((40, 32))
    phi[3] = phi[4] * 1.5
    groups = find_near_duplicates(scores(phi))
    assert groups is not None
    assert groups.sizes.tolist() == []


def test_gradient_norms_must_agree():
    phi = np.random.default_rng(2).standard_normal((40, 32))
    phi[3] = phi[4]
    norms = np.ones(40)
    norms[3] = 2
    groups = find_near_duplicates(scores(phi, gradient_norm=norms))
    assert groups is not None
    assert groups.sizes.tolist() == []


def test_groups_agree_with_comparing_all_pairs():
    rng = np.random.default_rng(3)
    base = rng.standard_normal((300, 12)) @ rng.standard_normal((12, 24))
    pairs = rng.choice(300, 60, replace=False).reshape(30, 2)
    base[pairs[:, 0]] = base[pairs[:, 1]] + 0.0125 * rng.uniform(0, 2, 30)[:, None] * rng.standard_normal((30, 24))
    groups = find_near_duplicates(scores(base))
    assert groups is not None
    lengths = np.linalg.norm(base, axis=1)
    unit = base / lengths[:, None]
    apart = np.linalg.norm(unit[:, None] - unit[None], axis=2)
    alike = np.abs(lengths[:, None] - lengths) <= 0.05 * np.maximum(lengths[:, None], lengths)
    close = (apart <= 0.03) & alike & ~np.eye(300, dtype=bool)
    assert close.any(1).sum() > 20
    assert ((groups.group_of >= 0) == close.any(1)).all()
    for a, b in zip(*np.nonzero(close), strict=True):
        assert groups.group_of[a] == groups.group_of[b]


def test_thousand_copies_are_one_group():
    phi = np.random.default_rng(4).standard_normal((3000, 16))
    phi[1000:2000] = phi[0] * (1 + 1e-6 * np.random.default_rng(5).standard_normal((1000, 16)))
    groups = find_near_duplicates(scores(phi))
    assert groups is not None
    assert groups.sizes.tolist() == [1001]


def test_samples_without_a_gradient_form_no_group():
    groups = find_near_duplicates(scores(np.zeros((20, 16))))
    assert groups is not None
    assert groups.sizes.tolist() == []


@pytest.mark.parametrize("phi", [None, np.ones((10, 3))])
def test_near_duplicates_are_unknown_without_a_sketch(phi: np.ndarray | None):
    assert find_near_duplicates(scores(phi)) is None

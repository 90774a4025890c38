"""Near-duplicates are found where they are, and nowhere else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ostlight.reporting.evidence import Evidence
from ostlight.reporting.families import find_families


def evidence(phi: np.ndarray | None, **columns: Any) -> Evidence:
    count = 5 if phi is None else len(phi)
    place = np.arange(count)
    sketch = None if phi is None else phi.astype(np.float32)
    return Evidence(
        ids=[str(k) for k in place],
        position=place,
        score=-place.astype(float),
        columns=columns,
        phi=sketch,
        by_group=None,
        groups=[],
        tags={},
        picks=[],
        records=count,
        rejected=0,
    )


def test_copies_are_one_family_and_strangers_are_none():
    rng = np.random.default_rng(0)
    phi = rng.standard_normal((200, 32))
    phi[10] = phi[11] * 1.01
    phi[50:54] = phi[50] + 0.003 * rng.standard_normal((4, 32))
    found = find_families(evidence(phi))
    assert found is not None
    assert found.sizes.tolist() == [4, 2]
    assert found.members(0).tolist() == [50, 51, 52, 53]
    assert found.members(1).tolist() == [10, 11]
    assert (found.of >= 0).sum() == 6


def test_the_same_direction_at_another_length_is_no_copy():
    phi = np.random.default_rng(1).standard_normal((40, 32))
    phi[3] = phi[4] * 1.5
    found = find_families(evidence(phi))
    assert found is not None
    assert found.sizes.tolist() == []


def test_the_gradients_length_must_agree_too():
    phi = np.random.default_rng(2).standard_normal((40, 32))
    phi[3] = phi[4]
    norms = np.ones(40)
    norms[3] = 2
    found = find_families(evidence(phi, gradient_norm=norms))
    assert found is not None
    assert found.sizes.tolist() == []


def test_it_agrees_with_all_pairs():
    rng = np.random.default_rng(3)
    base = rng.standard_normal((300, 12)) @ rng.standard_normal((12, 24))
    pairs = rng.choice(300, 60, replace=False).reshape(30, 2)
    base[pairs[:, 0]] = base[pairs[:, 1]] + 0.0125 * rng.uniform(0, 2, 30)[:, None] * rng.standard_normal((30, 24))
    found = find_families(evidence(base))
    assert found is not None
    lengths = np.linalg.norm(base, axis=1)
    unit = base / lengths[:, None]
    apart = np.linalg.norm(unit[:, None] - unit[None], axis=2)
    alike = np.abs(lengths[:, None] - lengths) <= 0.05 * np.maximum(lengths[:, None], lengths)
    close = (apart <= 0.03) & alike & ~np.eye(300, dtype=bool)
    assert close.any(1).sum() > 20
    assert ((found.of >= 0) == close.any(1)).all()
    for a, b in zip(*np.nonzero(close), strict=True):
        assert found.of[a] == found.of[b]


def test_a_thousand_copies_are_one_family():
    phi = np.random.default_rng(4).standard_normal((3000, 16))
    phi[1000:2000] = phi[0] * (1 + 1e-6 * np.random.default_rng(5).standard_normal((1000, 16)))
    found = find_families(evidence(phi))
    assert found is not None
    assert found.sizes.tolist() == [1001]


def test_samples_without_a_gradient_are_no_family():
    found = find_families(evidence(np.zeros((20, 16))))
    assert found is not None
    assert found.sizes.tolist() == []


@pytest.mark.parametrize("phi", [None, np.ones((10, 3))])
def test_without_a_sketch_nothing_is_looked_for(phi: np.ndarray | None):
    assert find_families(evidence(phi)) is None

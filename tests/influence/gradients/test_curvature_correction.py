"""What one step bent is believed of its neighbours."""

from __future__ import annotations

import pytest
import torch

from ostlight.influence.gradients.curvature_correction import CurvatureCorrection


def test_what_a_step_bends_is_told_to_those_that_point_its_way_and_little_to_others():
    known = torch.eye(3, dtype=torch.float64) * 2
    bent = torch.tensor([[1.0], [0.0], [0.0]], dtype=torch.float64)
    bend = CurvatureCorrection.fit(known, bent, eta=0.5)
    # Noise as large as each one's variance halves what is believed of it.
    own, *others = bend(known)[:, 0].tolist()
    assert own == pytest.approx(0.5, rel=0.02)
    assert all(0 < other < 0.1 * own for other in others)
    assert 0 < float(bend(-known[:1])) < others[0], "nor to those that point the other way"
    assert torch.allclose(bend(3 * known[:1]), 9 * bend(known[:1]))
    assert torch.equal(bend(torch.zeros(1, 3, dtype=torch.float64)), torch.zeros(1, 1, dtype=torch.float64))
    assert torch.equal(CurvatureCorrection.fit(known[:0], bent[:0], 0.5)(known), torch.zeros(3, 1, dtype=torch.float64))
    assert torch.equal(CurvatureCorrection.fit(0 * known, bent, 0.5)(known), torch.zeros(3, 1, dtype=torch.float64))

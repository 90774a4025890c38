"""The deviation measured on one step is predicted for steps that point the same way."""

from __future__ import annotations

import pytest
import torch

from ostlight.influence.gradients.curvature_correction import CurvatureCorrection


def test_a_measured_steps_deviation_carries_to_steps_that_point_its_way():
    known = torch.eye(3, dtype=torch.float64) * 2
    deviation = torch.tensor([[1.0], [0.0], [0.0]], dtype=torch.float64)
    correction = CurvatureCorrection.fit(known, deviation, step_size=0.5)
    # Noise as large as each one's variance halves what is believed of it.
    own, *others = correction(known)[:, 0].tolist()
    assert own == pytest.approx(0.5, rel=0.02)
    assert all(0 < other < 0.1 * own for other in others)
    assert 0 < float(correction(-known[:1])) < others[0], "nor to those that point the other way"
    assert torch.allclose(correction(3 * known[:1]), 9 * correction(known[:1]))
    assert torch.equal(correction(torch.zeros(1, 3, dtype=torch.float64)), torch.zeros(1, 1, dtype=torch.float64))
    assert torch.equal(
        CurvatureCorrection.fit(known[:0], deviation[:0], 0.5)(known), torch.zeros(3, 1, dtype=torch.float64)
    )
    assert torch.equal(
        CurvatureCorrection.fit(0 * known, deviation, 0.5)(known), torch.zeros(3, 1, dtype=torch.float64)
    )

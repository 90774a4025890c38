"""Admitted samples first, then the closest; and what is said of the latter."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from ostlight.selection.admission import admitted_first, warn_of_filling

LOG = logging.getLogger("ostlight.test")
ADMITTED = np.array([True, False, True, False, False])


def test_the_admitted_come_in_their_order_and_the_others_by_how_close_they_are():
    order, closest = np.array([4, 2, 3, 0, 1]), np.array([3, 0, 1, 2, 4])
    assert admitted_first(ADMITTED, order, closest).tolist() == [2, 0, 3, 1, 4]
    for admitted, expected in ((np.ones(5, bool), order), (np.zeros(5, bool), closest)):
        assert admitted_first(admitted, order, closest).tolist() == expected.tolist()
    assert admitted_first(ADMITTED[:0], order[:0], closest[:0]).tolist() == []


def test_only_what_fills_a_budget_up_is_warned_of(caplog: pytest.LogCaptureFixture):
    warn_of_filling(LOG, "filter", np.array([0, 2]), ADMITTED)
    assert not caplog.records
    warn_of_filling(LOG, "filter", np.array([0, 2, 4]), ADMITTED, " by all parts")
    assert "filter: 1 of 3 selected samples are not admitted by all parts" in caplog.text

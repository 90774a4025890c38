"""What the set-up of `ost` costs, said before it starts."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from torch import nn

from ostlight.selection.registry import create


@pytest.mark.parametrize(
    ("records", "anchors", "expected"),
    [(10_000, 100, 64), (1_000, 100, 16), (300, 100, 16), (100, 100, 11), (40, 100, 8)],
)
def test_the_agreement_check_takes_at_most_half_of_the_run_as_far_as_it_says_anything(
    records: int, anchors: int, expected: int, logged
):
    proxy = SimpleNamespace(records=records, seconds_per_sample=2.0, model=SimpleNamespace(model=nn.Linear(1, 1)))
    context = SimpleNamespace(anchors=[None] * anchors, proxy=proxy)
    selector = create("ost", {})
    assert selector._announce_set_up(context, "finite_difference", None) == expected
    lines = logged()
    # A pass over the anchors is a third of a training step on each; beside it there are the mean gradient, factors
    # over 300 samples, the step size over 256, and a training step for each record.
    rest = anchors + min(records, 300) + min(records, 256)
    compared = expected * (3 + anchors) // 3
    assert compared <= rest + records or expected == 8
    assert f"set-up: as much as training on {rest + compared:,} samples, about " in lines
    assert (f"on {expected} samples instead of" in lines) == (expected < max(16, records // 100) and records < 6_400)

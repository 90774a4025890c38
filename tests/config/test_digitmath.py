"""What a configuration says of the built-in pool."""

from __future__ import annotations

from ostlight.config import load_config
from ostlight.config.digitmath import DigitMath


def test_rates_that_are_named_stand_alone():
    named = load_config({"digitmath": {}}, "digitmath.defects={hallucinated: 0.28}").digitmath
    assert named is not None
    assert {name: count for name, count in named.counts().items() if count} == {"hallucinated": 700}
    assert sum(DigitMath().counts().values()) == 1250

"""The reference of all settings."""

from __future__ import annotations

from ostlight.config.reference import settings_reference
from ostlight.selection import registry


def test_every_setting_has_a_description():
    assert [s.key for s in settings_reference() if not s.description] == []


def test_rows_hold_default_and_allowed_values():
    rows = {s.key: s for s in settings_reference()}
    assert rows["compute.devices"][1:3] == (1, "a whole number, at least 1 and at most 1024")
    assert rows["budget.fraction"][1:3] == (None, "a number, above 0 and at most 1, or null")
    assert rows["target.training.schedule"][1:3] == ("cosine", "one of cosine, constant")
    assert rows["target.lora"].default is None
    assert rows["target.lora.rank"].default == 16
    assert "benchmark.budgets[].count" in rows


def test_options_of_a_selector_are_listed_too():
    rows = [s.key for s in settings_reference(registry.load("deita").Options, "selector.options.")]
    assert "selector.options.max_length" in rows

"""The precision that ``auto`` stands for, by what the card can do."""

from __future__ import annotations

import pytest
import torch

from ostlight.config.schema import Compute
from ostlight.training import precision as chosen
from ostlight.training.precision import precision_line, precision_of


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch):
    def make(available: bool, has_bf16: bool) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bf16)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")

    return make


@pytest.mark.parametrize(
    ("available", "has_bf16", "accelerator", "expected"),
    [
        (True, True, "auto", "bf16-mixed"),
        (True, True, "gpu", "bf16-mixed"),
        (True, True, "cpu", "32-true"),
        (True, False, "gpu", "32-true"),
        (False, False, "auto", "32-true"),
    ],
)
def test_auto_is_what_the_card_computes_in(card, available, has_bf16, accelerator, expected):
    card(available, has_bf16)
    compute = Compute(accelerator=accelerator)
    assert compute.precision == "auto"
    assert precision_of(compute) == expected
    line = precision_line(compute)
    assert (line is None) == (not available or accelerator == "cpu")
    assert line is None or expected in line


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "64-true"])
def test_a_choice_stays_a_choice(card, precision):
    card(True, True)
    compute = Compute(precision=precision)
    assert precision_of(compute) == precision
    assert precision_line(compute) is None


@pytest.mark.parametrize(("precision", "warned"), [("bf16-mixed", True), ("bf16-true", True), ("32-true", False)])
def test_bf16_on_a_cpu_without_instructions_for_it_is_warned_of(precision, warned, monkeypatch, caplog):
    monkeypatch.setattr(chosen, "bf16_slowdown", lambda: 300.0)
    chosen._warn_of_slow_bf16.cache_clear()
    chosen.warn_of_slow_bf16(Compute(accelerator="cpu", precision=precision))
    assert ("takes 300 times as long in bf16 as in fp32" in caplog.text) == warned

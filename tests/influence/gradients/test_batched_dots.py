"""Small gradients that wait for one another give what each gives alone, and name what is no number."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ostlight.influence.gradients import batched_dots as waiting
from ostlight.influence.gradients.batched_dots import BatchedDots

LAYOUTS = {"down": (8, 40), "up": (24, 8), "scale": (16,)}
N, M = 5, 3


def parts(dtype: torch.dtype = torch.float64) -> dict[str, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    return {name: (torch.randn(N, *s, dtype=dtype), torch.randn(M, *s, dtype=dtype)) for name, s in LAYOUTS.items()}


def taken(given: dict[str, tuple[Tensor, Tensor]], separate: bool) -> dict[str, tuple[Tensor, Tensor]]:
    found: dict[str, tuple[Tensor, Tensor]] = {}
    waits = BatchedDots(separate, lambda name, dots, squares: found.update({name: (dots, squares)}))
    for name, (gradients, target) in given.items():
        waits.add(name, gradients, target)
    waits.finish()
    return found


def alone(gradients: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    return torch.einsum("n...,m...->nm", gradients.flatten(1), target.flatten(1)), gradients.flatten(1).square().sum(1)


def test_together_they_are_the_sum_and_apart_their_own() -> None:
    given = parts()
    expected = {name: alone(*one) for name, one in given.items()}
    apart, together = taken(given, separate=True), taken(given, separate=False)
    assert list(apart) == list(LAYOUTS)
    assert list(together) == ["down"]
    for place in (0, 1):
        for name in LAYOUTS:
            assert torch.allclose(apart[name][place], expected[name][place], rtol=1e-12)
        assert torch.allclose(together["down"][place], sum(e[place] for e in expected.values()), rtol=1e-12)


@pytest.mark.parametrize("bad", LAYOUTS)
def test_what_is_no_number_stands_under_its_own_name(bad: str) -> None:
    given = parts()
    given[bad][0].view(N, -1)[2, 1] = torch.inf
    found = taken(given, separate=False)
    assert list(found) == list(LAYOUTS)
    assert [name for name, (dots, _) in found.items() if not dots.isfinite().all()] == [bad]
    assert found[bad][0].isfinite().all(1).tolist() == [True, True, False, True, True]


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "BATCHED_ENTRIES", N * (8 * 40 + 24 * 8))
    assert list(taken(parts(), separate=False)) == ["down", "scale"]


def test_precisions_do_not_mix() -> None:
    given = parts() | {"wide": parts(torch.float32)["scale"]}
    found = taken(given, separate=False)
    assert list(found) == ["down", "wide"]
    assert found["wide"][0].dtype == torch.float32

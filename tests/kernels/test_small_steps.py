"""The algebra of small steps against the definition in float64, and the bound on what is left out of it."""

from __future__ import annotations

import pytest
import torch
from test_one_step_head import head, oracle
from torch import Tensor

from ostlight_kernels import one_step_head, small_steps
from ostlight_kernels.small_steps import LARGEST_CHANGE, influential_tokens, loss_decrease, may_be_small


def tokens_and_steps(v: int = 30, s: int = 6, t: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Probabilities ``[s, v]``, labels ``[s]``, errors ``[1, t, v]`` and steps ``[1, s, t]``."""
    g = torch.Generator().manual_seed(0)
    p = torch.softmax(torch.randn(s, v, generator=g, dtype=torch.float64) * 2, -1)
    errors = torch.softmax(torch.randn(1, t, v, generator=g, dtype=torch.float64), -1)
    errors[0, torch.arange(t), torch.randint(0, v, (t,), generator=g)] -= 1.0
    return p, torch.randint(0, v, (s,), generator=g), errors, torch.randn(1, s, t, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("size", [1e-9, 1e-3, 0.5])
def test_nothing_is_left_out_of_the_algebra(size: float) -> None:
    """Whatever the step, where the curvature of the full vocabulary is taken."""
    p, y, errors, steps = tokens_and_steps()
    changes = size * steps @ errors
    rows = torch.arange(len(y))
    change = changes[:, rows, y]
    exact = -torch.log1p((p * torch.expm1(change[:, :, None] - changes)).sum(-1))
    other = p.clone()
    other[rows, y] = 0.0
    curvature = torch.where(changes.abs() < 1e-4, changes**2 / 2 - changes**3 / 6, torch.expm1(-changes) + changes)
    found = loss_decrease(change, other.sum(1), (other * changes).sum(-1), (other * curvature).sum(-1))
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-18)


@pytest.mark.parametrize("eta", [0.005, 0.03])
@pytest.mark.parametrize("remainder", [2.0**-7, 2.0**-11, 2.0**-20])
def test_what_is_left_out_is_bounded(remainder: float, eta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many tokens some are left out, and the utility is off by less than the bound says, e times at most."""
    seen = []

    def spied(squared_errors: Tensor, mean_p: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        tokens, right = influential_tokens(squared_errors, mean_p, size)
        assert right.all()
        seen.append((tokens.shape[1], size))
        return tokens, right

    monkeypatch.setattr(small_steps, "REMAINDER", remainder)
    monkeypatch.setattr(small_steps, "influential_tokens", spied)
    case = head(n=6, t=3, anchors=20, s=5, d=24, v=900, eta=eta, dtype=torch.float32)
    off = (one_step_head(**case).double() - oracle(case)).abs()
    ((tokens, size),) = seen
    assert tokens < 900
    assert off.le(torch.e * remainder * size + 1e-6 * size).all()


def test_a_stricter_bound_takes_more_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(0)
    squared_errors = torch.rand(2, 2000, generator=g) ** 20
    counts = []
    for remainder in (1.0, 1e-3, 2e-4):
        monkeypatch.setattr(small_steps, "REMAINDER", remainder)
        tokens, right = influential_tokens(squared_errors, torch.full((2000,), 1 / 2000), torch.tensor([0.1, 0.05]))
        assert right.all()
        assert tokens.sort(1).values.equal(tokens)
        counts.append(int((tokens[0] >= 0).sum()))
    assert counts[0] == 0
    assert counts[0] < counts[1] < counts[2] < 2000


def test_when_the_steps_are_not_small() -> None:
    """A candidate whose step is large, that needs too many tokens, or that has no finite number."""
    squared_errors, mean_p = torch.full((4, 4000), 1e-3), torch.full((4000,), 1.0)
    squared_errors[2, 0] = float("nan")
    _, right = influential_tokens(squared_errors, mean_p, torch.tensor([1e-9, 1 / 0.03, 1e-9, float("inf")]))
    assert right.tolist() == [True, False, False, False]
    tokens, right = influential_tokens(squared_errors[:1], mean_p, torch.tensor([1.0]))
    assert tokens.shape == (1, 500)
    assert not right.any()


def test_a_step_known_to_be_large_is_large() -> None:
    """The errors at a candidate's own labels never rule out a step that is small."""
    case = head(n=40, t=5, d=8, v=30, dtype=torch.float32, sharpness=4.0)
    errors = torch.softmax(case["h"] @ case["weight"].T + case["bias"], -1)
    labels = case["labels"].clamp_min(0)[:, :, None]
    label_log_p = errors.gather(2, labels)[:, :, 0].log().masked_fill(case["labels"] < 0, 0.0)
    errors = (errors - torch.nn.functional.one_hot(labels[:, :, 0], 30)).masked_fill((case["labels"] < 0)[..., None], 0)
    sizes = torch.logspace(-2, 2, 40)
    small = sizes * errors.square().sum(1).amax(1).sqrt() < LARGEST_CHANGE
    maybe = may_be_small(sizes, label_log_p)
    assert maybe[small].all()
    assert small.any()
    assert not maybe.all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_small_and_large_steps_in_one_call(dtype: torch.dtype) -> None:
    """Each candidate gets the same utility as alone."""
    case = head(n=12, t=4, s=9, d=16, v=300, eta=0.3, dtype=dtype)
    case["h"] = case["h"] * torch.logspace(-2, 1, 12)[:, None, None].to(dtype)
    together = one_step_head(**case)
    truth = oracle(case)
    torch.testing.assert_close(together.double(), truth, rtol=1e-4, atol=1e-6 * truth.abs().max().item())
    for i in range(12):
        alone = one_step_head(**case | {"h": case["h"][i : i + 1], "labels": case["labels"][i : i + 1]})
        torch.testing.assert_close(alone[0], together[i], rtol=2e-5, atol=1e-7)


def test_float64_takes_the_full_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_steps, "loss_decrease", None)
    one_step_head(**head(eta=1e-6))
    with pytest.raises(TypeError):
        one_step_head(**head(eta=1e-6, dtype=torch.float32))

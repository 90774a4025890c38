"""`one_step_head` on this machine's path, against the step itself, taken in float64 by autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from _memory import peak_bytes
from torch import Tensor

from ostlight_kernels import head_reference, one_step_head

Inputs = dict[str, Any]


def anchor_loss(weight: Tensor, bias: Tensor | None, case: Inputs) -> Tensor:
    losses = []
    for h, labels in zip(case["anchor_h"].double(), case["anchor_labels"], strict=True):
        losses.append(F.cross_entropy(F.linear(h, weight, bias), labels.long(), ignore_index=-100))
    weights = case.get("anchor_weights")
    weights = torch.ones(len(losses)) if weights is None else weights
    return torch.stack(losses) @ (weights.double() / weights.double().sum())


def oracle(case: Inputs) -> Tensor:
    """One candidate at a time: backward, a new weight, the anchor loss again; float64."""
    weight = case["weight"].double().requires_grad_()
    bias = None if case["bias"] is None else case["bias"].double().requires_grad_()
    leaves = [weight] if bias is None else [weight, bias]
    before = anchor_loss(weight, bias, case)
    utilities = []
    for h, labels in zip(case["h"].double(), case["labels"], strict=True):
        loss = F.cross_entropy(F.linear(h, weight, bias), labels.long(), ignore_index=-100)
        stepped = [leaf - case["eta"] * g for leaf, g in zip(leaves, torch.autograd.grad(loss, leaves), strict=True)]
        after = anchor_loss(stepped[0], stepped[1] if bias is not None else None, case)
        utilities.append((before - after).detach())
    return torch.stack(utilities) if utilities else torch.zeros(0, dtype=torch.float64)


def head(
    n: int = 3,
    t: int = 4,
    anchors: int = 2,
    s: int = 5,
    d: int = 7,
    v: int = 13,
    *,
    eta: float = 0.1,
    bias: bool = True,
    dtype: torch.dtype = torch.float64,
    sharpness: float = 1.0,
    seed: int = 0,
) -> Inputs:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    labels = torch.randint(0, v, (n, t), generator=g)
    labels[:, 1:][torch.rand(n, t - 1, generator=g) < 0.3] = -100
    anchor_labels = torch.randint(0, v, (anchors, s), generator=g)
    anchor_labels[:, :-1][torch.rand(anchors, s - 1, generator=g) < 0.3] = -100
    return {
        "h": normal(n, t, d).to(dtype),
        "labels": labels,
        "anchor_h": normal(anchors, s, d).to(dtype),
        "anchor_labels": anchor_labels,
        "weight": (normal(v, d) * sharpness / d**0.5).to(dtype),
        "bias": normal(v).to(dtype) if bias else None,
        "eta": eta,
    }


def padded(barred: slice, eta: float = 0.1, dtype: torch.dtype = torch.float64) -> Inputs:
    """Of 200 tokens some that a bias of -inf rules out, as where a vocabulary is padded; none of them is a label."""
    case = head(n=3, v=200, eta=eta, dtype=dtype)
    allowed = torch.arange(200)
    allowed[barred] = -1
    allowed = allowed[allowed >= 0]
    for name in ("labels", "anchor_labels"):
        case[name] = torch.where(case[name] < 0, case[name], allowed[case[name] % len(allowed)])
    case["bias"][barred] = float("-inf")
    return case


LAYOUTS = [
    {},
    {"bias": False},
    {"n": 1, "t": 1, "anchors": 1, "s": 1, "d": 1, "v": 2},
    {"n": 20, "v": 40},
    {"v": 1},
    {"n": 0},
]


@pytest.mark.parametrize("eta", [1e-3, 1.0, 100.0, -0.1])
@pytest.mark.parametrize("shape", LAYOUTS)
def test_float64_is_exact(shape: Inputs, eta: float) -> None:
    case = head(**shape, eta=eta)
    utilities = one_step_head(**case)
    assert utilities.dtype == torch.float64
    torch.testing.assert_close(utilities, oracle(case), rtol=1e-9, atol=1e-13)


def test_anchor_weights() -> None:
    case = head(anchors=4)
    alike = one_step_head(**case, anchor_weights=torch.full((4,), 3.0))
    torch.testing.assert_close(alike, one_step_head(**case))
    case["anchor_weights"] = torch.tensor([2.0, 0.0, 1.0, 0.5])
    torch.testing.assert_close(one_step_head(**case), oracle(case))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("eta", [1e-6, 1e-2, 10.0])
def test_fp32_inside(dtype: torch.dtype, eta: float) -> None:
    """A step of 1e-6 changes the loss by about its rounding in fp32: a difference of two losses would be noise."""
    case = head(n=8, t=12, s=20, d=32, v=200, eta=eta, dtype=dtype)
    utilities, truth = one_step_head(**case), oracle(case)
    assert utilities.dtype == torch.float32
    torch.testing.assert_close(utilities.double(), truth, rtol=1e-4, atol=1e-5 * truth.abs().max().item())


@pytest.mark.parametrize("eta", [1e-3, 1.0, 1e3])
def test_labels_the_head_is_sure_of_or_never_expects(eta: float) -> None:
    """Probabilities near 1 and below 1e-30, steps of hundreds of nats: neither overflow nor cancellation."""
    case = head(n=6, sharpness=60.0, eta=eta, dtype=torch.float32)
    truth = oracle(case)
    torch.testing.assert_close(one_step_head(**case).double(), truth, rtol=1e-4, atol=1e-6 * truth.abs().max().item())


@pytest.mark.parametrize("eta", [1e-3, 30.0])
@pytest.mark.parametrize("barred", [slice(64, None), slice(0, 64)])
def test_tokens_that_a_bias_rules_out(barred: slice, eta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    case = padded(barred, eta)
    monkeypatch.setattr(head_reference, "LOGITS_BYTES", 4096)
    torch.testing.assert_close(one_step_head(**case), oracle(case), rtol=1e-9, atol=1e-13)


def test_ignored_tokens_are_not_read() -> None:
    case = head()
    before = one_step_head(**case)
    case["h"][case["labels"] == -100] = float("nan")
    case["anchor_h"][case["anchor_labels"] == -100] = float("inf")
    assert one_step_head(**case).equal(before)


def test_a_candidate_without_an_answer_has_no_utility() -> None:
    case = head()
    expected = one_step_head(**case)
    case["labels"][1] = -100
    utilities = one_step_head(**case)
    assert utilities[1].isnan()
    torch.testing.assert_close(utilities[[0, 2]], expected[[0, 2]])
    case["labels"][:] = -100
    assert one_step_head(**case).isnan().all()


def test_small_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    case = head(n=20, v=50)
    expected = one_step_head(**case)
    monkeypatch.setattr(head_reference, "LOGITS_BYTES", 4096)
    torch.testing.assert_close(one_step_head(**case), expected, rtol=1e-10, atol=1e-14)


def test_memory_does_not_grow_with_the_candidates() -> None:
    """Beyond a copy of their tokens, which are small here beside ``[candidates, anchor tokens]``."""
    peaks = []
    for n in (256, 2560):
        case = head(n=n, t=1, anchors=1, s=3000, d=1, v=2)
        peaks.append(peak_bytes(lambda case=case: one_step_head(**case), "cpu", []))
    assert peaks[1] <= peaks[0] + 2560 * 200


def strided(case: Inputs) -> Inputs:
    """The same values, none of them in one piece."""
    apart = {}
    for name in ("h", "labels", "anchor_h", "anchor_labels", "weight", "bias"):
        apart[name] = torch.stack([case[name], torch.zeros_like(case[name])], -1)[..., 0]
        assert not apart[name].is_contiguous()
    return case | apart


def test_any_strides() -> None:
    case = head()
    torch.testing.assert_close(one_step_head(**strided(case)), one_step_head(**case))


TENSORS = ("h", "labels", "anchor_h", "anchor_labels", "weight", "bias")
BAD: dict[str, Inputs] = {
    "h: got shape (3, 4)": {"h": lambda x: x[..., 0]},
    "h: got shape (3, 4, 6), takes [N, T, D] with D=7": {"h": lambda x: x[..., :6]},
    "h: got dtype torch.int32": {"h": lambda x: x.int()},
    "labels: got shape (2, 4)": {"labels": lambda x: x[:2]},
    "labels: got dtype torch.float32": {"labels": lambda x: x.float()},
    "labels: got a token id 13, takes ids 0 .. 12": {"labels": lambda x: x.fill_(13)},
    "labels: got a token id -1": {"labels": lambda x: x.fill_(-1)},
    "anchor_h: got A=0": {"anchor_h": lambda x: x[:0], "anchor_labels": lambda x: x[:0]},
    "anchor_h: got dtype torch.float32": {"anchor_h": lambda x: x.float()},
    "anchor_labels: got no answer token in anchor [0]": {"anchor_labels": lambda x: x.fill_(-100)},
    "anchor_labels: got shape (2, 4)": {"anchor_labels": lambda x: x[:, 1:]},
    "weight: got shape (7,)": {"weight": lambda x: x[0]},
    "weight: got device meta": {"weight": lambda x: x.to("meta")},
    "bias: got shape (12,)": {"bias": lambda x: x[1:]},
    "h: got device meta": {name: lambda x: x.to("meta") for name in TENSORS},
    "h: got a list": {"h": lambda x: x.tolist()},
    "labels: got a ndarray": {"labels": lambda x: x.numpy()},
    "labels: got layout torch.sparse_coo": {"labels": lambda x: x.to_sparse()},
    "anchor_labels: got layout torch.sparse_coo": {"anchor_labels": lambda x: x.to_sparse()},
    "anchor_labels: got a list": {"anchor_labels": lambda x: x.tolist()},
    "bias: got a list": {"bias": lambda x: x.tolist()},
    "eta: got nan": {"eta": lambda _: float("nan")},
    "eta: got inf": {"eta": lambda _: float("inf")},
    "eta: got tensor(0.1000), takes a number": {"eta": torch.tensor},
    "eta: got '0.1'": {"eta": str},
    "eta: got 1e+39, takes a number from -3.4e+38": {
        "eta": lambda _: 1e39,
        **{name: lambda x: x.float() for name in ("h", "anchor_h", "weight", "bias")},
    },
    "anchor_weights: got a list": {"anchor_weights": lambda _: [1.0, 1.0]},
    "anchor_weights: got shape (3,)": {"anchor_weights": lambda _: torch.ones(3)},
    "anchor_weights: got smallest -1.0": {"anchor_weights": lambda _: torch.tensor([-1.0, 2.0])},
    "anchor_weights: got smallest 0.0, sum 0.0": {"anchor_weights": lambda _: torch.zeros(2)},
    "anchor_weights: got dtype torch.int64": {"anchor_weights": lambda _: torch.ones(2).long()},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_refused_by_name(message: str) -> None:
    case = head()
    case |= {name: change(case.get(name)) for name, change in BAD[message].items()}
    with pytest.raises(ValueError) as rejection:  # noqa: PT011  the message is what is asserted
        one_step_head(**case)
    assert str(rejection.value).startswith(message)

"""Refuses what would give a wrong number: every message names the argument, what it got and what it takes."""

from __future__ import annotations

from numbers import Integral, Real

import torch
from torch import Tensor

IGNORED = -100
"""Label of a position that takes no part in a loss."""

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def check(holds: bool, argument: str, got: object, takes: str) -> None:
    """Raise ``ValueError`` naming ``argument`` unless ``holds``."""
    if not holds:
        raise ValueError(f"{argument}: got {got}, takes {takes}")


def check_tensor(tensor: object, name: str) -> None:
    """It is a tensor, dense, and has values."""
    check(isinstance(tensor, Tensor), name, f"a {type(tensor).__name__}", "a tensor")
    assert isinstance(tensor, Tensor)
    check(tensor.layout == torch.strided, name, f"layout {tensor.layout}", "a dense (strided) tensor")
    check(not tensor.is_meta, name, "device meta", "a tensor with values")


def check_count(count: object, name: str) -> None:
    """It is a whole number of at least 0."""
    whole = isinstance(count, Integral) and not isinstance(count, bool) and int(count) >= 0
    check(whole, name, repr(count), "a whole number, 0 or more")


def check_shape(tensor: Tensor, name: str, takes: str, *sizes: int | None) -> None:
    """``sizes`` are the wanted ones, ``None`` for any."""
    shape = tuple(tensor.shape)
    fits = len(shape) == len(sizes) and all(want is None or want == is_ for want, is_ in zip(sizes, shape, strict=True))
    check(fits, name, f"shape {shape}", takes)


def check_alike(tensor: Tensor, name: str, like: Tensor, like_name: str) -> None:
    """Same dtype and device."""
    check(tensor.dtype == like.dtype, name, f"dtype {tensor.dtype}", f"the dtype of {like_name}, {like.dtype}")
    check_device(tensor, name, like, like_name)


def check_device(tensor: Tensor, name: str, like: Tensor, like_name: str) -> None:
    check(tensor.device == like.device, name, f"device {tensor.device}", f"the device of {like_name}, {like.device}")


def _check_labels(labels: Tensor, name: str, like: Tensor, like_name: str, vocabulary: int) -> None:
    check(labels.dtype in (torch.int64, torch.int32), name, f"dtype {labels.dtype}", "int64 or int32 token ids")
    check_device(labels, name, like, like_name)
    used = labels[labels != IGNORED]
    if used.numel():
        lowest, highest = (int(x) for x in torch.stack(torch.aminmax(used)).tolist())
        inside = lowest >= 0 and highest < vocabulary
        bad = lowest if lowest < 0 else highest
        check(inside, name, f"a token id {bad}", f"ids 0 .. {vocabulary - 1}, or {IGNORED} for an ignored token")


def check_one_step_head(
    h: Tensor,
    labels: Tensor,
    anchor_h: Tensor,
    anchor_labels: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eta: float,
    anchor_weights: Tensor | None,
) -> None:
    """The arguments of ``one_step_head``. Reads label values, so on a GPU it waits for it."""
    tensors = [("h", h), ("anchor_h", anchor_h), ("weight", weight)] + ([("bias", bias)] if bias is not None else [])
    for name, tensor in [*tensors, ("labels", labels), ("anchor_labels", anchor_labels)]:
        check_tensor(tensor, name)
    check(h.dtype in DTYPES, "h", f"dtype {h.dtype}", "bf16, fp16, fp32 or fp64")
    check_shape(weight, "weight", "[V, D]", None, None)
    vocabulary, d = weight.shape
    check(vocabulary >= 1 and d >= 1, "weight", f"shape {tuple(weight.shape)}", "V and D of at least 1")
    check_shape(h, "h", f"[N, T, D] with D={d} of weight", None, None, d)
    check_shape(anchor_h, "anchor_h", f"[A, S, D] with D={d} of weight", None, None, d)
    for name, tensor in tensors[1:]:
        check_alike(tensor, name, h, "h")
    if bias is not None:
        check_shape(bias, "bias", f"[V] with V={vocabulary} of weight", vocabulary)
    n, t, _ = h.shape
    anchors, s, _ = anchor_h.shape
    check(anchors >= 1, "anchor_h", "A=0", "at least one anchor")
    check_shape(labels, "labels", f"[N, T] with N={n} and T={t} of h", n, t)
    check_shape(anchor_labels, "anchor_labels", f"[A, S] with A={anchors} and S={s} of anchor_h", anchors, s)
    _check_labels(labels, "labels", h, "h", vocabulary)
    _check_labels(anchor_labels, "anchor_labels", h, "h", vocabulary)
    empty = torch.nonzero((anchor_labels != IGNORED).sum(1) == 0).flatten().tolist()
    check(not empty, "anchor_labels", f"no answer token in anchor {empty[:1]}", "at least one for every anchor")
    largest = torch.finfo(torch.promote_types(h.dtype, torch.float32)).max
    finite = isinstance(eta, Real) and abs(eta) <= largest
    check(finite, "eta", repr(eta), f"a number from {-largest:.3g} to {largest:.3g}")
    if anchor_weights is not None:
        check_tensor(anchor_weights, "anchor_weights")
        check_shape(anchor_weights, "anchor_weights", f"[A] with A={anchors} of anchor_h", anchors)
        check_device(anchor_weights, "anchor_weights", h, "h")
        check(anchor_weights.is_floating_point(), "anchor_weights", f"dtype {anchor_weights.dtype}", "floating point")
        lowest, total = float(anchor_weights.min()), float(anchor_weights.double().sum())
        usable = lowest >= 0 and 0 < total < float("inf")
        check(usable, "anchor_weights", f"smallest {lowest}, sum {total}", "finite weights >= 0 that are not all 0")

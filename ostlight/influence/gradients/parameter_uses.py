"""The uses of a parameter whose per-sample gradient is known, each with what it must save for it."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ostlight.influence.gradients.norms import wide
from ostlight.influence.gradients.tracking import RULES, ParameterTracker, TrackedTensor, _derived, plain_of

Dense = Callable[[Tensor, tuple[Tensor, ...]], Tensor]
"""From a result's gradient and the kept tensors to the gradient before the sum over rows, in the result's shape."""


@dataclass
class MatrixUse:
    """``result = inputs @ weight' + bias``, the inputs perhaps unfolded from images first."""

    tracker: ParameterTracker
    weight: str | None
    bias: TrackedTensor | None
    unfold: Callable[[Tensor], Tensor] | None = None

    @property
    def names(self) -> list[str]:
        return ([self.weight] if self.weight else []) + (list(self.bias.leaves) if self.bias is not None else [])

    def consume(self, grad: Tensor, kept: tuple[Tensor, ...]) -> None:
        if self.unfold is not None:
            grad = grad.flatten(2).transpose(1, 2)
        if self.bias is not None:
            self.tracker.sink.dense(self.bias, grad)
        if self.weight is not None:
            inputs = kept[0] if self.unfold is None else self.unfold(kept[0])
            self.tracker.sink.matrix(self.weight, inputs, grad)


@dataclass
class TransposedUse:
    """``result = inputs @ weight``."""

    tracker: ParameterTracker
    weight: str

    @property
    def names(self) -> list[str]:
        return [self.weight]

    def consume(self, grad: Tensor, kept: tuple[Tensor, ...]) -> None:
        self.tracker.sink.matrix(self.weight, grad, kept[0])


@dataclass
class TableUse:
    """``result = weight[ids]``."""

    tracker: ParameterTracker
    weight: str
    padding_idx: int | None

    @property
    def names(self) -> list[str]:
        return [self.weight]

    def consume(self, grad: Tensor, kept: tuple[Tensor, ...]) -> None:
        (ids,) = kept
        if self.padding_idx is not None:
            grad = grad * (ids != self.padding_idx).unsqueeze(-1)
        self.tracker.sink.table(self.weight, ids, grad)


@dataclass
class DenseUse:
    """``result`` depends on each parameter entry by entry, up to broadcasting: scales, shifts, biases, class tokens."""

    tracker: ParameterTracker
    parts: list[tuple[TrackedTensor, Dense]]

    @property
    def names(self) -> list[str]:
        return [name for tracked, _ in self.parts for name in tracked.leaves]

    def consume(self, grad: Tensor, kept: tuple[Tensor, ...]) -> None:
        for tracked, before_sum in self.parts:
            self.tracker.sink.dense(tracked, before_sum(grad, kept))


def _itself(grad: Tensor, kept: tuple[Tensor, ...]) -> Tensor:
    return grad


def _negative(grad: Tensor, kept: tuple[Tensor, ...]) -> Tensor:
    return -grad


def _product(grad: Tensor, kept: tuple[Tensor, ...]) -> Tensor:
    return wide(grad) * wide(kept[0])


def _bound(names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    return dict(zip(names, args, strict=False)) | kwargs


def _linear(tracker: ParameterTracker, func: Any, args: Any, kwargs: Any) -> Any:
    given = _bound(("input", "weight", "bias"), args, kwargs)
    return _matrix(tracker, func, given, supported=True, unfold=None)


def _convolution(tracker: ParameterTracker, func: Any, args: Any, kwargs: Any) -> Any:
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    given = _bound(names, args, kwargs)
    kernel = plain_of(given["weight"]).shape[2:]
    stride, dilation = (_each(given.get(key, 1), len(kernel)) for key in ("stride", "dilation"))
    padding = given.get("padding", 0)
    padding = _each(0 if padding == "valid" else padding, len(kernel))
    numeric = all(isinstance(size, int) for size in padding)
    batched = given["input"].ndim == len(kernel) + 2
    unfold = partial(_patches, kernel=kernel, stride=stride, padding=padding, dilation=dilation)
    return _matrix(tracker, func, given, numeric and batched and given.get("groups", 1) == 1, unfold)


def _matrix(
    tracker: ParameterTracker,
    func: Any,
    given: dict[str, Any],
    supported: bool,
    unfold: Callable[[Tensor], Tensor] | None,
) -> Any:
    inputs, weight, bias = given["input"], given["weight"], given.get("bias")
    computed = isinstance(weight, TrackedTensor) and weight.alias is None
    if isinstance(inputs, TrackedTensor) or computed or not supported:
        raise tracker.unsupported(func, [one for one in (inputs, weight, bias) if isinstance(one, TrackedTensor)])
    result = func(**plain_of(given))
    use = MatrixUse(
        tracker,
        weight.alias if isinstance(weight, TrackedTensor) else None,
        bias if isinstance(bias, TrackedTensor) else None,
        unfold,
    )
    # Under autocast the weight gradient is taken on the cast inputs; keeping those costs what training keeps.
    return tracker.tap(result, use, *([inputs.to(result.dtype)] if use.weight else []))


def _each(value: Any, count: int) -> tuple[Any, ...]:
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return values if len(values) == count else values * count


def _patches(
    images: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Tensor:
    """``[R, C, *space]`` as ``[R, places, C * kernel]``: what the kernel sees at each place."""
    images = F.pad(images, [size for size in reversed(padding) for _ in range(2)])
    for axis, (size, step, apart) in enumerate(zip(kernel, stride, dilation, strict=True), start=2):
        images = images.unfold(axis, (size - 1) * apart + 1, step)[..., ::apart]
    axes = range(2, 2 + len(kernel))
    patches = images.permute(0, *axes, 1, *(axis + len(kernel) for axis in axes))
    return patches.flatten(1 + len(kernel)).flatten(1, len(kernel))


def _matmul(tracker: ParameterTracker, func: Any, args: Any, kwargs: Any) -> Any:
    given = _bound(("input", "other"), args, kwargs)
    inputs, weight = given["input"], given["other"]
    if isinstance(inputs, TrackedTensor) or weight.alias is None or weight.ndim != 2 or inputs.ndim < 2:
        raise tracker.unsupported(func, [one for one in (inputs, weight) if isinstance(one, TrackedTensor)])
    result = func(*plain_of(args), **plain_of(kwargs))
    # The weight is [D_in, D_out], so its gradient is that of a linear layer's with both sides exchanged.
    return tracker.tap(result, TransposedUse(tracker, weight.alias), inputs.to(result.dtype))


def _embedding(tracker: ParameterTracker, func: Any, args: Any, kwargs: Any) -> Any:
    names = ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")
    given = _bound(names, args, kwargs)
    ids, weight = given["input"], given["weight"]
    if given.get("max_norm") is not None or given.get("scale_grad_by_freq"):
        raise tracker.unsupported(func, [weight])
    if ids.ndim < 2 or (ids.shape[0] == 1 and weight.alias and tracker.sink.num_units(weight.alias) != 1):
        # One table of positions for the whole batch: the batch comes in where it is added to something.
        return _derived(tracker, func, args, kwargs, [weight])
    if weight.alias is None:
        raise tracker.unsupported(func, [weight])
    result = func(**plain_of(given))
    padding_idx = given.get("padding_idx")
    if padding_idx is not None and padding_idx < 0:
        padding_idx += len(weight.plain)
    return tracker.tap(result, TableUse(tracker, weight.alias, padding_idx), ids)


def _norm(*names: str) -> Callable[..., Any]:
    """For a function of these arguments: a normalisation over the last axes, then a weight and a bias."""

    def rule(tracker: ParameterTracker, func: Any, args: Any, kwargs: Any) -> Any:
        given = _bound(names, args, kwargs)
        inputs, weight, bias = given["input"], given.get("weight"), given.get("bias")
        if isinstance(inputs, TrackedTensor):
            raise tracker.unsupported(func, [inputs])
        eps = given.get("eps", 1e-5 if func is F.layer_norm else None)
        eps = torch.finfo(inputs.dtype).eps if eps is None else eps

        def scaled(grad: Tensor, kept: tuple[Tensor, ...]) -> Tensor:
            return wide(grad) * func(wide(kept[0]), given["normalized_shape"], eps=eps)

        parts: list[tuple[TrackedTensor, Dense]] = [(weight, scaled)] if isinstance(weight, TrackedTensor) else []
        parts += [(bias, _itself)] if isinstance(bias, TrackedTensor) else []
        result = func(**plain_of(given))
        return tracker.tap(result, DenseUse(tracker, parts), *([inputs] if isinstance(weight, TrackedTensor) else []))

    return rule


def _elementwise(before_sum: tuple[Dense, Dense], keeps: bool) -> Callable[..., Any]:
    """For a function of two tensors: how each side's gradient comes out of the result's."""

    def rule(tracker: ParameterTracker, func: Any, args: Any, kwargs: Any) -> Any:
        if kwargs or len(args) != 2:
            raise tracker.unsupported(func, [one for one in args if isinstance(one, TrackedTensor)])
        side = 0 if isinstance(args[0], TrackedTensor) else 1
        other = args[1 - side]
        if other.ndim == 0:
            return NotImplemented
        result = func(*plain_of(args))
        return tracker.tap(result, DenseUse(tracker, [(args[side], before_sum[side])]), *([other] if keeps else []))

    return rule


def _cat(tracker: ParameterTracker, func: Any, args: Any, kwargs: Any) -> Any:
    given = _bound(("tensors", "dim"), args, kwargs)
    pieces, axis = given["tensors"], given.get("dim", 0)
    tracked = [piece for piece in pieces if isinstance(piece, TrackedTensor)]
    if axis % tracked[0].plain.ndim == 0 or not all(piece.expanded for piece in tracked):
        raise tracker.unsupported(func, tracked)

    def tapped(piece: Any) -> Any:
        if not isinstance(piece, TrackedTensor):
            return piece
        return tracker.tap(piece.plain.clone(), DenseUse(tracker, [(piece, _itself)]))

    return func([tapped(piece) for piece in pieces], axis)


def _indexed(tracker: ParameterTracker, func: Any, args: Any, kwargs: Any) -> Any:
    weight, index = args
    if isinstance(weight, TrackedTensor) and isinstance(index, Tensor) and not index.is_floating_point():
        if index.dtype == torch.bool:
            raise tracker.unsupported(func, [weight])
        if index.ndim == 0:  # one expert's weight, say
            return _derived(tracker, func, args, kwargs, [weight])
        return _embedding(tracker, F.embedding, (index, weight), {})
    raise tracker.unsupported(func, [one for one in args if isinstance(one, TrackedTensor)])


RULES[F.linear] = _linear
RULES[F.embedding] = _embedding
RULES[F.layer_norm] = _norm("input", "normalized_shape", "weight", "bias", "eps")
RULES[F.rms_norm] = _norm("input", "normalized_shape", "weight", "eps")
RULES[torch.cat] = _cat
RULES[Tensor.__getitem__] = _indexed
for matmul in (torch.matmul, Tensor.matmul, Tensor.__matmul__, operator.matmul):
    RULES[matmul] = _matmul
for convolution in (F.conv1d, F.conv2d, F.conv3d):
    RULES[convolution] = _convolution
for product in (torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.multiply, operator.mul):
    RULES[product] = _elementwise((_product, _product), keeps=True)
for total in (torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__):
    RULES[total] = _elementwise((_itself, _itself), keeps=False)
for difference in (torch.sub, Tensor.sub, Tensor.__sub__):
    RULES[difference] = _elementwise((_itself, _negative), keeps=False)
RULES[Tensor.__rsub__] = _elementwise((_negative, _itself), keeps=False)

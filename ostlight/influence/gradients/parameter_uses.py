"""The ways a parameter is used whose per-sample gradient is known, each with what it must keep for it."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ostlight.influence.gradients.norms import wide
from ostlight.influence.gradients.tracking import RULES, Watch, Watched, _derived, plain_of

Dense = Callable[[Tensor, tuple[Tensor, ...]], Tensor]
"""From a result's gradient and the kept tensors to the gradient before the sum over rows, in the result's shape."""


@dataclass
class MatrixUse:
    """``result = inputs @ weight' + bias``, the inputs perhaps unfolded from pictures first."""

    watch: Watch
    weight: str | None
    bias: Watched | None
    unfold: Callable[[Tensor], Tensor] | None = None

    @property
    def names(self) -> list[str]:
        return ([self.weight] if self.weight else []) + (list(self.bias.leaves) if self.bias is not None else [])

    def consume(self, grad: Tensor, kept: tuple[Tensor, ...]) -> None:
        if self.unfold is not None:
            grad = grad.flatten(2).transpose(1, 2)
        if self.bias is not None:
            self.watch.sink.dense(self.bias, grad)
        if self.weight is not None:
            inputs = kept[0] if self.unfold is None else self.unfold(kept[0])
            self.watch.sink.matrix(self.weight, inputs, grad)


@dataclass
class TableUse:
    """``result = weight[ids]``."""

    watch: Watch
    weight: str
    padding_idx: int | None

    @property
    def names(self) -> list[str]:
        return [self.weight]

    def consume(self, grad: Tensor, kept: tuple[Tensor, ...]) -> None:
        (ids,) = kept
        if self.padding_idx is not None:
            grad = grad * (ids != self.padding_idx).unsqueeze(-1)
        self.watch.sink.table(self.weight, ids, grad)


@dataclass
class DenseUse:
    """``result`` depends on each parameter entry by entry, up to broadcasting: scales, shifts, biases, class tokens."""

    watch: Watch
    parts: list[tuple[Watched, Dense]]

    @property
    def names(self) -> list[str]:
        return [name for watched, _ in self.parts for name in watched.leaves]

    def consume(self, grad: Tensor, kept: tuple[Tensor, ...]) -> None:
        for watched, before_sum in self.parts:
            self.watch.sink.dense(watched, before_sum(grad, kept))


def _itself(grad: Tensor, kept: tuple[Tensor, ...]) -> Tensor:
    return grad


def _negative(grad: Tensor, kept: tuple[Tensor, ...]) -> Tensor:
    return -grad


def _product(grad: Tensor, kept: tuple[Tensor, ...]) -> Tensor:
    return wide(grad) * wide(kept[0])


def _bound(names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    return dict(zip(names, args, strict=False)) | kwargs


def _linear(watch: Watch, func: Any, args: Any, kwargs: Any) -> Any:
    given = _bound(("input", "weight", "bias"), args, kwargs)
    inputs, weight, bias = given["input"], given["weight"], given.get("bias")
    if isinstance(inputs, Watched) or (isinstance(weight, Watched) and weight.alias is None):
        raise watch.untreated(func, [one for one in (inputs, weight, bias) if isinstance(one, Watched)])
    result = func(inputs, plain_of(weight), plain_of(bias))
    use = MatrixUse(
        watch,
        weight.alias if isinstance(weight, Watched) else None,
        bias if isinstance(bias, Watched) else None,
    )
    # Under autocast the weight gradient is taken on the cast inputs; keeping those costs what training keeps.
    return watch.tap(result, use, *([inputs.to(result.dtype)] if use.weight else []))


def _convolution(watch: Watch, func: Any, args: Any, kwargs: Any) -> Any:
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    given = _bound(names, args, kwargs)
    inputs, weight, bias = given["input"], given["weight"], given.get("bias")
    involved = [one for one in (inputs, weight, bias) if isinstance(one, Watched)]
    spatial = plain_of(weight).ndim - 2
    kernel = tuple(plain_of(weight).shape[2:])
    stride, dilation = (_each(given.get(key, 1), spatial) for key in ("stride", "dilation"))
    padding = given.get("padding", 0)
    padding = _each(0 if padding == "valid" else padding, spatial)
    patches = stride == kernel and not any(padding) and set(dilation) == {1}
    plain = all(isinstance(step, int) for step in padding) and given.get("groups", 1) == 1
    batched = inputs.ndim == spatial + 2
    named = not isinstance(weight, Watched) or weight.alias is not None
    if isinstance(inputs, Watched) or not (plain and batched and named and (patches or spatial <= 2)):
        raise watch.untreated(func, involved)
    result = func(**plain_of(given))

    def unfold(pictures: Tensor) -> Tensor:
        if patches:
            return _cut(pictures, kernel)
        if spatial == 1:
            pictures = pictures.unsqueeze(2)
        columns = F.unfold(
            pictures,
            kernel if spatial == 2 else (1, *kernel),
            dilation if spatial == 2 else (1, *dilation),
            padding if spatial == 2 else (0, *padding),
            stride if spatial == 2 else (1, *stride),
        )
        return columns.transpose(1, 2)

    use = MatrixUse(
        watch,
        weight.alias if isinstance(weight, Watched) else None,
        bias if isinstance(bias, Watched) else None,
        unfold,
    )
    return watch.tap(result, use, *([inputs.to(result.dtype)] if use.weight else []))


def _each(value: Any, count: int) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) and len(value) == count else (_first(value),) * count


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, (tuple, list)) else value


def _cut(pictures: Tensor, kernel: tuple[int, ...]) -> Tensor:
    """``[R, C, *space]`` as patches ``[R, patches, C * patch]``; what does not fill a patch is cut off."""
    rows, channels, *space = pictures.shape
    counts = [size // step for size, step in zip(space, kernel, strict=True)]
    for axis, (count, step) in enumerate(zip(counts, kernel, strict=True)):
        pictures = pictures.narrow(2 + axis, 0, count * step)
    split = [size for pair in zip(counts, kernel, strict=True) for size in pair]
    axes = len(space)
    order = [0, *(2 + 2 * k for k in range(axes)), 1, *(3 + 2 * k for k in range(axes))]
    return pictures.reshape(rows, channels, *split).permute(order).reshape(rows, _size(counts), -1)


def _size(counts: list[int]) -> int:
    total = 1
    for count in counts:
        total *= count
    return total


def _embedding(watch: Watch, func: Any, args: Any, kwargs: Any) -> Any:
    names = ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")
    given = _bound(names, args, kwargs)
    ids, weight = given["input"], given["weight"]
    if given.get("max_norm") is not None or given.get("scale_grad_by_freq"):
        raise watch.untreated(func, [weight])
    if ids.ndim < 2 or (ids.shape[0] == 1 and weight.alias and watch.sink.num_units(weight.alias) != 1):
        # One table of positions for the whole batch: the batch comes in where it is added to something.
        return _derived(watch, func, args, kwargs, [weight])
    if weight.alias is None:
        raise watch.untreated(func, [weight])
    result = func(**plain_of(given))
    padding_idx = given.get("padding_idx")
    if padding_idx is not None and padding_idx < 0:
        padding_idx += len(weight.plain)
    return watch.tap(result, TableUse(watch, weight.alias, padding_idx), ids)


def _layer_norm(watch: Watch, func: Any, args: Any, kwargs: Any) -> Any:
    given = _bound(("input", "normalized_shape", "weight", "bias", "eps"), args, kwargs)
    inputs, weight, bias = given["input"], given.get("weight"), given.get("bias")
    if isinstance(inputs, Watched):
        raise watch.untreated(func, [inputs])
    axes, eps = tuple(range(-len(given["normalized_shape"]), 0)), given.get("eps", 1e-5)

    def scaled(grad: Tensor, kept: tuple[Tensor, ...]) -> Tensor:
        return wide(grad) * F.layer_norm(wide(kept[0]), kept[0].shape[axes[0] :], eps=eps)

    parts: list[tuple[Watched, Dense]] = [(weight, scaled)] if isinstance(weight, Watched) else []
    parts += [(bias, _itself)] if isinstance(bias, Watched) else []
    result = func(**plain_of(given))
    return watch.tap(result, DenseUse(watch, parts), *([inputs] if isinstance(weight, Watched) else []))


def _rms_norm(watch: Watch, func: Any, args: Any, kwargs: Any) -> Any:
    given = _bound(("input", "normalized_shape", "weight", "eps"), args, kwargs)
    inputs, weight = given["input"], given["weight"]
    if isinstance(inputs, Watched):
        raise watch.untreated(func, [inputs])
    axes, eps = len(given["normalized_shape"]), given.get("eps")
    eps = torch.finfo(inputs.dtype).eps if eps is None else eps

    def scaled(grad: Tensor, kept: tuple[Tensor, ...]) -> Tensor:
        return wide(grad) * F.rms_norm(wide(kept[0]), kept[0].shape[-axes:], eps=eps)

    return watch.tap(func(**plain_of(given)), DenseUse(watch, [(weight, scaled)]), inputs)


def _elementwise(before_sum: tuple[Dense, Dense], keeps: bool) -> Callable[..., Any]:
    """For a function of two tensors: how each side's gradient comes out of the result's."""

    def rule(watch: Watch, func: Any, args: Any, kwargs: Any) -> Any:
        if kwargs or len(args) != 2:
            raise watch.untreated(func, [one for one in args if isinstance(one, Watched)])
        side = 0 if isinstance(args[0], Watched) else 1
        other = args[1 - side]
        if other.ndim == 0:
            return NotImplemented
        result = func(*plain_of(args))
        return watch.tap(result, DenseUse(watch, [(args[side], before_sum[side])]), *([other] if keeps else []))

    return rule


def _cat(watch: Watch, func: Any, args: Any, kwargs: Any) -> Any:
    given = _bound(("tensors", "dim"), args, kwargs)
    pieces, axis = given["tensors"], given.get("dim", 0)
    watched = [piece for piece in pieces if isinstance(piece, Watched)]
    if axis % watched[0].plain.ndim == 0 or not all(piece.expanded for piece in watched):
        raise watch.untreated(func, watched)

    def tapped(piece: Any) -> Any:
        if not isinstance(piece, Watched):
            return piece
        return watch.tap(piece.plain.clone(), DenseUse(watch, [(piece, _itself)]))

    return func([tapped(piece) for piece in pieces], axis)


def _indexed(watch: Watch, func: Any, args: Any, kwargs: Any) -> Any:
    weight, index = args
    if isinstance(weight, Watched) and isinstance(index, Tensor) and not index.is_floating_point():
        if index.dtype == torch.bool:
            raise watch.untreated(func, [weight])
        return _embedding(watch, F.embedding, (index, weight), {})
    raise watch.untreated(func, [one for one in args if isinstance(one, Watched)])


RULES[F.linear] = _linear
RULES[F.embedding] = _embedding
RULES[F.layer_norm] = _layer_norm
RULES[F.rms_norm] = _rms_norm
RULES[torch.cat] = _cat
RULES[Tensor.__getitem__] = _indexed
for convolution in (F.conv1d, F.conv2d, F.conv3d):
    RULES[convolution] = _convolution
for product in (torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.multiply, operator.mul):
    RULES[product] = _elementwise((_product, _product), keeps=True)
for total in (torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__):
    RULES[total] = _elementwise((_itself, _itself), keeps=False)
for difference in (torch.sub, Tensor.sub, Tensor.__sub__):
    RULES[difference] = _elementwise((_itself, _negative), keeps=False)
RULES[Tensor.__rsub__] = _elementwise((_negative, _itself), keeps=False)

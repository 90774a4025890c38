"""Low-rank adapters in one product: ``x (W + s B A)'``, forward and backward, with the sum formed on the fly.

peft computes ``x W' + s (x A') B'``: two thin products, a scaling and a sum for every layer, and as much again in the
backward pass. Where only the adapters are selected none of these intermediate results is needed but ``x A'`` and the
gradient times ``B``, which the samples' gradients are made of. The merged weight is formed twice and never kept, and
only in fp32 or fp64: in bf16 the sum would round the adapter away.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ostlight.influence.gradients.sink import GradientSink


@dataclass(frozen=True)
class Adapter:
    """One adapted linear layer: ``weight [D_out, D_in]``, ``down [rank, D_in]`` (A), ``up [D_out, rank]`` (B)."""

    weight: Tensor
    bias: Tensor | None
    down: Tensor
    up: Tensor
    scaling: float
    names: tuple[str, str]
    sink: GradientSink | None

    def merged(self) -> Tensor:
        return torch.addmm(self.weight, self.up, self.down, alpha=self.scaling)

    def consume(self, inputs: Tensor, grad: Tensor) -> None:
        assert self.sink is not None, "a forward without a sink asks for no gradient"
        inputs = inputs.reshape(len(inputs), -1, inputs.shape[-1])
        grad = grad.reshape(len(grad), -1, grad.shape[-1])
        # Rank first: thin products are several times faster that way round.
        hidden = torch.matmul(self.scaling * self.down, inputs.mT).mT
        hidden_grad = torch.matmul(self.scaling * self.up.T, grad.mT).mT
        self.sink.matrix(self.names[0], inputs, hidden_grad)
        self.sink.matrix(self.names[1], hidden, grad)


class _Adapted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, root: Tensor, adapter: Adapter) -> Tensor:
        ctx.save_for_backward(inputs)
        ctx.adapter = adapter
        return F.linear(inputs, adapter.merged(), adapter.bias)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,), (inputs,) = grads, ctx.saved_tensors
        ctx.adapter.consume(inputs, grad)
        return (grad @ ctx.adapter.merged() if ctx.needs_input_grad[0] else None), None, None


def fused_forwards(
    model: nn.Module, names: Mapping[int, str], sink: GradientSink, root: Tensor, announce: Callable[[], bool]
) -> Iterator[tuple[nn.Module, Callable[..., Tensor]]]:
    """The adapted layers that can be computed in one product, each with the forward that does so.

    Args:
        model: before its parameters are replaced.
        names: id to name of the parameters.
        sink: takes the adapters' gradients.
        root: makes the results ask for a gradient.
        announce: whether a use is a new one (and not a recomputation under checkpointing).
    """

    def fused(adapter: Adapter, inputs: Tensor) -> Tensor:
        if announce():
            for name in adapter.names:
                sink.expect(name)
        result: Tensor = _Adapted.apply(inputs, root, adapter)  # type: ignore[no-untyped-call, unused-ignore]
        return result

    for layer, adapter in _plain_adapters(model, names, sink):
        yield layer, _forward(adapter, layer.forward, fused, with_gradients=True)


@contextmanager
def merged_forwards(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Inside, without gradients, the adapted layers among the parameters take one product instead of three."""

    def merged(adapter: Adapter, inputs: Tensor) -> Tensor:
        return F.linear(inputs, adapter.merged(), adapter.bias)

    layers = list(_plain_adapters(model, {id(parameter): name for name, parameter in parameters.items()}, None))
    try:
        for layer, adapter in layers:
            layer.forward = _forward(adapter, layer.forward, merged, with_gradients=False)
        yield
    finally:
        for layer, _ in layers:
            del layer.forward


def _forward(
    adapter: Adapter,
    original: Callable[..., Tensor],
    in_one_product: Callable[[Adapter, Tensor], Tensor],
    with_gradients: bool,
) -> Callable[..., Tensor]:
    def forward(inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        plain = not (args or kwargs) and inputs.dtype == adapter.weight.dtype
        if plain and torch.is_grad_enabled() == with_gradients and not torch.is_autocast_enabled(inputs.device.type):
            return in_one_product(adapter, inputs)
        return original(inputs, *args, **kwargs)

    return forward


def _plain_adapters(
    model: nn.Module, names: Mapping[int, str], sink: GradientSink | None
) -> Iterator[tuple[nn.Module, Adapter]]:
    peft = sys.modules.get("peft")
    if peft is None:
        return
    for layer in model.modules():
        adapter = _plain_adapter(layer, names, sink) if type(layer) is peft.tuners.lora.Linear else None
        if adapter is not None:
            yield layer, adapter


def _plain_adapter(layer: Any, names: Mapping[int, str], sink: GradientSink | None) -> Adapter | None:
    """``None`` for anything but one active, unmerged, vanilla adapter without dropout or hooks on a frozen linear."""
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    base = layer.base_layer
    if layer.disable_adapters or layer.merged or len(active) != 1 or type(base) is not nn.Linear:
        return None
    (name,) = active
    down, up, dropout = layer.lora_A[name], layer.lora_B[name], layer.lora_dropout[name]
    drops = layer.training and getattr(dropout, "p", 0.0) > 0
    variant = name in layer.lora_variant or not type(down) is type(up) is nn.Linear or up.bias is not None
    trained = any(id(parameter) in names for parameter in base.parameters())
    selected = id(down.weight) in names and id(up.weight) in names
    same_dtype = {down.weight.dtype, up.weight.dtype, base.weight.dtype} in ({torch.float32}, {torch.float64})
    if drops or variant or trained or not selected or not same_dtype or _hooked(layer, base, down, up):
        return None
    return Adapter(
        base.weight.detach(),
        None if base.bias is None else base.bias.detach(),
        down.weight.detach(),
        up.weight.detach(),
        float(layer.scaling[name]),
        (names[id(down.weight)], names[id(up.weight)]),
        sink,
    )


def _hooked(layer: nn.Module, *parts: nn.Module) -> bool:
    """A hook or a replaced forward that the fused one would bypass."""
    bypassed = any(part._forward_hooks or part._forward_pre_hooks or "forward" in part.__dict__ for part in parts)
    return bypassed or "forward" in layer.__dict__

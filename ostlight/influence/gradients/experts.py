"""Mixtures of experts: grouped products with weights ``[E, D_out, D_in]``, of which each token takes a few.

transformers computes them in several ways (a loop over experts, gathered weights, a grouped kernel), all of which lose
whose token is whose. So a module of experts runs here instead for the length of the pass: tokens sorted by expert, one
product an expert, their rows remembered. Its own parts do the rest: gate, activation, norm. What a module must have is
what transformers' ``use_experts_implementation`` gives it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Routing:
    """Token-expert pairs, sorted by expert.

    Attributes:
        expert: ``[S]``, ascending.
        row: ``[S]`` of the hidden states, each of which comes ``top_k`` times.
        num_rows: of the hidden states.
        sizes: pairs of each expert.
    """

    expert: Tensor
    row: Tensor
    num_rows: int
    sizes: list[int]


@dataclass
class GroupedUse:
    """``result[s] = weight[expert[s]] @ inputs[s] + bias[expert[s]]``."""

    tracker: Any
    routing: Routing
    weight: str | None
    bias: str | None
    transposed: bool

    @property
    def names(self) -> list[str]:
        return [name for name in (self.weight, self.bias) if name is not None]

    def consume(self, grad: Tensor, kept: tuple[Tensor, ...]) -> None:
        sink, routing = self.tracker.sink, self.routing
        if self.bias is not None:
            sink.experts(self.bias, routing, grad.new_ones(len(grad), 1), grad)
        if self.weight is not None:
            (inputs,) = kept
            # A weight [E, D_in, D_out] has the transposed gradient.
            sink.experts(self.weight, routing, *((grad, inputs) if self.transposed else (inputs, grad)))


def expert_forwards(
    model: nn.Module, names: dict[int, str], tracker: Any
) -> Iterator[tuple[nn.Module, Callable[..., Tensor]]]:
    """The modules of experts among whose own parameters some are tracked, each with the forward that sees them used.

    Args:
        model: before its parameters are replaced.
        names: id to name of the parameters.
        tracker: the ``ParameterTracker`` that will have replaced them.
    """
    for module in model.modules():
        tracked = any(id(p) in names for p in module._parameters.values() if p is not None)
        if tracked and _is_known(module):
            yield module, partial(_forward, tracker, module)


def _is_known(module: Any) -> bool:
    told = all(hasattr(module, name) for name in ("has_gate", "has_bias", "is_transposed", "_apply_gate"))
    weights = module._parameters.get("down_proj")
    return told and weights is not None and weights.ndim == 3 and not getattr(module, "_is_expert_parallel", False)


def _forward(tracker: Any, module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """``[T, D]`` from ``hidden_states [T, D]`` and the experts of each, ``[T, top_k]``, with their weights."""
    experts, top_k = top_k_index.reshape(-1), top_k_index.shape[-1]
    expert, order = experts.sort(stable=True)
    sizes = torch.bincount(expert, minlength=len(module.down_proj)).tolist()
    routing = Routing(expert, order // top_k, len(hidden_states), sizes)
    first = "gate_up_proj" if module.has_gate else "up_proj"
    result = _grouped(tracker, module, first, hidden_states[routing.row], routing)
    result = module._apply_gate(result) if module.has_gate else module.act_fn(result)
    result = _grouped(tracker, module, "down_proj", result, routing)
    if getattr(module, "has_post_expert_norm", False):
        result = module.post_expert_norm(result)
    weighted = result * top_k_weights.reshape(-1)[order].unsqueeze(-1)
    by_token = torch.empty_like(weighted).index_copy(0, order, weighted)
    return by_token.unflatten(0, (-1, top_k)).sum(1).to(hidden_states.dtype)


def _grouped(tracker: Any, module: Any, name: str, inputs: Tensor, routing: Routing) -> Tensor:
    weight = getattr(module, name)
    bias = getattr(module, f"{name}_bias") if module.has_bias else None
    weights, biases = _plain(weight), None if bias is None else _plain(bias)
    pieces = [
        F.linear(some, weights[k].T if module.is_transposed else weights[k], None if biases is None else biases[k])
        for k, some in enumerate(inputs.split(routing.sizes))
        if len(some)
    ]
    result = torch.cat(pieces)
    use = GroupedUse(tracker, routing, _name(tracker, weight), _name(tracker, bias), module.is_transposed)
    if not use.names:
        return result
    tracker.check_gradients_on(use.names)
    return tracker.tap(result, use, *([inputs.to(result.dtype)] if use.weight else []))


def _plain(parameter: Any) -> Tensor:
    return getattr(parameter, "plain", parameter)


def _name(tracker: Any, parameter: Any) -> str | None:
    """Of a tracked parameter.

    Raises:
        InfluenceError: it is computed from parameters (by adapters, say), and not one.
    """
    if not hasattr(parameter, "leaves"):
        return None
    if parameter.alias is None:
        raise tracker.unsupported(_grouped, [parameter])
    return str(parameter.alias)

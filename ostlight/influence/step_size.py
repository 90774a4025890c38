"""The step size of the simulated step, by rule and not by result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ostlight.errors import BadRecord, InfluenceError
from ostlight.influence.gradients.factors import gradient_in_bases
from ostlight.influence.preconditioner import Preconditioner
from ostlight.influence.sample_gradient import norm, sample_gradient, sample_gradient_parts
from ostlight.influence.shared_passes import is_sharded, norm_over_ranks
from ostlight.influence.task import CausalLM, Task
from ostlight.progress import track

SMALLEST, LARGEST = torch.finfo(torch.float32).smallest_normal, torch.finfo(torch.float32).max
"""Norms of a gradient that a step in float32 can be scaled by."""


def first_adam_step(parameters: Mapping[str, nn.Parameter], lr: float) -> float:
    """Norm of Adam's first update: every weight moves by the learning rate."""
    return lr * float(sum(p.numel() for p in parameters.values()) ** 0.5)


def median_step_size(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    batches: Iterable[Any],
    update_norm: float,
    *,
    task: Task | None = None,
    preconditioner: Preconditioner | None = None,
) -> float:
    """Returns the step size at which the median simulated step is as long as the median real one.

        median_i ||eta P g_i|| = median update norm of the optimiser

    so it depends on the optimiser and the gradients, never on how well the ranking turns out.

    Args:
        model: the parameters ask for gradients (``train_only``). One sharded by FSDP2 runs each sample on all ranks,
            which give the same samples.
        parameters: what the step changes.
        batches: some pool samples, to take the median of ``||g_i||`` over, one gradient after the other.
        update_norm: how far the optimiser moves these parameters in a step, ``first_adam_step`` where not measured.
        task: how losses come out of a batch; ``CausalLM()`` by default.
        preconditioner: ``P``; ``None`` for SGD.

    Raises:
        InfluenceError: no gradient of these samples is usable.
    """
    task, norms = task or CausalLM(), []
    for single in (single for batch in track(batches, "step size") for single in task.singles(batch)):
        try:
            norms.append(_step_norm(model, task, parameters, single, preconditioner))
        except BadRecord:
            continue
    middle = float(torch.tensor(norms, dtype=torch.float64).median()) if norms else 0.0
    if not SMALLEST <= middle <= LARGEST:
        raise InfluenceError(
            "step_size cannot be derived: the gradients of the samples looked at are zero or not finite; set step_size"
        )
    return update_norm / middle


def _step_norm(
    model: nn.Module,
    task: Task,
    parameters: Mapping[str, nn.Parameter],
    single: Any,
    preconditioner: Preconditioner | None,
) -> float:
    """``||P g||`` of a sample."""
    if is_sharded(model):
        parts = sample_gradient_parts(model, task, parameters, single)
        if preconditioner is not None:
            parts = preconditioner.direction_of_parts(parts, parameters)
        return norm_over_ranks(parts, next(model.parameters()).device)
    if preconditioner is not None:
        return direction_norm(model, task, parameters, single, preconditioner)
    return norm(sample_gradient(model, task, parameters, single)[1])


def direction_norm(
    model: nn.Module, task: Task, parameters: Mapping[str, nn.Parameter], single: Any, preconditioner: Preconditioner
) -> float:
    """``||P g||`` of a sample, in the bases of ``P``, which are orthonormal. All ranks that share its blocks call it
    with the same sample.

    Args:
        parameters: those of the step, which ask for gradients.
        single: a batch of one.

    Raises:
        BadRecord: a loss or a gradient that is not finite.
    """
    if preconditioner.is_diagonal:
        direction = preconditioner.direction(sample_gradient(model, task, parameters, single)[1])
        return norm(direction)
    blocks = {name: preconditioner.blocks[name] for name in parameters if name in preconditioner.blocks}
    squared = torch.zeros((), dtype=torch.float64, device=next(iter(parameters.values())).device)
    for name, gradient in gradient_in_bases(model, task, parameters, blocks, single):
        inverse = blocks[name].inverse
        squared += (gradient.reshape(inverse.shape) * inverse).double().square().sum()
    squared = preconditioner.summed_over_ranks(squared)
    if not bool(squared.isfinite()):
        raise BadRecord("gradient_not_finite", "the gradient holds NaN or infinity")
    return float(squared.sqrt())

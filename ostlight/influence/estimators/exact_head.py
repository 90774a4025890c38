"""`exact` where only a linear head is trained: the step and its effect in closed form, through the fused kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ostlight.errors import BadRecord, InfluenceError
from ostlight.influence.estimators.exact import Exact
from ostlight.influence.failures import STEP_BREAKS, failure_column, not_finite_losses
from ostlight.influence.gradients.norms import wide
from ostlight.influence.simulated_step import SimulatedStep
from ostlight.influence.task import IGNORED, answer_losses
from ostlight.progress import track
from ostlight_kernels import one_step_head


def untied_linear_head(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> nn.Linear | None:
    """The output layer, where the given parameters are all of it and nothing else uses them; else ``None``."""
    if not hasattr(model, "get_output_embeddings"):
        return None
    hugging_face: Any = model
    head, inputs = hugging_face.get_output_embeddings(), hugging_face.get_input_embeddings()
    if not isinstance(head, nn.Linear) or (inputs is not None and head.weight is getattr(inputs, "weight", None)):
        return None
    return head if {id(p) for p in parameters.values()} == {id(p) for p in head.parameters()} else None


class ExactHead:
    """``Exact`` where the parameters are the output layer, a whole batch at once.

    The features the head sees do not change with the head, so one forward pass over the anchors serves all
    candidates, and a candidate costs one forward pass and no backward pass. Where a model changes its head's logits
    (divides or caps them, say) the general ``Exact`` is taken instead.

    Args:
        step: plain SGD, of a model whose output layer is linear.
        head: from ``untied_linear_head``.

    Attributes:
        general: what is taken where the logits are not the head's own; else ``None``.

    Raises:
        InfluenceError: as ``Exact``, where that is taken.
    """

    def __init__(self, step: SimulatedStep, head: nn.Linear) -> None:
        self.step, self.head = step, head
        self.general = None if self._gives_the_logits(step.anchors.batches[0]) else Exact(step)
        if self.general:
            return
        seen = [self._features(batch) for batch in track(step.anchors.batches, "anchors' features", unit="batches")]
        for indices, (losses, _, _) in zip(step.anchors.indices, seen, strict=True):
            for index, problem in zip(indices, not_finite_losses(losses), strict=True):
                if problem is not None:
                    raise InfluenceError(f"{step.anchors.name_of(index)}: {problem}; fix it, or leave it out")
        longest = max(labels.shape[1] for _, _, labels in seen)
        self.anchor_features = torch.cat([_widened(h, longest, 0.0) for _, h, _ in seen])
        self.anchor_labels = torch.cat([_widened(labels, longest, IGNORED) for _, _, labels in seen])
        self.weights = step.anchors.weights(self.anchor_labels.device)

    def columns(self, batch: Any) -> dict[str, Any]:
        """As ``Exact.columns``."""
        if self.general:
            return self.general.columns(batch)
        losses, features, labels = self._features(batch)
        utilities = [
            one_step_head(
                features,
                labels,
                self.anchor_features,
                self.anchor_labels,
                self.head.weight.detach(),
                None if self.head.bias is None else self.head.bias.detach(),
                self.step.step_size,
                weights,
            )
            for weights in self.weights
        ]
        columns: dict[str, Any] = {"score": utilities[0].double(), "loss": losses.double()}
        columns["gradient_norm"] = self._gradient_norms(features, labels)
        if self.step.anchors.names:
            columns["utility_by_group"] = torch.stack(utilities[1:], dim=1)
        failures = not_finite_losses(losses)
        broken = ~torch.stack(utilities, dim=1).isfinite().all(1)
        for row in broken.nonzero()[:, 0].tolist():
            failures[row] = failures[row] or BadRecord("score_not_finite", STEP_BREAKS)
        return columns | failure_column(failures)

    def _features(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Losses ``[N]``; what the head sees at the answer tokens ``[N, most answer tokens, D]``; their labels."""
        logits, targets, (features,) = self._run(batch)
        losses = answer_losses(logits, targets)
        wanted = targets != IGNORED
        # Answer tokens first, in order; what is left of the widest sample's count is ignored.
        order = torch.argsort((~wanted).to(torch.int8), dim=1, stable=True)[:, : int(wanted.sum(1).max())]
        labels = targets.gather(1, order).masked_fill(~wanted.gather(1, order), IGNORED)
        return losses, features.gather(1, order[:, :, None].expand(-1, -1, features.shape[2])), labels

    def _run(self, batch: Any) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Logits ``[N, T, V]``, labels ``[N, T]``, and what each call of the head saw, ``[N, T, D]``."""
        caught: list[Tensor] = []
        hook = self.head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0].detach()))
        try:
            # Mixed precision would round the loss by more than a step changes it.
            with torch.no_grad(), torch.autocast(self.step.device.type, enabled=False):
                logits, labels = self.step.task.logits(self.step.model, batch)
        finally:
            hook.remove()
        return logits, labels, [seen[:, : labels.shape[1]] for seen in caught if seen.ndim == 3]

    def _gives_the_logits(self, batch: Any) -> bool:
        """Whether the model's logits at the answer tokens are the head's of what it saw, but for rounding."""
        logits, labels, caught = self._run(batch)
        if len(caught) != 1 or caught[0].shape[:-1] != logits.shape[:-1]:
            return False
        wanted = labels != IGNORED
        found, own = self._logits(caught[0][wanted]), logits[wanted]
        summed = torch.promote_types(found.dtype, torch.float32)
        rounding = torch.finfo(found.dtype).eps + 64 * torch.finfo(summed).eps
        allowed = rounding * found.where(found.isfinite(), 0).abs().amax(-1, keepdim=True).double()
        found, own = found.double(), own.double()
        return bool(((found == own) | ((found - own).abs() <= allowed)).all())

    def _logits(self, features: Tensor) -> Tensor:
        """The head's alone, without what hooks on it do."""
        with torch.no_grad():
            return F.linear(features, self.head.weight, self.head.bias)

    def _gradient_norms(self, features: Tensor, labels: Tensor) -> Tensor:
        """``[N]`` norms of ``E' H / n``, as ``sum (E E') * (H H')``: no gradient ``[V, D]`` is formed."""
        with torch.no_grad():
            wanted = labels != IGNORED
            logits = wide(self._logits(features))
            errors = logits.softmax(-1).scatter_add(
                2, labels.clamp_min(0)[:, :, None], -torch.ones_like(logits[:, :, :1])
            )
            share = wanted.to(errors.dtype) / wanted.sum(1, keepdim=True).clamp_min(1)
            errors = errors * share[:, :, None]
            h = features.to(errors.dtype)
            products = h @ h.mT + (0 if self.head.bias is None else 1)
            return ((errors @ errors.mT) * products).sum((1, 2)).clamp_min(0).sqrt().double()


def _widened(tensor: Tensor, length: int, fill: float) -> Tensor:
    behind = [0, 0] * (tensor.ndim - 2) + [0, length - tensor.shape[1]]
    return F.pad(tensor, behind, value=fill)

"""`exact` where only a linear head is trained: the step and its effect in closed form, through the fused kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ostlight.errors import BadRecord
from ostlight.influence.estimators.exact import Exact
from ostlight.influence.simulated_step import Step
from ostlight.models.batch import Batch
from ostlight.models.losses import IGNORED, per_sample_losses
from ostlight.models.module import MultimodalModel
from ostlight_kernels import one_step_head


def untied_linear_head(model: MultimodalModel, parameters: Mapping[str, nn.Parameter]) -> nn.Linear | None:
    """The output layer, where the given parameters are all of it and nothing else uses them; else ``None``."""
    head = model.model.get_output_embeddings()
    inputs = model.model.get_input_embeddings()
    if not isinstance(head, nn.Linear) or (inputs is not None and head.weight is getattr(inputs, "weight", None)):
        return None
    return head if {id(p) for p in parameters.values()} == {id(p) for p in head.parameters()} else None


class ExactHead:
    """``Exact`` for the scope ``head``, a whole batch at once.

    The features the head sees do not change with the head, so one forward pass over the anchors serves all
    candidates, and a candidate costs one forward pass and no backward pass. Where a model changes its head's logits
    (divides or caps them, say) the general ``Exact`` is taken instead.

    Args:
        step: plain SGD, of a model whose output layer is linear.
        head: from ``untied_linear_head``.

    Attributes:
        general: what is taken where the logits are not the head's own; else ``None``.

    Raises:
        ValueError, SelectorError: as ``Exact``, where that is taken.
    """

    def __init__(self, step: Step, head: nn.Linear) -> None:
        self.model, self.head, self.eta, self.names = step.model, head, step.eta, step.anchors.names
        self.general = None if self._gives_the_logits(step.anchors.batches[0]) else Exact(step)
        if self.general:
            return
        seen = [self._features(batch) for batch in step.anchors.batches]
        longest = max(labels.shape[1] for _, _, labels in seen)
        self.anchor_features = torch.cat([_widened(h, longest, 0.0) for _, h, _ in seen])
        self.anchor_labels = torch.cat([_widened(labels, longest, IGNORED) for _, _, labels in seen])
        self.weights = step.anchors.weights

    def columns(self, batch: Batch) -> dict[str, Any]:
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
                self.eta,
                weights,
            )
            for weights in self.weights
        ]
        columns: dict[str, Any] = {"score": utilities[0].double(), "loss": losses.double()}
        columns["gradient_norm"] = self._gradient_norms(features, labels)
        if self.names:
            columns["utility_by_group"] = torch.stack(utilities[1:], dim=1)
        bad = [loss != loss or abs(loss) == float("inf") for loss in losses.tolist()]
        if any(bad):
            failure = BadRecord("loss_not_finite", "the proxy's loss on this sample is not finite")
            columns["failure"] = [failure if b else None for b in bad]
        return columns

    def _features(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Losses ``[N]``; what the head sees at the answer tokens ``[N, most answer tokens, D]``; their labels."""
        logits, (seen,) = self._run(batch)
        losses = per_sample_losses(logits, batch.labels)
        features, targets = seen[:, :-1], batch.labels[:, 1:]
        wanted = targets != IGNORED
        # Answer tokens first, in order; what is left of the widest sample's count is ignored.
        order = torch.argsort((~wanted).to(torch.int8), dim=1, stable=True)[:, : int(wanted.sum(1).max())]
        labels = targets.gather(1, order).masked_fill(~wanted.gather(1, order), IGNORED)
        return losses, features.gather(1, order[:, :, None].expand(-1, -1, features.shape[2])), labels

    def _run(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """The model's logits ``[N, T, V]``, and what each call of its head saw, ``[N, T, D]``."""
        caught: list[Tensor] = []
        hook = self.head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0].detach()))
        try:
            # Mixed precision would round the loss by more than a step changes it.
            with torch.no_grad(), torch.autocast(batch.labels.device.type, enabled=False):
                return self.model.logits(batch), caught
        finally:
            hook.remove()

    def _gives_the_logits(self, batch: Batch) -> bool:
        """Whether the model's logits at the answer tokens are the head's of what it saw, but for rounding."""
        logits, caught = self._run(batch)
        if len(caught) != 1 or caught[0].shape[:-1] != logits.shape[:-1]:
            return False
        wanted = batch.labels[:, 1:] != IGNORED
        found, own = self._logits(caught[0][:, :-1][wanted]), logits[:, :-1][wanted]
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
            logits = self._logits(features)
            logits = logits if logits.dtype == torch.float64 else logits.float()
            errors = logits.softmax(-1).scatter_add(
                2, labels.clamp_min(0)[:, :, None], -torch.ones_like(logits[:, :, :1])
            )
            share = wanted.to(errors.dtype) / wanted.sum(1, keepdim=True).clamp_min(1)
            errors = errors * share[:, :, None]
            h = features.to(errors.dtype)
            products = h @ h.mT + (0 if self.head.bias is None else 1)
            return ((errors @ errors.mT) * products).sum((1, 2)).clamp_min(0).sqrt().double()


def _widened(tensor: Tensor, length: int, fill: float) -> Tensor:
    missing = length - tensor.shape[1]
    if not missing:
        return tensor
    return torch.cat([tensor, tensor.new_full((len(tensor), missing, *tensor.shape[2:]), fill)], dim=1)

"""The shape of the simulated step: plain SGD, or as Adam would take it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ostlight.errors import OstlightError
from ostlight.influence.anchors import AnchorSet
from ostlight.influence.sample_gradient import sample_gradient, train_only
from ostlight.models.module import MultimodalModel

FILE = "second_moments.safetensors"
EPSILON = 1e-8
"""Added to the root of the second moment, as in Adam."""

Scale = dict[str, Tensor]
"""What each entry of a gradient is multiplied by before the step, by parameter name."""


class SecondMoments(Callback):
    """Keeps Adam's bias-corrected second moments of the warm-up, frozen at its end.

    They are frozen because a score may not depend on what was scored before it.
    """

    def __init__(self) -> None:
        self._moments: dict[str, Tensor] = {}

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, MultimodalModel), "the warm-up trains the models of this project"
        optimizer = trainer.optimizers[0]
        beta = optimizer.param_groups[0]["betas"][1]
        for name, parameter in pl_module.model.named_parameters():
            state = optimizer.state.get(parameter)
            if state:
                corrected = state["exp_avg_sq"] / (1 - beta ** float(state["step"]))
                self._moments[name] = corrected.detach().float().cpu().contiguous()

    def save(self, folder: Path) -> None:
        """Writes one tensor a parameter, in the parameters' shapes."""
        save_file(self._moments, folder / FILE)


def adam_scale(
    folder: Path, model: MultimodalModel, parameters: Mapping[str, nn.Parameter], anchors: AnchorSet
) -> tuple[Scale, str]:
    """``1 / (sqrt(v) + eps)`` for the given parameters, and where ``v`` was taken from, in words.

    ``v`` is the warm-up's second moments; where it was skipped or undone, the mean square of the anchors' gradients.

    Raises:
        OstlightError: the stored moments lack a parameter of the scope.
    """
    if (folder / FILE).exists():
        stored = load_file(folder / FILE)
        missing = [name for name in parameters if name not in stored]
        if missing:
            raise OstlightError(
                f"{folder / FILE} lacks {missing[0]} and {len(missing) - 1} more of the scope: the warm-up did not "
                "train them; choose a scope it trained, or optimizer=sgd"
            )
        moments, source = {n: stored[n] for n in parameters}, "the warm-up's second moments"
    else:
        moments = _anchor_moments(model, parameters, anchors)
        source = "the anchors' gradients: no step of a warm-up was kept"
    scale = {n: 1 / (v.sqrt() + EPSILON) for n, v in moments.items()}
    return {n: s.to(parameters[n].device) for n, s in scale.items()}, source


def _anchor_moments(model: MultimodalModel, parameters: Mapping[str, nn.Parameter], anchors: AnchorSet) -> Scale:
    train_only(model, parameters)
    sums = {n: torch.zeros_like(p, dtype=torch.float32) for n, p in parameters.items()}
    for batch in anchors.batches:
        for single in batch.singles():
            _, gradient = sample_gradient(model, list(parameters.values()), single)
            for name, g in zip(parameters, gradient, strict=True):
                sums[name] += g.float().square()
    return {n: s / len(anchors.groups) for n, s in sums.items()}

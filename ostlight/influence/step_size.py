"""The step size of the simulated step, by rule and not by result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from ostlight.errors import BadRecord, SelectorError
from ostlight.influence.sample_gradient import norm, sample_gradient
from ostlight.models.batch import Batch
from ostlight.models.module import MultimodalModel

FILE = "update_norms.npz"


class UpdateNorms(Callback):
    """Records how far each parameter moves in every optimiser step of the warm-up."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._before: list[Tensor] = []
        self._norms: list[list[float]] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        assert isinstance(pl_module, MultimodalModel), "the warm-up trains the models of this project"
        self._names = [n for n, _ in pl_module.model.named_parameters()]
        self._before = [p.detach().clone() for p in pl_module.model.parameters()]

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        assert isinstance(pl_module, MultimodalModel), "the warm-up trains the models of this project"
        moved = zip(pl_module.model.parameters(), self._before, strict=True)
        self._norms.append([float((after.detach() - before).float().norm()) for after, before in moved])

    def save(self, folder: Path) -> None:
        """Writes ``[steps, parameters]`` norms with the parameters' names."""
        np.savez(folder / FILE, names=np.array(self._names), norms=np.array(self._norms))


def median_update_norm(folder: Path, parameters: Mapping[str, nn.Parameter]) -> float | None:
    """Median over the warm-up's steps of the distance the given parameters moved; ``None`` where none was recorded."""
    if not (folder / FILE).exists():
        return None
    stored = np.load(folder / FILE)
    columns = [k for k, name in enumerate(stored["names"]) if str(name) in parameters]
    if not columns or not len(stored["norms"]):
        return None
    return float(np.median(np.sqrt((stored["norms"][:, columns] ** 2).sum(1))))


def first_adam_step(parameters: Mapping[str, nn.Parameter], lr: float) -> float:
    """Norm of Adam's first update: every weight moves by the learning rate."""
    return lr * sum(p.numel() for p in parameters.values()) ** 0.5


def step_size_by_rule(
    model: MultimodalModel,
    parameters: Mapping[str, nn.Parameter],
    singles: Iterable[Batch],
    update_norm: float,
    scale: Mapping[str, Tensor] | None = None,
) -> float:
    """The eta at which the median simulated step is as long as the median real one.

        median_i ||eta P g_i|| = median update norm of the warm-up's optimiser

    so eta depends on the optimiser and the gradients, never on how well the ranking turns out.

    Args:
        singles: some pool samples, each in a batch of its own, to take the median of ``||g_i||`` over.
        update_norm: from ``median_update_norm`` or ``first_adam_step``.
        scale: ``P``, as for ``Exact``; ``None`` for SGD.

    Raises:
        SelectorError: no gradient of these samples is usable.
    """
    norms = []
    for single in singles:
        try:
            gradient = sample_gradient(model, list(parameters.values()), single)[1]
        except BadRecord:
            continue
        if scale is not None:
            gradient = [g * scale[name] for g, name in zip(gradient, parameters, strict=True)]
        norms.append(norm(gradient))
    middle = float(torch.tensor(norms).median()) if norms else 0.0
    if not middle:
        raise SelectorError(
            "step_size cannot be derived: the gradients of the samples looked at are zero or not finite; set step_size"
        )
    return update_norm / middle

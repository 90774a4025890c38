"""What a warm-up records of its optimizer for the simulated steps: update norms and second moments."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ostlight.errors import OstlightError, reading_back
from ostlight.influence.anchors import Anchors
from ostlight.influence.preconditioner import Preconditioner, adam_preconditioner, anchor_second_moments
from ostlight.influence.shared_passes import own_part, part_of
from ostlight.models.module import MultimodalModel

SECOND_MOMENTS = "second_moments.safetensors"
UPDATE_NORMS = "update_norms.npz"
WARM_UP_AGAIN = "remove {}, and the proxy is warmed up again"
"""What to do about a damaged file of a warmed-up proxy, by its folder."""


class OptimizerRecords(Callback):
    """Records how far each parameter moves in every step of the warm-up, and Adam's second moments at its end."""

    def __init__(self) -> None:
        self._before: dict[str, Tensor] = {}
        self._norms: list[list[float]] = []
        self._moments: dict[str, Tensor] = {}

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        self._before = {name: own_part(p.detach()).clone() for name, p in _parameters(pl_module).items()}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        moved = zip(_parameters(pl_module).values(), self._before.values(), strict=True)
        norms = torch.stack([(own_part(after.detach()) - before).norm(dtype=torch.float64) for after, before in moved])
        if _is_sharded(pl_module):
            squares = norms.square()
            dist.all_reduce(squares)
            norms = squares.sqrt()
        self._norms.append(norms.tolist())

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        optimizer = trainer.optimizers[0]
        beta = optimizer.param_groups[0]["betas"][1]
        for name, parameter in _parameters(pl_module).items():
            state = optimizer.state.get(parameter)
            if state:
                bias_corrected = state["exp_avg_sq"] / (1 - beta ** float(state["step"]))
                moments = bias_corrected.detach().float()
                if isinstance(moments, DTensor):
                    moments = moments.full_tensor()
                if trainer.is_global_zero:
                    self._moments[name] = moments.cpu().contiguous()

    def state_dict(self) -> dict[str, Any]:
        return {"norms": self._norms}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._norms = state_dict["norms"]

    def save(self, folder: Path) -> None:
        """Writes ``[steps, parameters]`` norms with the parameters' names, and the moments by name."""
        np.savez(folder / UPDATE_NORMS, names=np.array([*self._before]), norms=np.array(self._norms))
        save_file(self._moments, folder / SECOND_MOMENTS)


def _is_sharded(module: L.LightningModule) -> bool:
    return isinstance(module, MultimodalModel) and module.sharded


def _parameters(module: L.LightningModule) -> dict[str, nn.Parameter]:
    assert isinstance(module, MultimodalModel), "the warm-up trains the models of this project"
    return dict(module.model.named_parameters())


def median_update_norm(folder: Path, parameters: Mapping[str, nn.Parameter]) -> float | None:
    """Median over the warm-up's steps of the distance these parameters moved; ``None`` where none was recorded."""
    if not (folder / UPDATE_NORMS).exists():
        return None
    file = folder / UPDATE_NORMS
    with reading_back(file, WARM_UP_AGAIN.format(folder)), file.open("rb") as opened, np.load(opened) as stored:
        names, norms = stored["names"], stored["norms"]
    columns = [k for k, name in enumerate(names) if str(name) in parameters]
    if not columns or not len(norms):
        return None
    return float(np.median(np.sqrt((norms[:, columns] ** 2).sum(1))))


def warmup_adam_preconditioner(
    folder: Path | None, model: nn.Module, parameters: Mapping[str, nn.Parameter], anchors: Anchors
) -> tuple[Preconditioner, str]:
    """``adam_preconditioner`` of the warm-up's second moments, and where they come from, in words.

    Where the warm-up was skipped or undone, the mean square of the anchors' gradients takes their place.

    Args:
        folder: of the warmed-up proxy; ``None`` where the warm-up was skipped, whatever lies there from another one.

    Raises:
        OstlightError: the stored moments lack one of the parameters.
    """
    file = None if folder is None else folder / SECOND_MOMENTS
    if folder is None or file is None or not file.exists():
        source = "the anchors' gradients: no step of a warm-up was kept"
        return adam_preconditioner(parameters, anchor_second_moments(model, parameters, anchors)), source
    with reading_back(file, WARM_UP_AGAIN.format(folder)):
        stored = load_file(file)
    missing = [name for name in parameters if name not in stored]
    if missing:
        raise OstlightError(
            f"{file} lacks {missing[0]} and {len(missing) - 1} more of the parameters: the warm-up did not train them; "
            "choose parameters it trained, or step=sgd"
        )
    own = {name: part_of(stored[name].to(p.device), p) for name, p in parameters.items()}
    return adam_preconditioner(parameters, own), "the warm-up's second moments"

"""The model inside Lightning: per-sample losses, fine-tuning, saving as an ordinary Hugging Face folder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel

from ostlight.config.schema import Model, Target, Training
from ostlight.data.sample import Sample
from ostlight.errors import BadRecord, DataError
from ostlight.influence.task import answer_losses
from ostlight.models.adapters import merged
from ostlight.models.batch import Batch, Collator, TrainingStep, by_token_budget
from ostlight.models.encoding.encoder import Encoded, Encoder
from ostlight.models.encoding.limits import limits_of
from ostlight.models.load import collator_for, load_encoder, load_model
from ostlight.models.logits import answer_logits, next_token_logits
from ostlight.models.memory import TokenBudget
from ostlight.models.optimizer import adamw, schedule, take_step
from ostlight.models.proof import check_family
from ostlight.models.saved_files import note_saved
from ostlight.models.step_gradient import StepGradient
from ostlight.models.tuning import blocks_of_text, prepared
from ostlight.progress import phase, track

log = logging.getLogger(__name__)


class MultimodalModel(L.LightningModule):
    """A language model, with or without a vision tower, that gives the loss of every single sample.

    The proxy and the target are both one of these. It stays in eval mode (no dropout) also while it trains, since the
    utility of a sample is a property of the model, not of random dropout.

    Args:
        model: from ``load_model``.
        encoder: its processor.
        collator: how its inputs are stacked.
        training: optimizer settings, for ``Trainer.fit``.
    """

    def __init__(self, model: PreTrainedModel, encoder: Encoder, collator: Collator, training: Training) -> None:
        super().__init__()
        self.model = model
        self.encoder = encoder
        self.collator = collator
        self.training_settings = training
        self.total_steps = 0
        self.budget = TokenBudget()
        # Micro-batches differ in length, so the gradient of a step is accumulated by hand.
        self.automatic_optimization = False
        self.strict_loading = False  # checkpoints hold the trained weights only

    @classmethod
    def load(cls, settings: Model, where: str, training: Training | None = None) -> MultimodalModel:
        """The model of a folder or hub name; a target with the adapters and gradient checkpointing of its settings.

        Adapters in the folder stay separate, and are all that is trainable; a target's are merged before it gets new
        ones.

        Raises:
            ModelError: model or processor cannot be loaded.
        """
        with phase(f"loading the {where}"):
            model, encoder = load_model(settings, where), load_encoder(settings, where)
        collator = collator_for(model, encoder)
        encoder.limits = limits_of(model)
        check_family(model, encoder, collator, where)
        if isinstance(settings, Target):
            model = prepared(merged(model), settings)
        return cls(model, encoder, collator, training or Training())

    def losses(self, batch: Batch) -> Tensor:
        """``[N]`` mean cross-entropy over each sample's answer tokens, in nats."""
        return answer_losses(*answer_logits(self.model, batch))

    def logits(self, batch: Batch) -> Tensor:
        """``[N, T, V]`` next-token scores."""
        return next_token_logits(self.model, batch)

    def batches(self, samples: Sequence[Sample], tokens_per_batch: int) -> list[Batch]:
        """Samples encoded and grouped by length, on this model's device.

        Raises:
            BadRecord: one of them cannot be encoded; names it.
        """
        encoded = [self._encoded(s) for s in track(samples, "encoding", unit="samples")]
        groups = by_token_budget([len(e) for e in encoded], tokens_per_batch)
        batches = (self.collator.batch([samples[i] for i in g], [encoded[i] for i in g]) for g in groups)
        return [batch.to(self.device) for batch in batches]

    def usable(self, samples: Sequence[Sample], name: str) -> list[Sample]:
        """The samples that can be encoded; a warning counts the others.

        Args:
            name: what messages call the samples.

        Raises:
            DataError: there are samples, and none can be encoded.
        """
        usable, rejected = [], list[BadRecord]()
        for sample in track(samples, f"encoding the {name}", unit="samples"):
            try:
                self._encoded(sample)
                usable.append(sample)
            except BadRecord as error:
                rejected.append(error)
        if rejected and not usable:
            raise DataError(f"{name}: none of the {len(samples)} samples can be used; the first: {rejected[0]}")
        if rejected:
            log.warning(f"{name}: {len(rejected)} of {len(samples)} samples are left out; the first: {rejected[0]}")
        return usable

    def _encoded(self, sample: Sample) -> Encoded:
        try:
            return self.encoder.encode(sample)
        except BadRecord as error:
            raise BadRecord(error.reason, f"sample {sample.id!r}: {error.detail}", error.field) from error

    def training_step(self, step: TrainingStep, step_index: int) -> Tensor:
        """One optimizer step from micro-batches. The loss that is logged is the mean over all usable samples of the
        step, on all ranks; the gradient counts those that cannot be used as 0, so that none weighs more in their place.
        """
        optimizer: Any = self.optimizers()
        self.zero_grad(set_to_none=True)
        total = StepGradient(self, lambda: self.trained, self.losses, self.budget).compute(step)
        if self.training_settings.clip is not None:
            # Lightning's own clipping refuses fused optimizers under mixed precision, even bf16, which scales nothing.
            torch.nn.utils.clip_grad_norm_(self.trained.values(), self.training_settings.clip)
        take_step(optimizer, self.trained)
        optimizer.zero_grad()
        self.lr_schedulers().step()  # type: ignore[union-attr]
        usable = sum(len(batch) for batch in step.micro_batches) * step.weight
        found = self.trainer.strategy.reduce(torch.stack([total, total.new_tensor(usable)]), reduce_op="mean")
        assert isinstance(found, Tensor), "a tensor reduces to a tensor"
        mean, share = found
        if share > 0:  # else no sample of the step could be used, and there is no loss
            mean = mean / share
            self.log("loss", mean, prog_bar=True, batch_size=1)
        return mean

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    @property
    def sharded(self) -> bool:
        """Whether each rank holds a part of every weight."""
        return isinstance(self.model, FSDPModule)

    def configure_model(self) -> None:
        """Shards the model where the strategy asks for it."""
        if isinstance(self.trainer.strategy, ModelParallelStrategy) and not self.sharded:
            assert self.device_mesh is not None, "the strategy makes one"
            self.shard(self.device_mesh["data_parallel"])

    def shard(self, mesh: DeviceMesh) -> None:
        """Shards the model over the ranks of a mesh, block by block (FSDP2).

        Blocks that run with images alone are sharded with what is outside of blocks: those weights are gathered once a
        pass, on all ranks, also on one whose batch holds only text.
        """
        for block in blocks_of_text(self.model):
            fully_shard(block, mesh=mesh)
        fully_shard(self.model, mesh=mesh)
        # Below frozen embeddings the pass ends inside the first block, unless the batch has images. FSDP sends the
        # gradients of a block when the pass leaves it, or else after all others: ranks must do it in one order.
        embeddings: nn.Module = self.model.get_input_embeddings()
        embeddings.register_forward_hook(lambda _, __, out: out.requires_grad_())

    def configure_optimizers(self) -> Any:
        optimizer = adamw(self.model, self.training_settings)
        return {
            "optimizer": optimizer,
            "lr_scheduler": LambdaLR(optimizer, schedule(self.training_settings, self.total_steps)),
        }

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MultimodalModel:
        """As PyTorch does it, but buffers that no checkpoint holds keep their dtype, as in a model that is loaded.

        Rotary frequencies in bfloat16 would be off by up to 0.4%, and a saved model would differ from the trained one.
        """
        computed = [
            (module, name, buffer)
            for module in self.modules()
            for name, buffer in module._buffers.items()
            if name in module._non_persistent_buffers_set and buffer is not None and buffer.is_floating_point()
        ]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for module, name, before in computed:
            after = module._buffers[name]
            if after is not None and after.dtype != before.dtype:
                module._buffers[name] = before.to(after.device)
        return self

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Weights that are not trained are in the model folder.
        weights = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: weights[name] for name in self.trained if name in weights}

    def save(self, folder: Path, merge: bool = True) -> None:
        """Model and processor as a folder that ``from_pretrained`` and inference servers load; adapters are merged.
        ``check_saved`` tells whether the files are still as they were.

        Args:
            merge: off, a model with adapters is saved as peft does: the adapters, and where their base model is.
        """
        model: Any = merged(self.model) if merge else self.model
        model.save_pretrained(folder)
        self.encoder.processor.save_pretrained(folder)
        note_saved(folder)

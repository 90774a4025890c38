"""The model inside Lightning: per-sample losses, fine-tuning, saving as an ordinary Hugging Face folder."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel

from ostlight.config.schema import Model, Target, Training
from ostlight.data.sample import Sample
from ostlight.errors import BadRecord, ConfigError, DataError, OstlightError
from ostlight.influence.parameters import unwrapped
from ostlight.influence.task import answer_losses
from ostlight.models.adapters import merged
from ostlight.models.batch import Batch, Collator, TrainingStep, by_token_budget
from ostlight.models.encode import Encoded, Encoder
from ostlight.models.exchange import agreed, average_gradients
from ostlight.models.limits import limits_of
from ostlight.models.load import collator_for, load_encoder, load_model
from ostlight.models.losses import IGNORED
from ostlight.models.memory import TokenBudget, out_of_memory
from ostlight.models.parts import part_of_parameters
from ostlight.models.proof import check_family
from ostlight.models.saved_files import note_saved
from ostlight.models.tuning import blocks_of_text, prepared
from ostlight.models.vision_cache import reused
from ostlight.progress import phase, track

log = logging.getLogger(__name__)

MAX_INT = 2**62
"""Stands for no limit among numbers of which ranks take the smallest."""

NOT_ALONE = (
    "out of memory on rank {rank}; the model is sharded, and no rank can repeat a micro-batch without the others: run "
    "the same command again, it goes on from the last checkpoint with micro-batches of at most {most:,} tokens"
)


def next_token_logits(model: nn.Module, batch: Batch, **options: Any) -> Tensor:
    """``[N, T, V]`` next-token scores of a Hugging Face model; ``options`` of its forward."""
    dtype = next(model.parameters()).dtype
    inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.inputs.items()}
    kept = batch.features.reused(model, batch.inputs) if batch.features is not None else nullcontext()
    with reused(model, batch.inputs), kept:
        logits: Tensor = model(**inputs, use_cache=False, **options).logits
    return logits


def answer_logits(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """``[N, U, V]`` scores, and the ``[N, U]`` tokens they are to predict, ``IGNORED`` where a sample has none there.

    U positions: those at which some sample of the batch has an answer token, where the model can leave out others
    (``logits_to_keep`` of its forward); else all but the last. The output layer is most of a small model's work, and
    its scores the largest tensor of a pass.
    """
    labels = batch.labels[:, 1:]
    positions = (labels != IGNORED).any(0).nonzero()[:, 0]
    if not len(positions) or len(positions) == labels.shape[1] or not _keeps_logits(unwrapped(model)):
        return next_token_logits(model, batch)[:, :-1], labels
    return next_token_logits(model, batch, logits_to_keep=positions), labels[:, positions]


def _keeps_logits(model: Any) -> bool:
    return "logits_to_keep" in inspect.signature(model.forward).parameters


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
        """One optimizer step from micro-batches; the loss is the mean over all samples of the step, on all ranks."""
        optimizer: Any = self.optimizers()
        self.zero_grad(set_to_none=True)
        alone = self.trainer.world_size == 1 or isinstance(self.trainer.strategy.model, DistributedDataParallel)
        total = self._backward_alone(step) if alone else self._backward_together(step)
        if self.training_settings.clip is not None:
            # Lightning's own clipping refuses fused optimizers under mixed precision, even bf16, which scales nothing.
            torch.nn.utils.clip_grad_norm_(self.trained.values(), self.training_settings.clip)
        self._take_step(optimizer)
        optimizer.zero_grad()
        self.lr_schedulers().step()  # type: ignore[union-attr]
        mean = self.trainer.strategy.reduce(total, reduce_op="mean")
        assert isinstance(mean, Tensor), "a tensor reduces to a tensor"
        self.log("loss", mean, prog_bar=True, batch_size=1)
        return mean

    def _take_step(self, optimizer: Any) -> None:
        """Raises:
        OstlightError: memory runs out for AdamW's two averages, which smaller batches would not help.
        """
        try:
            optimizer.step()
        except Exception as error:
            if not out_of_memory(error):
                raise
            needed = 2 * sum(p.nbytes for p in self.trained.values()) / 2**30
            raise OstlightError(
                f"out of memory in the optimizer, whose averages take {needed:.1f} GiB beside weights and gradients: "
                "train adapters (target.lora), shard the target (compute.strategy=fsdp with more compute.devices), or "
                "take a smaller model; `ostlight plan` shows what fits"
            ) from error

    def _backward_alone(self, step: TrainingStep) -> Tensor:
        """Each rank computes its gradient alone, in as many micro-batches as it takes; then gradients are averaged.

        Returns the weighted sum of this rank's losses.

        Raises:
            OstlightError: a rank has failed; all of them raise.
        """
        if self.trainer.world_size == 1:
            return self._accumulated(step)
        failure: Exception | None = None
        total = torch.zeros((), device=self.device)
        try:
            total = self._accumulated(step)
        except Exception as error:  # the other ranks wait to hear of it
            failure = error
        failed = 0 if failure is None else self.trainer.global_rank + 1
        own = [p.grad is not None for p in self.trained.values()]
        failed, limit, *used = agreed([failed, -(self.budget.most or MAX_INT), *own], self.device)
        if failure is not None:
            raise failure
        if failed:
            raise OstlightError(f"the training ends because rank {failed - 1} failed; its message says why")
        if -limit < (self.budget.most or MAX_INT):
            self.budget.follow(-limit)
        average_gradients(self.trained, dict(zip(self.trained, map(bool, used), strict=True)))
        return total

    def _accumulated(self, step: TrainingStep) -> Tensor:
        """The gradient of this rank's micro-batches, smaller ones where memory runs out, and their weighted losses."""

        def work(parts: Sequence[Batch]) -> Tensor:
            self.zero_grad(set_to_none=True)
            with self.trainer.strategy.model.no_sync() if self.trainer.world_size > 1 else nullcontext():  # type: ignore[union-attr, operator]
                return self._sum(self._backward(part, step.weight) for part in parts)

        return self.budget.run(step.micro_batches, work)

    def _backward_together(self, step: TrainingStep) -> Tensor:
        """Ranks exchange weights and gradients within every micro-batch, so all compute as many.

        Raises:
            OstlightError: memory runs out; no rank can repeat a micro-batch without the others.
        """
        weighted = [(part, step.weight) for part in self.budget.split(step.micro_batches)]
        (most,) = agreed([len(weighted)], self.device)
        if step.filler is not None:  # else no sample can be used, on any rank
            weighted += [(step.filler, 0.0)] * (most - len(weighted))
        used: set[str] = set()

        def backward(part: Batch, weight: float) -> Tensor:
            try:
                return self._backward(part, weight, partial(self._complete_gradients, used if weight else set()))
            except Exception as error:
                if not out_of_memory(error):
                    raise
                self.budget.halve([part], error)
                rank, most = self.trainer.global_rank, self.budget.most
                raise OstlightError(NOT_ALONE.format(rank=rank, most=most)) from error

        total = self._sum(backward(part, weight) for part, weight in weighted)
        names = list(self.trained)
        for name, on_any in zip(names, agreed([name in used for name in names], self.device), strict=True):
            if not on_any:  # as on a single device: the optimizer leaves such a parameter as it is
                self.trained[name].grad = None
        return total

    def _backward(self, batch: Batch, weight: float, at_end: Callable[[], None] | None = None) -> Tensor:
        """The weighted sum of the losses; its gradient is added to the weights'.

        Args:
            at_end: called at the end of the backward pass, before FSDP sends what it has gathered until then.
        """
        loss = self.losses(batch).sum() * weight
        if at_end is not None:
            # FSDP registers its own end when the pass reaches the model's outputs, which is later.
            loss.register_hook(lambda _: torch.autograd.Variable._execution_engine.queue_callback(at_end))
        self.manual_backward(loss)
        return loss.detach()

    def _sum(self, losses: Iterable[Tensor]) -> Tensor:
        total = torch.zeros((), device=self.device)
        for loss in losses:
            total += loss.to(total.dtype)
        return total

    def _complete_gradients(self, used: set[str]) -> None:
        """Gives parameters that the pass did not use a gradient of zero, since all ranks send as many numbers.

        Args:
            used: gets the names of those it did use.
        """
        for name, parameter in self.trained.items():
            if isinstance(parameter, DTensor) or parameter.grad is not None:  # what is sharded again has been sent
                used.add(name)
            else:
                parameter.grad = torch.zeros_like(parameter)

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
        settings = self.training_settings
        optimizer = torch.optim.AdamW(
            self._groups(settings), lr=settings.lr, weight_decay=settings.weight_decay, fused=True
        )
        rise = max(1, round(settings.warmup * self.total_steps))

        def factor(step: int) -> float:
            if step < rise:
                return (step + 1) / rise
            if settings.schedule == "constant":
                return 1.0
            return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, self.total_steps - rise)))

        return {"optimizer": optimizer, "lr_scheduler": LambdaLR(optimizer, factor)}

    def _groups(self, settings: Training) -> Iterable[Any]:
        """What is trained; in groups with rates of their own where the settings give a part another one.

        Raises:
            ConfigError: such a part is not there, or frozen.
        """
        rates = {"vision": settings.lr_vision, "projector": settings.lr_projector}
        rates = {part: rate for part, rate in rates.items() if rate is not None}
        if not rates:
            return self.trained.values()
        part_of = part_of_parameters(self.model)
        groups: dict[str, list[nn.Parameter]] = {part: [] for part in ("", *rates)}
        for name, parameter in self.trained.items():
            part = part_of[name.removeprefix("model.")]
            groups[part if part in rates else ""].append(parameter)
        for part in rates:
            if not groups[part]:
                raise ConfigError([f"training.lr_{part}: nothing of the {part} is trained; leave it out"])
        rates[""] = settings.lr
        return [{"params": groups[part], "lr": rates[part]} for part in groups if groups[part]]

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

"""The gradient of one optimizer step: from as many micro-batches as fit into memory, on one device or on several ranks.

On one device, and where every rank holds the whole model, each computes its gradient alone, and the ranks exchange them
once a step. Where the model is sharded the ranks exchange weights and gradients within every micro-batch, so all
compute as many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from ostlight.errors import OstlightError
from ostlight.models.batch import Batch, TrainingStep
from ostlight.models.exchange import agreed, average_gradients
from ostlight.models.memory import TokenBudget, out_of_memory

MAX_INT = 2**62
"""Stands for no limit among numbers of which ranks take the smallest."""

NOT_ALONE = (
    "out of memory on rank {rank}; the model is sharded, and no rank can repeat a micro-batch without the others: run "
    "the same command again, it goes on from the last checkpoint with micro-batches of at most {most:,} tokens"
)


class StepGradient:
    """Computes the gradient of a step, which each trained parameter holds afterwards as its ``grad``.

    A parameter that no rank has used keeps none, as on a single device: the optimizer leaves it as it is.

    Args:
        module: attached to a trainer.
        trained: gives the parameters that training changes, by name; in the same order on all ranks. Asked again each
            time, since FSDP puts others in their place while a pass needs whole weights.
        losses: ``[N]`` of a batch.
        budget: how many tokens a micro-batch may have; halved where memory runs out.
    """

    def __init__(
        self,
        module: L.LightningModule,
        trained: Callable[[], Mapping[str, nn.Parameter]],
        losses: Callable[[Batch], Tensor],
        budget: TokenBudget,
    ) -> None:
        self.module, self.losses, self.budget = module, losses, budget
        self._trained = trained
        self.trainer, self.device = module.trainer, module.device

    @property
    def trained(self) -> Mapping[str, nn.Parameter]:
        return self._trained()

    def compute(self, step: TrainingStep) -> Tensor:
        """Returns the weighted sum of this rank's losses.

        Raises:
            OstlightError: another rank has failed; memory runs out for a sharded model.
        """
        if self.trainer.world_size == 1:
            return self._accumulate(step)
        if isinstance(self.trainer.strategy.model, DistributedDataParallel):
            return self._each_rank_alone(step)
        return self._all_ranks_together(step)

    def _each_rank_alone(self, step: TrainingStep) -> Tensor:
        """Each rank computes its gradient in as many micro-batches as it takes; then gradients are averaged.

        Raises:
            OstlightError: a rank has failed; all of them raise.
        """
        failure: Exception | None = None
        total = torch.zeros((), device=self.device)
        try:
            total = self._accumulate(step)
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

    def _accumulate(self, step: TrainingStep) -> Tensor:
        """The gradient of this rank's micro-batches, smaller ones where memory runs out, and their weighted losses."""

        def work(parts: Sequence[Batch]) -> Tensor:
            self.module.zero_grad(set_to_none=True)
            with self._no_exchange():
                return self._sum(self._backward(part, step.weight) for part in parts)

        return self.budget.run(step.micro_batches, work)

    def _no_exchange(self) -> Any:
        alone = self.trainer.world_size == 1
        return nullcontext() if alone else self.trainer.strategy.model.no_sync()  # type: ignore[union-attr, operator]

    def _all_ranks_together(self, step: TrainingStep) -> Tensor:
        """Raises:
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
            if not on_any:
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
        self.module.manual_backward(loss)
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

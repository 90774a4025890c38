"""What scoring with ``ost`` will take: passes counted on shapes, as many of each as the options ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ostlight.influence.gradient_vectors import AT_ONCE
from ostlight.influence.gradients.engine import GradientDots
from ostlight.influence.gradients.factors import WIDEST
from ostlight.influence.gradients.forward_mode import STEPS_TRIED
from ostlight.influence.gradients.random_products import RandomDirections
from ostlight.influence.gradients.responses import SNAPSHOTS
from ostlight.influence.gradients.rows import RowMap
from ostlight.influence.gradients.vectors import GradientVectors
from ostlight.influence.kronecker import FACTOR_SAMPLES
from ostlight.influence.parameters import select_parameters
from ostlight.influence.sample_gradient import train_only
from ostlight.influence.scorer import DEFAULT_RANK
from ostlight.models.influence_task import SampleTask
from ostlight.models.shapes import count_pass
from ostlight.selection.planning import PlannedScoring, ScoringPlan
from ostlight_selectors.ost.memory import FULL, HALF, estimator_of, factor_bytes, held, vector_count

if TYPE_CHECKING:
    from ostlight.models.batch import Batch

FEW = 8
"""Samples on which the finite difference's step is found; samples checked against losses alone and together."""


Compared = Callable[[int, int, str, int | None], int]


def planned(options: Any, scoring: PlannedScoring, step_size_samples: int, compared: Compared) -> ScoringPlan:
    """The plan for these options (``OneStepTrain.Options``).

    Args:
        step_size_samples: whose gradients the step size is taken from.
        compared: how many samples are compared with ``exact``, by anchors, records, estimator and rank.
    """
    return _Counts(options, scoring, step_size_samples, compared).plan()


class _Counts:
    def __init__(self, options: Any, scoring: PlannedScoring, step_size_samples: int, compared: Compared) -> None:
        self.compared = compared
        self.options, self.scoring, self.step_size_samples = options, scoring, step_size_samples
        self.model = scoring.model.model
        self.parameters = select_parameters(self.model, options.parameters)
        train_only(self.model, self.parameters)
        self.task = SampleTask()
        self.anchors, self.groups = scoring.memory.anchors, scoring.memory.groups
        self.estimator = estimator_of(options, scoring.memory.half, self.groups)
        self.vectors = vector_count(options, self.estimator, self.groups, self.anchors)
        self.records = scoring.records
        self.parts = scoring.memory.ranks if scoring.memory.sharded else 1

    def plan(self) -> ScoringPlan:
        flops, setup = self._sample_flops(), self._setup_flops()
        entries = sum(p.numel() for p in self.parameters.values())
        itemsize = HALF if self.options.vector_storage == "bf16" else FULL
        factors = factor_bytes(self.options, self.parameters) if self.options.step in ("kfac", "ekfac") else 0
        stored = 0 if self.scoring.memory.sharded else self.vectors * entries * itemsize
        disk = {"gradient vectors": stored, "factors": factors}
        row = 8 * 6 + 4 * (self.vectors if self.estimator in ("projected", "second_order") else 0)
        row += 2 * self.anchors if self.options.utility_by_anchor else 0
        row += self.options.random_products or 0
        written = {name: size for name, size in disk.items() if size}
        return ScoringPlan(setup, (flops, flops), self._memory(), written, row)

    def _memory(self) -> dict[str, int]:
        memory = held(self.options, self.scoring.memory, self.parameters)
        longest = max(self.scoring.batches, key=lambda batch: batch.labels.numel())
        work = self._forward if self.estimator == "finite_difference" else self._losses
        memory["activations"] = count_pass(lambda: work(longest), self.scoring.model).activations
        return {name: size for name, size in memory.items() if size}

    def _sample_flops(self) -> float:
        scoring = self.scoring
        if self.estimator == "finite_difference":
            return 2 * scoring.per_sample(self._forward)
        if self.estimator == "exact":
            return scoring.per_single(self._gradient) + self._anchors_forward() + self._direction_flops()
        return scoring.per_sample(lambda batch: self._products(batch, self.vectors))

    def _setup_flops(self) -> float:
        options, scoring = self.options, self.scoring
        gradient, forward = scoring.per_single(self._gradient), scoring.per_single(self._forward)
        anchors, direction = self._anchors_forward(), self._direction_flops()
        backward = self.anchors * (scoring.per_anchor(self._gradient)) - anchors
        groups = self.vectors if options.utility_by_anchor and self.estimator != "projected" else self.groups
        total = FEW / max(1, self.anchors) * anchors
        if options.step in ("kfac", "ekfac"):
            passes = 1 if options.step == "kfac" else 2
            taken = min(FACTOR_SAMPLES, self.records)
            total += taken * passes * scoring.per_single(lambda single: self._products(single, 0))
            total += taken * (self._factor_flops() + (self._rotation_flops() if passes == 2 else 0))
        if options.step_size is None:
            rotated = direction if scoring.memory.sharded else self._rotation_flops()
            total += min(self.step_size_samples, self.records) * (gradient + rotated)
        if self.estimator == "exact":
            return total + anchors
        in_a_batch = min(groups, max((len(batch) for batch in scoring.anchor_batches), default=1))
        total += anchors + backward * in_a_batch
        rank = options.rank or DEFAULT_RANK if self.estimator == "projected" else None
        compared = self.compared(self.anchors, self.records, self.estimator, rank)
        estimate = 2 * forward
        if self.estimator == "finite_difference":
            total += 2 * STEPS_TRIED * FEW * forward
        else:
            estimate = scoring.per_single(lambda single: self._products(single, self.vectors))
            total += 2 * scoring.per_single(lambda single: self._products(single, 1)) + 4 * gradient
        further = self.vectors - groups
        if self.estimator == "projected":
            steps = min(SNAPSHOTS * further, self.records)
            total += anchors + 2 * steps * (gradient + direction) + 3 * steps * anchors + steps * estimate
        if further > 0:
            total += further * backward + -(-further // AT_ONCE) * anchors
        total += self.vectors * direction
        return total + anchors + compared * (estimate + gradient + direction + anchors)

    def _anchors_forward(self) -> float:
        return self.anchors * self.scoring.per_anchor(self._forward)

    def _forward(self, batch: Batch) -> None:
        with torch.no_grad():
            self.task.losses(self.model, batch)

    def _losses(self, batch: Batch) -> None:
        self.task.losses(self.model, batch)

    def _gradient(self, batch: Batch) -> None:
        losses = self.task.losses(self.model, batch)
        torch.autograd.grad(losses.sum(), list(self.parameters.values()), allow_unused=True)

    def _products(self, batch: Batch, vectors: int) -> None:
        device = torch.device("meta")
        dtype = torch.bfloat16 if self.options.vector_storage == "bf16" else torch.float32
        made = {n: torch.empty(vectors, *p.shape, dtype=dtype, device=device) for n, p in self.parameters.items()}
        given: Mapping[str, Tensor] | None = GradientVectors(made, device) if vectors else None
        count = self.options.random_products
        random = RandomDirections(self.parameters, count, 0, None) if count is not None and vectors > 1 else None
        rows = RowMap(self.model).of_batch(self.task, batch)
        engine = GradientDots(self.model, dict(self.parameters))
        engine.products(lambda: self.task.losses(self.model, batch), rows, given, squared_norms=True, random=random)

    def _matrices(self) -> list[nn.Parameter]:
        return [p for p in self.parameters.values() if p.ndim == 2]

    def _tokens(self) -> float:
        """Of a sample."""
        return sum(sum(single.tokens) for single in self.scoring.singles) / len(self.scoring.singles)

    def _rotation_flops(self) -> float:
        """Of a sample's gradient in the eigenbasis: of its tokens, or of their sum, whichever is less."""
        if self.options.step not in ("kfac", "ekfac"):
            return 0.0
        total, tokens = 0.0, self._tokens()
        for parameter in self._matrices():
            sides = [side for side in parameter.shape if side <= WIDEST]
            of_tokens = sum(2 * tokens * side * side for side in sides)
            total += min(of_tokens, sum(2 * parameter.numel() * side for side in sides))
        return total / self.parts

    def _factor_flops(self) -> float:
        """Of both factors of every matrix, a sample; a rank's share, where each has those of some parameters."""
        rows = self._tokens()
        sides = [side for p in self._matrices() for side in p.shape if side <= WIDEST]
        return float(sum(2 * rows * side * side for side in sides)) / self.parts

    def _direction_flops(self) -> float:
        """Of preconditioning one vector: into the eigenbasis and back, a product on each side that has one."""
        if self.options.step not in ("kfac", "ekfac"):
            return 0.0
        products = sum(2 * 2 * p.numel() * side for p in self._matrices() for side in p.shape if side <= WIDEST)
        return float(products) / self.parts

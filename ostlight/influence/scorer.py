"""``UtilityScorer``: what one training step on a sample does to the loss on trusted anchors, for any torch model."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from ostlight.errors import BadRecord, InfluenceError
from ostlight.influence.agreement import RankAgreement, rank_agreement
from ostlight.influence.anchors import Anchors
from ostlight.influence.batch_invariance import check_batch_invariance
from ostlight.influence.estimators.exact import Exact
from ostlight.influence.estimators.exact_head import ExactHead, untied_linear_head
from ostlight.influence.estimators.finite_difference import FiniteDifference
from ostlight.influence.estimators.gradient_products import GradientProducts
from ostlight.influence.estimators.projected import Projected
from ostlight.influence.estimators.second_order import SecondOrder
from ostlight.influence.estimators.sharded_finite_difference import ShardedFiniteDifference
from ostlight.influence.gradient_vectors import STORAGES, VectorSettings
from ostlight.influence.gradients.random_products import RandomDirections
from ostlight.influence.parameters import select_parameters
from ostlight.influence.preconditioner import Preconditioner
from ostlight.influence.sample_gradient import train_only
from ostlight.influence.shared_passes import is_sharded
from ostlight.influence.simulated_step import SimulatedStep
from ostlight.influence.task import CausalLM, PerSampleLoss, Task

ESTIMATORS = ("projected", "exact", "first_order", "second_order", "finite_difference")
DEFAULT_RANK, DEFAULT_PROBES = 32, 64
"""Directions of ``projected`` and probes of ``second_order`` (docs/explanation/estimators.md)."""

Loss = Task | Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True, eq=False)
class UtilityScores(Mapping[str, Any]):
    """The scores of one batch of N samples. Also a mapping of the attributes that are not ``None``.

    Attributes:
        utility: ``[N]`` decrease of the anchors' mean loss by a step on the sample, nats; below zero is harmful; NaN
            for a failed sample.
        loss: ``[N]`` nats.
        failures: for each sample ``None``, or why it has no utility (``reason``, ``detail``).
        gradient_norm: ``[N]``; not from ``finite_difference``.
        alignment: ``[N]`` ``<g_i, g_V>``, the inner product with the anchors' mean gradient; not from ``exact``.
        cosine: ``[N]`` of the two gradients.
        phi: ``[N, K]`` curvature coordinates: ``||phi||^2`` is about ``g_i' H g_i``, and ``<phi_i, phi_j>`` the
            curvature two samples share; from ``projected`` and ``second_order``.
        utility_by_group: ``[N, G]``, groups in the order of ``UtilityScorer.groups``.
        utility_by_anchor: ``[N, A]`` in the anchors' order, where asked for.
        random_products: ``[N, M]`` of each gradient with random directions, where asked for.
    """

    utility: Tensor
    loss: Tensor
    failures: Sequence[BadRecord | None]
    gradient_norm: Tensor | None = None
    alignment: Tensor | None = None
    cosine: Tensor | None = None
    phi: Tensor | None = None
    utility_by_group: Tensor | None = None
    utility_by_anchor: Tensor | None = None
    random_products: Tensor | None = None

    def __getitem__(self, name: str) -> Any:
        if name not in self._names():
            raise KeyError(name)
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())

    def _names(self) -> list[str]:
        return [field.name for field in fields(self) if getattr(self, field.name) is not None]


class UtilityScorer:
    """Scores samples by what one simulated training step on each does to the loss on trusted anchors, in nats.

    >>> scorer = UtilityScorer(model, anchor_batches, estimator="first_order", step_size=0.01)  # doctest: +SKIP
    >>> scorer(batch).utility  # doctest: +SKIP

    The model is scored in eval mode, since a sample's loss must be its own; training mode and ``requires_grad`` are
    afterwards as they were. Scores belong to the weights at the time of construction: make a new scorer once they have
    changed.

    Args:
        model: any module whose forward gives logits (or, with a callable ``loss``, whatever that takes). One sharded by
            FSDP2 is scored by ``finite_difference``: each call is one of all ranks, each with a batch of its own, and a
            rank that has no more calls ``close``.
        anchors: batches of trusted samples that show what the model must do, or ``Anchors``.
        parameters: what the step changes: ``blocks``, ``last:N``, ``head``, ``all``, ``lora``, or a regular expression.
        estimator: ``projected`` (about one training step a sample; needs ``calibration``), ``exact`` (a pass over all
            anchors a sample), ``first_order``, ``second_order`` or ``finite_difference`` (needs ``calibration``).
        step_size: of the simulated SGD step. There is no default that suits every model: take the learning rate of your
            SGD, or ``median_step_size`` for a step as long as your optimizer's.
        loss: a ``Task``, ``CausalLM()`` by default (``Classification()`` for ``(inputs, labels)``), or a function
            ``loss(model, batch) -> [N]`` for estimators that need no logits.
        groups: the group of each anchor, in the order of the batches' rows, unless ``anchors`` are ``Anchors``.
        utility_by_anchor: also the utility on each anchor. ``projected`` reads it off the logits that it has, less the
            part outside of its directions, which counts equally for all anchors; with any other estimator each anchor
            becomes a group, with fixed vectors of its own.
        random_products: also that many products of each gradient with random directions (``RandomDirections``, of this
            seed and preconditioner), from which ``anchor_products`` gives utilities for other anchors later; not from
            ``exact`` and ``finite_difference``.
        rank: directions of ``projected``, 32 by default; two calibration samples are measured for each.
        probes: random probes of ``second_order``, 64 by default.
        calibration: batches of the pool that is scored: at least ``rank`` samples for ``projected``, a few for
            ``finite_difference``.
        vector_storage: ``full``, ``bf16``, ``offload`` or ``split``: where the fixed vectors are stored, each as
            large as the parameters; ``VectorSettings`` to cache them.
        preconditioner: of the step, from ``adam_preconditioner`` or ``kronecker_preconditioner``; plain SGD by default.
        seed: of the probes and the random directions.

    Raises:
        InfluenceError: an argument is missing or does not fit the estimator; a layer that is not supported; losses that
            depend on what else is in the batch.
    """

    def __init__(
        self,
        model: nn.Module,
        anchors: Sequence[Any] | Anchors,
        *,
        parameters: str = "blocks",
        estimator: str = "projected",
        step_size: float | None = None,
        loss: Loss | None = None,
        groups: Sequence[Hashable] | None = None,
        utility_by_anchor: bool = False,
        random_products: int | None = None,
        rank: int | None = None,
        probes: int | None = None,
        calibration: Sequence[Any] | None = None,
        vector_storage: str | VectorSettings = "full",
        preconditioner: Preconditioner | None = None,
        seed: int = 0,
    ) -> None:
        vectors = VectorSettings(vector_storage) if isinstance(vector_storage, str) else vector_storage
        _check_arguments(estimator, step_size, rank, probes, calibration, vectors.storage)
        assert step_size is not None, "checked"
        if not isinstance(anchors, Anchors):
            task = loss if isinstance(loss, Task) else CausalLM() if loss is None else PerSampleLoss(loss)
            anchors = Anchors(list(anchors), task, list(groups or ()), ids=_ids(task, anchors))
        self._verified = 0
        self._as_groups = utility_by_anchor and estimator != "projected"
        self._groups, self._shares = anchors.names, anchors.shares_by_number()
        if self._as_groups:
            anchors = anchors.each_its_own_group()
        self.step = SimulatedStep(model, select_parameters(model, parameters), anchors, step_size, preconditioner)
        with self._evaluating():
            check_batch_invariance(model, anchors)
            self._calibration = [single for batch in calibration or () for single in anchors.task.singles(batch)]
            self._estimator = self._make_estimator(estimator, rank, probes, vectors, seed, utility_by_anchor)
        if random_products is not None:
            if not isinstance(self._estimator, GradientProducts):
                raise InfluenceError(
                    f"random_products are taken in a backward pass over whole batches, which {estimator} does not do; "
                    "set estimator=first_order, second_order or projected"
                )
            self._estimator.random = RandomDirections(self.step.parameters, random_products, seed, preconditioner)

    @property
    def groups(self) -> list[Any]:
        """The anchors' groups in the order of ``utility_by_group``; empty where there is only one."""
        return self._groups

    @property
    def facts(self) -> dict[str, Any]:
        """What is known of the estimator: ``curvature`` (``measured`` or ``sampled``) and ``vector_bytes`` of its fixed
        vectors, ``forward_error`` of ``finite_difference``."""
        if isinstance(self._estimator, FiniteDifference):
            return {"forward_error": self._estimator.relative_error}
        if not isinstance(self._estimator, GradientProducts):
            return {}
        kind = "measured" if isinstance(self._estimator, Projected) else "sampled"
        return {"curvature": kind, "vector_bytes": sum(self._estimator.plan.sizes.values())}

    def __call__(self, batch: Any) -> UtilityScores:
        """Scores one batch; a sample's scores do not depend on the others beside it."""
        columns = self.columns(batch)
        tensors: dict[str, Any] = {
            name: torch.as_tensor(values, device=self.step.device, dtype=torch.float64)
            for name, values in _filled(columns).items()
        }
        failures = columns.get("failure") or [None] * len(tensors["score"])
        failed = torch.tensor([failure is not None for failure in failures], device=self.step.device)
        utility = tensors.pop("score").masked_fill(failed, float("nan"))
        return UtilityScores(utility=utility, failures=failures, **tensors)

    def columns(self, batch: Any) -> dict[str, Any]:
        """The scores as columns of a table: the names of ``UtilityScores``, but ``score`` for the utility; ``failure``
        only where a sample failed, and ``step_size``.

        The first batch is verified before it is scored, and the first of several samples, unless one was: a use of a
        parameter that escapes, or rows of a layer whose first axis is not the samples, would give a wrong number.

        Raises:
            InfluenceError: as ``verify``.
        """
        if self._verified < min(self.step.task.size(batch), 2):
            self.verify(batch)
        with self._evaluating():
            columns = self._estimator.columns(batch)
        return self._from_single_groups(columns) if self._as_groups else columns

    def _from_single_groups(self, columns: dict[str, Any]) -> dict[str, Any]:
        """Columns of anchors that were a group each, with the utilities of the groups that were asked for."""
        by_anchor = columns.pop("utility_by_group", None)
        if by_anchor is None:  # a single anchor is no group
            by_anchor = [[float(score)] for score in columns["score"]]
        rows = by_anchor.tolist() if isinstance(by_anchor, Tensor) else by_anchor
        columns["utility_by_anchor"] = rows
        if self._groups:
            shares = self._shares.cpu()
            columns["utility_by_group"] = [
                None if row is None else (shares @ torch.tensor(row, dtype=torch.float64)).tolist() for row in rows
            ]
        return columns

    def rank_agreement(self, batches: Sequence[Any], seen: bool = False) -> RankAgreement:
        """Spearman rank correlation with ``exact`` on a few samples, each of which costs a pass over the anchors.

        Args:
            batches: what is compared.
            seen: whether the estimator was calibrated on them too, for the summary.
        """
        if is_sharded(self.step.model):
            raise InfluenceError("the weights are sharded over ranks, which exact, to compare with, does not support")
        with self._evaluating():
            return rank_agreement(self.step, self._estimator, batches, seen)

    def verify(self, batch: Any) -> float | None:
        """Compares the per-sample gradients of a few samples with plain autograd.

        Returns:
            the largest relative deviation; ``None`` for estimators that take no per-sample products.

        Raises:
            InfluenceError: it is larger than rounding explains; names the parameter.
        """
        deviation = None
        if isinstance(self._estimator, GradientProducts):
            with self._evaluating():
                deviation = self._estimator.verify(batch)
        self._verified = max(self._verified, min(self.step.task.size(batch), 2))
        return deviation

    def close(self) -> None:
        """Ends this rank's part: the others may still look up its vectors (``vector_storage="split"``), or gather its
        part of the weights (a model sharded by FSDP2)."""
        if isinstance(self._estimator, GradientProducts | ShardedFiniteDifference):
            self._estimator.close()

    def _make_estimator(
        self,
        name: str,
        rank: int | None,
        probes: int | None,
        vectors: VectorSettings,
        seed: int,
        by_anchor: bool,
    ) -> Exact | ExactHead | GradientProducts | FiniteDifference:
        step = self.step
        if is_sharded(step.model):
            if name != "finite_difference":
                raise InfluenceError(
                    f"the weights are sharded over ranks, which {name} does not support; set "
                    "estimator=finite_difference"
                )
            return ShardedFiniteDifference(step, self._calibration[:8])
        if name == "exact":
            full = step.in_full_precision()
            head = untied_linear_head(full.model, full.parameters) if step.preconditioner is None else None
            has_logits = not isinstance(step.task, PerSampleLoss)
            return ExactHead(full, head) if head is not None and has_logits else Exact(full)
        if name == "finite_difference":
            return FiniteDifference(step, self._calibration[:8], vectors)
        if name == "projected":
            rank = rank or DEFAULT_RANK
            if len(self._calibration) < rank:
                raise InfluenceError(
                    f"projected with rank={rank} measures steps on at least {rank} calibration samples, better "
                    f"{2 * rank}; there are {len(self._calibration)}: pass more batches in calibration, or a lower rank"
                )
            return Projected(step, self._calibration, rank, vectors, by_anchor)
        return SecondOrder(step, (probes or DEFAULT_PROBES) if name == "second_order" else 0, seed, vectors)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Eval mode; each module's mode and the parameters' ``requires_grad`` are restored afterwards."""
        model, modes = self.step.model, [(module, module.training) for module in self.step.model.modules()]
        required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        model.eval()
        try:
            if not is_sharded(model):  # FSDP2 does not follow a change
                train_only(model, self.step.parameters)
            yield
        finally:
            for parameter, before in required:
                parameter.requires_grad_(before)
            for module, training in modes:
                module.training = training


def _check_arguments(
    estimator: str,
    step_size: float | None,
    rank: int | None,
    probes: int | None,
    calibration: Sequence[Any] | None,
    vector_storage: str,
) -> None:
    if estimator not in ESTIMATORS:
        raise InfluenceError(f"estimator must be one of {', '.join(ESTIMATORS)}; got {estimator!r}")
    if vector_storage not in STORAGES:
        raise InfluenceError(f"vector_storage must be one of {', '.join(STORAGES)}; got {vector_storage!r}")
    if step_size is None or not step_size > 0:
        raise InfluenceError(
            f"step_size must be a number above 0; got {step_size}. Take the learning rate of your SGD, or "
            "ostlight.influence.median_step_size for a step as long as your optimizer's"
        )
    for name, value, owner in (("rank", rank, "projected"), ("probes", probes, "second_order")):
        if value is not None and (estimator != owner or value < 1):
            raise InfluenceError(f"{name} is a number above 0 for estimator={owner}; got {value} for {estimator}")
    if estimator in ("projected", "finite_difference") and not calibration:
        raise InfluenceError(
            f"{estimator} needs calibration: a few batches of the pool that is to be scored, on which its "
            + ("steps are measured" if estimator == "projected" else "step is found")
        )


def _ids(task: Task, anchors: Sequence[Any]) -> list[str]:
    named = [task.ids(batch) for batch in anchors]
    return [name for names in named if names is not None for name in names] if all(named) else []


def _filled(columns: Mapping[str, Any]) -> dict[str, Any]:
    """With NaN where ``exact`` has no value, since the sample failed."""
    rows = columns.get("utility_by_group", columns.get("utility_by_anchor", ()))
    width = len(next((row for row in rows if row is not None), ()))
    missing = {"utility_by_group": [float("nan")] * width, "utility_by_anchor": [float("nan")] * width}
    return {
        name: values
        if isinstance(values, Tensor)
        else [missing.get(name, float("nan")) if v is None else v for v in values]
        for name, values in columns.items()
        if name not in ("failure", "step_size")
    }

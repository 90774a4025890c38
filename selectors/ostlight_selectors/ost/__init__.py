"""One-Step-Train: rank samples by what one step on each does to the anchor loss."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from torch import nn

from ostlight.config.budget import Budget
from ostlight.config.schema import Count, Positive
from ostlight.influence.agreement import rank_agreement, sample_count
from ostlight.influence.batch_invariance import check_batch_invariance
from ostlight.influence.estimators.exact import Exact
from ostlight.influence.estimators.exact_head import ExactHead, untied_linear_head
from ostlight.influence.estimators.finite_difference import FiniteDifference
from ostlight.influence.estimators.gradient_products import GradientProducts
from ostlight.influence.estimators.projected import Projected
from ostlight.influence.estimators.second_order import SecondOrder
from ostlight.influence.gradient_vectors import VectorSettings
from ostlight.influence.gradients.responses import SNAPSHOTS
from ostlight.influence.parameters import select_parameters
from ostlight.influence.preconditioner import GradientScale
from ostlight.influence.sample_gradient import train_only
from ostlight.influence.simulated_step import SimulatedStep
from ostlight.influence.step_size import first_adam_step, median_step_size
from ostlight.models.batch import Batch
from ostlight.models.influence_task import SampleTask, make_anchors
from ostlight.pipeline import fingerprint
from ostlight.ranks import is_first_rank
from ostlight.selection.context import ScoringContext
from ostlight.selection.scores import Scores
from ostlight.selection.selector import Selector
from ostlight.selection.strata import select_top
from ostlight.training.optimizer_records import warmup_adam_scale
from ostlight_selectors.ost.set_selection import select_set

log = logging.getLogger("ostlight.selectors.ost")

CURVATURE_VECTORS = {"projected": ("rank", 32), "second_order": ("probes", 64)}
"""Which option counts the vectors beside the mean gradient, and its default (docs/explanation/estimators.md)."""
STEP_SIZE_SAMPLES = 256
"""Pool samples over which the median gradient norm is taken. On DigitMath the median over other 256 samples differs by
a quarter (95%), over other 64 by half, which was two or three points of accuracy."""
FINITE_DIFFERENCE_SAMPLES = 8
"""Pool samples on which the length of the finite difference is chosen."""


class OneStepTrain(Selector):
    """Utility of one SGD step on each sample, measured on the anchors (arXiv 2605.07488)."""

    uses_proxy = True
    handles_strata = True
    selection_options = ("selection", "set_step_size", "set_batch_size")
    compute_options = ("vector_storage",)
    metric_columns = ("loss",)
    renamed_options: ClassVar[Mapping[str, str]] = {
        "scope": "parameters",
        "eta": "step_size",
        "targets": "vector_storage",
        "backward": "estimator=finite_difference",
        "objective=sample": "leave it out; ost ranks by utility unless selection=set",
        "objective=set": "selection=set",
        "objective=trial": "use the selector best_of, which tries several subsets",
        "objective": "selection",
        "set_eta": "write set_step_size, a multiple of the step size that samples are scored with",
        "batch_size": "set_batch_size",
    }

    @dataclass
    class Options:
        """Attributes:
        estimator: ``projected`` (what the step does to the anchors' answers, from a few measured steps; about one
            training step per sample), ``exact`` (the step is taken; a pass over all anchors per sample),
            ``first_order`` (the inner product of the gradients), ``second_order`` (and sketched curvature) or
            ``finite_difference`` (first order from two forward passes: for any architecture, and with less memory).
        parameters: those the step changes: ``blocks``, ``last:N``, ``head``, ``all``, ``lora`` or a regular expression.
        step_size: ``null`` makes the median simulated step as long as the median step of the warm-up.
        rank: measured directions of ``projected``; ``null`` is 32.
        probes: random curvature probes of ``second_order``; ``null`` is 64.
        optimizer: the step's shape: ``sgd`` (the definition) or ``adam`` (second moments of the warm-up, frozen).
        selection: ``top`` (the highest utilities, as in the paper) or ``set`` (the best set: what a mini-batch of it
            does, redundancy and noise counted; needs ``projected`` or ``second_order``).
        set_step_size: of ``selection: set``, in multiples of the step size that samples are scored with; a set bears
            longer steps than a sample.
        set_batch_size: of the mini-batches of ``selection: set``.
        vector_storage: how the estimators' fixed vectors (one for each anchor group, and the directions or probes, the
            latter for each group; each as large as the parameters) are held: ``full``, ``bf16``, ``offload`` (the
            machine's memory) or ``split`` (over the ranks).
        """

        estimator: Literal["projected", "exact", "first_order", "second_order", "finite_difference"] = "projected"
        parameters: str = "blocks"
        step_size: Positive | None = None
        rank: Count | None = None
        probes: Count | None = None
        optimizer: Literal["sgd", "adam"] = "sgd"
        selection: Literal["top", "set"] = "top"
        set_step_size: Positive = 10.0
        set_batch_size: Count = 32
        vector_storage: Literal["full", "bf16", "offload", "split"] = "full"

        def problems(self) -> Iterator[str]:
            """Options that do not fit together."""
            if self.selection == "set" and self.estimator not in CURVATURE_VECTORS:
                yield "selection=set needs estimator=projected or second_order: it reads their curvature"
            if self.estimator == "finite_difference" and self.vector_storage != "full":
                yield "vector_storage must be full with estimator=finite_difference, which holds one vector"
            if self.estimator == "projected" and self.probes is not None:
                yield "probes is not an option of projected; set rank"
            if self.estimator == "second_order" and self.rank is not None:
                yield "rank is not an option of second_order; set probes"

    def setup(self, context: ScoringContext) -> None:
        context.require_anchors("ost")
        options, model = self.options, context.proxy.model
        if options.estimator == "exact" and model.model.dtype.itemsize < 4:
            log.info(f"exact: {model.model.dtype} weights are raised to float32, or rounding swallows the step")
            model.float()
        parameters = select_parameters(model.model, options.parameters)
        anchors = make_anchors(model, context.anchors, context.groups, context.proxy.tokens_per_batch)
        check_batch_invariance(model.model, anchors)
        scale = None
        if options.optimizer == "adam":
            scale, source = warmup_adam_scale(context.proxy.folder, model.model, parameters, anchors)
            log.info(f"adam steps, shaped by {source}")
        step_size = options.step_size or self._step_size(context, parameters, scale)
        context.note("step_size", step_size)
        context.note("groups", anchors.names)
        count = sum(p.numel() for p in parameters.values())
        log.info(f"utilities over {count:,} parameters ({options.parameters}), {len(context.anchors)} anchors")
        self.estimator = self._estimator(context, SimulatedStep(model.model, parameters, anchors, step_size, scale))

    def _step_size(
        self, context: ScoringContext, parameters: Mapping[str, nn.Parameter], scale: GradientScale | None
    ) -> float:
        model = context.proxy.model.model
        train_only(model, parameters)
        length = context.proxy.update_norm(parameters)
        source = "the warm-up's median update"
        if length is None:
            length, source = first_adam_step(parameters, context.proxy.lr), "Adam's first update"
        step_size = median_step_size(
            model, parameters, context.proxy.examples(STEP_SIZE_SAMPLES), length, task=SampleTask(), scale=scale
        )
        log.info(f"step size {step_size:.4g}: the median simulated step is as long as {source} ({length:.3g})")
        return step_size

    def _estimator(
        self, context: ScoringContext, step: SimulatedStep
    ) -> Exact | ExactHead | GradientProducts | FiniteDifference:
        name, proxy = self.options.estimator, context.proxy
        if name == "exact":
            head = untied_linear_head(step.model, step.parameters)
            if head is None or step.scale is not None:
                return Exact(step)
            fast = ExactHead(step, head)
            if fast.general is not None:
                log.info("exact: the logits are not the head's own alone, so every step is taken in full")
            return fast
        option, default = CURVATURE_VECTORS.get(name, ("", 0))
        count = getattr(self.options, option, None) or default
        looked_at, stepped_on = sample_count(proxy.records), SNAPSHOTS * count if name == "projected" else 0
        examples = list(proxy.examples(looked_at + stepped_on))
        singles, unseen = examples[:looked_at], examples[looked_at:]
        vectors = VectorSettings(
            self.options.vector_storage,
            proxy.folder / fingerprint.GRADIENT_VECTORS,
            {"models": fingerprint.of_code("ostlight.models")},
            is_first_rank(),
        )
        estimator: GradientProducts | FiniteDifference
        small = False
        if name == "finite_difference":
            estimator = FiniteDifference(step, singles[:FINITE_DIFFERENCE_SAMPLES], vectors)
            context.note("forward_error", estimator.relative_error)
        else:
            context.note("curvature", "measured" if name == "projected" else "sampled")
            if name == "projected":
                small = len(unseen) < count
                estimator = Projected(step, examples if small else unseen, count, vectors)
            else:
                estimator = SecondOrder(step, count, context.seed, vectors)
            context.note("vector_bytes", sum(estimator.plan.sizes.values()))
            if singles:
                estimator.verify(Batch.together(singles[:2]))
        if singles:
            agreement = rank_agreement(step, estimator, singles, seen=small)
            log.info(agreement.summary(name))
            context.note("rank_agreement", agreement.note(name))
        return estimator

    def fingerprints(self) -> dict[str, str]:
        # Where the vectors are changes no score; half precision does.
        return {"vector_storage": "bf16" if self.options.vector_storage == "bf16" else "full"}

    def teardown(self) -> None:
        if isinstance(self.estimator, GradientProducts):
            self.estimator.close()

    def score(self, batch: Batch) -> dict[str, Any]:
        return self.estimator.columns(batch)

    def select(self, scores: Scores, budget: Budget) -> np.ndarray:
        if self.options.selection == "set":
            return select_set(scores, budget, self.options.set_step_size, self.options.set_batch_size)
        return select_top(scores, budget)

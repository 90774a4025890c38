"""One-Step-Train: selects samples by what one step on each does to the anchor loss.

By default the sign of that utility admits samples and a random subset of the admitted is kept; ``selection: top`` is
the paper's ranking.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from ostlight.config.budget import Budget
from ostlight.errors import SelectorError
from ostlight.influence.agreement import sample_count
from ostlight.influence.gradient_vectors import VectorSettings
from ostlight.influence.gradients.random_products import RandomDirections
from ostlight.influence.gradients.responses import SNAPSHOTS
from ostlight.influence.kronecker import DAMPING, FACTOR_SAMPLES, kronecker_preconditioner
from ostlight.influence.parameters import select_parameters
from ostlight.influence.preconditioner import Preconditioner
from ostlight.influence.sample_gradient import train_only
from ostlight.influence.scorer import DEFAULT_PROBES, DEFAULT_RANK, UtilityScorer
from ostlight.influence.shared_passes import is_sharded
from ostlight.influence.simulated_step import SimulatedStep
from ostlight.influence.step_size import first_adam_step, median_step_size
from ostlight.models.batch import Batch
from ostlight.models.cost_estimate import duration
from ostlight.models.influence_task import SampleTask, make_anchors
from ostlight.pipeline import fingerprint
from ostlight.ranks import cluster_process, is_first_rank
from ostlight.selection.context import ScoringContext
from ostlight.selection.notes import PRECONDITIONER
from ostlight.selection.planning import PlannedScoring, ProxyMemory, ScoringPlan
from ostlight.selection.scores import Scores
from ostlight.selection.selector import Selector
from ostlight.selection.strata import select_top
from ostlight.training.optimizer_records import SECOND_MOMENTS, warmup_adam_preconditioner
from ostlight_selectors.ost.filter import select_filter
from ostlight_selectors.ost.memory import estimator_of, fit, sharding_problem
from ostlight_selectors.ost.options import Estimator, OstOptions
from ostlight_selectors.ost.plan import planned
from ostlight_selectors.ost.rescore import PRODUCTS, in_eight_bits, rescored
from ostlight_selectors.ost.round_robin import select_round_robin
from ostlight_selectors.ost.sample import select_sample
from ostlight_selectors.ost.set_selection import select_set

log = logging.getLogger("ostlight.selectors.ost")

FEWEST_COMPARED = 8
"""Samples compared with ``exact`` on the smallest pools."""
STEP_SIZE_SAMPLES = 256
"""Pool samples over which the median gradient norm is taken. On DigitMath the median over other 256 samples differs by
a quarter (95%), over other 64 by half, which was two or three points of accuracy."""
FINITE_DIFFERENCE_SAMPLES = 8
"""Pool samples on which the length of the finite difference is chosen."""
BY_ANCHOR, ANCHOR_SCALE = "utility_by_anchor", "utility_by_anchor_scale"
"""Columns of each anchor's utility, in half precision: over the largest of the sample's, and that largest in nats."""
SET_STEP_SIZE, SET_BATCH_SIZE = 10.0, 32


class OneStepTrain(Selector):
    """Utility of one SGD step on each sample, measured on the anchors (arXiv 2605.07488)."""

    uses_proxy = True
    needs_anchors: ClassVar[bool] = True
    scores_sharded: ClassVar[bool] = True
    scores_utility: ClassVar[bool] = True
    handles_strata = True
    selection_options = (
        "selection",
        "then",
        "admit",
        "min_confidence",
        "temperature",
        "normalize",
        "set_step_size",
        "set_batch_size",
    )
    compute_options = ("vector_storage",)
    metric_columns = ("loss",)
    renamed_options: ClassVar[Mapping[str, str]] = {
        "scope": "parameters",
        "eta": "step_size",
        "optimizer": "step",
        "targets": "vector_storage",
        "backward=False": "estimator=finite_difference",
        "backward": "leave it out; estimator=finite_difference needs no backward pass, the others take one",
        "objective=sample": "leave it out; ost ranks by utility unless selection=set",
        "objective=set": "selection=set",
        "objective=trial": "use the selector best_of, which tries several subsets",
        "objective": "selection",
        "set_eta": "write set_step_size, a multiple of the step size that samples are scored with",
        "batch_size": "set_batch_size",
    }

    Options = OstOptions  # type: ignore[assignment]

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        draws = self.options.selection == "sample" or self._then in ("random", "coverage")
        self.stochastic_selection = draws  # type: ignore[misc]

    @property
    def _then(self) -> str | None:
        return (self.options.then or "random") if self.options.selection == "filter" else None

    def setup(self, context: ScoringContext) -> None:
        context.require_anchors("ost")
        options, proxy = self.options, context.proxy
        model = proxy.model.model
        parameters = select_parameters(model, options.parameters)
        anchors = make_anchors(proxy.model, context.anchors, context.groups, proxy.tokens_per_batch)
        train_only(model, parameters)
        estimator = self._estimator(context, parameters)
        options.check_columns(estimator)
        rank = options.rank or DEFAULT_RANK if estimator == "projected" else None
        compared = self._announce_set_up(context, estimator, rank)
        preconditioner = self._preconditioner(context, parameters, anchors)
        step_size = options.step_size or self._step_size(context, parameters, preconditioner)
        count = sum(p.numel() for p in parameters.values())
        log.info(f"utilities over {count:,} parameters ({options.parameters}), {len(context.anchors)} anchors")
        if options.utility_by_anchor:
            size = 2 * len(context.anchors)
            log.info(f"{BY_ANCHOR}: {size} bytes a sample, {size * proxy.records / 2**20:.1f} MiB for the pool")
        if options.random_products is not None:
            size = options.random_products + 8
            log.info(f"random products: {size:,} bytes a sample, {size * proxy.records / 2**20:.1f} MiB for the pool")
        singles, calibration, seen = self._examples(context, estimator, rank)
        singles = singles[:compared]
        if rank is not None and 0 < len(calibration) < rank:
            log.warning(f"rank={len(calibration)} instead of {rank}: the pool has no more samples to measure steps on")
            rank = len(calibration)
        vectors = VectorSettings(
            options.vector_storage,
            proxy.folder / fingerprint.GRADIENT_VECTORS,
            fingerprint.of_computing(),
            is_first_rank(),
        )
        self.scorer = UtilityScorer(
            model,
            anchors,
            parameters=options.parameters,
            estimator=estimator,
            step_size=step_size,
            utility_by_anchor=options.utility_by_anchor,
            random_products=options.random_products,
            rank=rank,
            probes=options.probes or DEFAULT_PROBES if estimator == "second_order" else None,
            calibration=calibration,
            vector_storage=vectors,
            preconditioner=preconditioner,
            seed=context.seed,
        )
        if preconditioner is not None and preconditioner.file is not None:
            context.note(PRECONDITIONER, preconditioner.file.name)
        facts = {"step_size": step_size, "groups": self.scorer.groups, **self.scorer.facts}
        if is_sharded(model):
            log.info(
                "rank agreement with exact: not measured: exact takes a step on whole weights, and these are sharded "
                "over the ranks (compute.shard_proxy)"
            )
            facts["rank_agreement_not_measured"] = "the proxy's weights were sharded over the ranks"
        elif singles and estimator != "exact":
            self.scorer.verify(Batch.together(singles[:2]))
            if cluster_process() == 0:  # on a cluster one process has noted it before the others begin
                agreement = self.scorer.rank_agreement(singles, seen)
                log.info(agreement.summary(estimator))
                facts["rank_agreement"] = agreement.note(estimator)
        for name, fact in facts.items():
            context.note(name, fact)

    def _announce_set_up(self, context: ScoringContext, estimator: str, rank: int | None) -> int:
        """Logs what the set-up costs before it starts, and returns how many samples are compared with ``exact``.

        Each of these costs a forward pass over all anchors. On small pools, where they would take longer than all else
        of the run, they are fewer.
        """
        anchors, records, seconds = len(context.anchors), context.proxy.records, context.proxy.seconds_per_sample
        work = self._set_up_work(anchors, records, estimator, rank)
        whole = not is_sharded(context.proxy.model.model)
        wanted, compared = self._compared(anchors, records, estimator, rank) if whole else (0, 0)
        if compared < wanted:
            log.info(
                f"rank agreement: on {compared} samples instead of {wanted}, which would take longer than all else on "
                f"{records:,} records"
            )
        work += compared * (3 + anchors) // 3
        about = f", about {duration(work * seconds)}" if seconds else ""
        log.info(
            f"set-up: as much as training on {work:,} samples{about}, less what an earlier run has kept; then "
            f"{records:,} records are scored"
        )
        return compared

    def _compared(self, anchors: int, records: int, estimator: str, rank: int | None) -> tuple[int, int]:
        """Samples compared with ``exact`` in a large pool, and in one of this size."""
        wanted = 0 if estimator == "exact" else sample_count(records)
        work = self._set_up_work(anchors, records, estimator, rank)
        return wanted, min(wanted, max(FEWEST_COMPARED, 3 * (work + records) // (3 + anchors)))

    def _set_up_work(self, anchors: int, records: int, estimator: str, rank: int | None) -> int:
        """What the set-up costs without the comparison with ``exact``, in training steps on one sample."""
        work = anchors + min(records, STEP_SIZE_SAMPLES)
        if self.options.step in ("kfac", "ekfac"):
            work += min(records, FACTOR_SAMPLES)
        if rank is not None:  # three forward passes over the anchors a measured step, a backward pass a vector
            work += anchors * (min(records, SNAPSHOTS * rank) + rank)
        if estimator == "second_order":
            work += anchors * (self.options.probes or DEFAULT_PROBES)
        return int(work)

    def _estimator(self, context: ScoringContext, parameters: Mapping[str, nn.Parameter]) -> Estimator:
        parameter = next(iter(parameters.values()))
        is_full = parameter.dtype.itemsize >= 4 and not torch.is_autocast_enabled(parameter.device.type)
        return estimator_of(self.options, not is_full, len(set(context.groups)))

    def _preconditioner(
        self, context: ScoringContext, parameters: Mapping[str, nn.Parameter], anchors: Any
    ) -> Preconditioner | None:
        step, proxy = self.options.step, context.proxy
        if step == "sgd":
            return None
        model = proxy.model.model
        if step == "adam":
            records = proxy.folder if proxy.warmed_up else None
            kept = records is not None and (records / SECOND_MOMENTS).exists()
            if self.options.random_products is not None and not kept:
                raise SelectorError(
                    "no step of the warm-up was kept, so step=adam would take its second moments from the anchors, and "
                    "random_products would serve no others; set step=sgd or kfac, or leave random_products out"
                )
            preconditioner, source = warmup_adam_preconditioner(records, model, parameters, anchors)
            log.info(f"adam steps, shaped by {source}")
            return preconditioner
        return kronecker_preconditioner(
            model,
            SampleTask(),
            parameters,
            list(proxy.examples(FACTOR_SAMPLES)),
            step,
            self.options.damping or DAMPING,
            cache=proxy.folder / fingerprint.GRADIENT_VECTORS,
            depends_on=fingerprint.of_computing(),
            is_writer=is_first_rank(),
            split=self._splits_factors(context, parameters),
        )

    def _splits_factors(self, context: ScoringContext, parameters: Mapping[str, nn.Parameter]) -> bool:
        """As the vectors are; not where every sample's step, or all of one vector, needs all factors."""
        options = self.options
        by_vectors = self._estimator(context, parameters) not in (
            "exact",
            "finite_difference",
        )
        return bool(options.vector_storage == "split" and by_vectors and options.random_products is None)

    def _step_size(
        self,
        context: ScoringContext,
        parameters: Mapping[str, nn.Parameter],
        preconditioner: Preconditioner | None,
    ) -> float:
        proxy = context.proxy
        length = proxy.update_norm(parameters)
        source = "the warm-up's median update"
        if length is None:
            length, source = first_adam_step(parameters, proxy.lr), "Adam's first update"
        examples = proxy.examples(STEP_SIZE_SAMPLES)
        step_size = median_step_size(
            proxy.model.model, parameters, examples, length, task=SampleTask(), preconditioner=preconditioner
        )
        log.info(f"step size {step_size:.4g}: the median simulated step is as long as {source} ({length:.3g})")
        return step_size

    def _examples(
        self, context: ScoringContext, estimator: str, rank: int | None
    ) -> tuple[list[Batch], list[Batch], bool]:
        """Samples to compare with ``exact``, samples to calibrate the estimator on, and whether some are both."""
        if estimator == "exact":
            return [], [], False
        compared = sample_count(context.proxy.records)
        # Those to calibrate on come first: how many are compared depends on the size of the pool.
        calibrating = SNAPSHOTS * (rank or 0)
        examples = list(context.proxy.examples(calibrating + compared))
        begin = min(calibrating, max(0, len(examples) - compared))
        unseen, singles = examples[:begin], examples[begin:]
        if rank is None:
            return singles, singles[:FINITE_DIFFERENCE_SAMPLES], False
        enough = len(unseen) >= rank
        return singles, unseen if enough else examples, not enough

    def check_anchors(self, groups: Sequence[str]) -> None:
        self.options.check_anchors(groups)

    def check_budget(self, budget: Budget) -> None:
        self.options.check_budget(budget)

    def fit_memory(self, proxy: ProxyMemory) -> None:
        fit(self.options, proxy)

    def sharding_problem(self, groups: int, full: bool) -> str | None:
        return sharding_problem(self.options, groups, full)

    def plan_scoring(self, scoring: PlannedScoring) -> ScoringPlan:
        whole = not scoring.memory.sharded
        return planned(
            self.options, scoring, STEP_SIZE_SAMPLES, lambda *sizes: self._compared(*sizes)[1] if whole else 0
        )

    def fingerprints(self) -> dict[str, str]:
        # Where the vectors are changes no score; half precision does.
        return {"vector_storage": "bf16" if self.options.vector_storage == "bf16" else "full"}

    def teardown(self) -> None:
        self.scorer.close()

    def score(self, batch: Batch) -> dict[str, Any]:
        columns = self.scorer.columns(batch)
        if BY_ANCHOR in columns:
            columns |= in_half_precision(columns[BY_ANCHOR])
        if PRODUCTS in columns:
            columns |= in_eight_bits(columns.pop(PRODUCTS))
        return columns

    def rescore(self, context: ScoringContext, parts: Iterable[Scores]) -> Iterator[Mapping[str, Any]]:
        context.require_anchors("ost")
        options, proxy = self.options, context.proxy
        if options.random_products is None:
            raise SelectorError(
                "these scores hold no random products; run `ostlight select` with another name and "
                "selector.options.random_products=1024, which passes over the pool once more"
            )
        model = proxy.model.model
        parameters = select_parameters(model, options.parameters)
        train_only(model, parameters)
        anchors = make_anchors(proxy.model, context.anchors, context.groups, proxy.tokens_per_batch)
        preconditioner = self._preconditioner(context, parameters, anchors)
        directions = RandomDirections(parameters, options.random_products, context.seed, preconditioner)
        step = SimulatedStep(model, parameters, anchors, 1.0, preconditioner)
        for columns in rescored(context, step, options.parameters, directions, parts):
            if not options.utility_by_anchor:
                columns.pop(BY_ANCHOR)
            yield columns | (in_half_precision(columns[BY_ANCHOR]) if options.utility_by_anchor else {})

    def select(self, scores: Scores, budget: Budget) -> np.ndarray:
        options = self.options
        if options.selection == "filter":
            return select_filter(
                scores, budget, self._then or "", options.min_confidence, BY_ANCHOR, options.admit or "mean"
            )
        if options.selection == "sample":
            return select_sample(scores, budget, options.temperature or 1.0)
        if options.selection == "round_robin":
            return select_round_robin(scores, budget, options.normalize is not False, BY_ANCHOR, ANCHOR_SCALE)
        if options.selection == "set":
            step_size = options.set_step_size or SET_STEP_SIZE
            return select_set(scores, budget, step_size, options.set_batch_size or SET_BATCH_SIZE)
        return select_top(scores, budget)


def in_half_precision(utilities: Any) -> dict[str, list[Any]]:
    """The two columns of ``[N, A]`` utilities in nats; ``None`` for a sample that failed.

    Over the largest of its row a utility keeps its precision however short the step is.
    """
    rows = [None if row is None else np.array(row, dtype=np.float64) for row in _as_rows(utilities)]
    scales = [None if row is None else float(np.abs(row).max()) for row in rows]
    halves = [
        None if row is None else (row / (scale or 1.0)).astype(np.float16)
        for row, scale in zip(rows, scales, strict=True)
    ]
    return {BY_ANCHOR: halves, ANCHOR_SCALE: scales}


def _as_rows(utilities: Any) -> list[Any]:
    return utilities.tolist() if hasattr(utilities, "tolist") else list(utilities)

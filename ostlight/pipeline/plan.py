"""Plans a run: what each stage will cost, from shapes alone. Loads no weight and computes no pass.

The FLOPs are counted on the code that will run, on models without weights (``ostlight.models.shapes``), as the cost log
counts them: matrix products and attention.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping
from functools import partial

import torch

from ostlight.config.budget import Budget
from ostlight.config.schema import Compute, Config, Proxy, SelectorChoice, Target, Training
from ostlight.data.pool import Pool
from ostlight.errors import ConfigError, SelectorError
from ostlight.models.batch import Batch
from ostlight.models.memory import device_memory
from ostlight.models.module import MultimodalModel
from ostlight.models.shapes import count_pass, gathered_share
from ostlight.pipeline.inputs import read_anchors, with_digitmath
from ostlight.pipeline.memory import proxy_memory
from ostlight.pipeline.planned_models import (
    MOST_BATCHES,
    RECORDS_READ,
    Encodings,
    PlannedModels,
    Where,
    backward,
    forward,
    open_data,
    spread,
)
from ostlight.pipeline.run_folder import RunFolder
from ostlight.pipeline.run_plan import RunPlan, StagePlan
from ostlight.pipeline.sharded_proxy import sharding_problems, shards_proxy
from ostlight.selection.planning import PlannedScoring, ScoringPlan
from ostlight.selection.registry import create
from ostlight.training.loss_monitor import check_steps
from ostlight.training.precision import on_cuda, precision_of

WHOLE_POOL = "train on the whole pool"
"""Name of the stage that a run is compared with."""
SINGLES, ANCHORS_READ = 4, 32
ROW_BYTES = 64
"""Of a record in the score table: position, id, state and tags, compressed."""


def plan(config: Config) -> RunPlan:
    """Reads some records and the models' configurations, and plans every stage.

    Raises:
        ConfigError: paths of data that do not exist; no pool and no ``plan.records``; no model to count with.
        DataError: none of the records that are read can be used.
        ModelError: a model's configuration cannot be read, or its code asks for values of weights.
        SelectorError: no such selector, or it does not take these options.
    """
    config = with_digitmath(config, RunFolder(RunFolder.path_of(config), config, write=config.digitmath is not None))
    return _Planner(config).planned()


def planned_stages(config: Config) -> tuple[list[StagePlan], list[str]]:
    """The stages of a run, and what their plan takes for granted. ``config`` names the files of a built-in pool.

    Raises:
        as ``plan``.
    """
    planner = _Planner(config)
    return planner.stages(), planner.assumptions


class _Planner:
    def __init__(self, config: Config) -> None:
        self.config = config
        self.settings = config.plan
        self.ranks = config.compute.devices * config.compute.num_nodes
        self.pool = open_data(self.config, "pool")
        self.records = self._count("records", "pool", self.pool)
        self.assumptions: list[str] = []
        self.models = PlannedModels(config, self.pool, self.ranks)

    def stages(self) -> list[StagePlan]:
        """In the order they run."""
        config, stages = self.config, list[StagePlan]()
        self._assume_tokens()
        choices = list(_with_dependencies(config.selector))
        if any(create(choice.name, choice.options).uses_proxy for choice in choices):
            if config.proxy.warmup.fraction > 0:
                stages.append(self._warm_up())
            stages += [stage for choice in choices for stage in self._score(choice)]
        stages += self._trials()
        target = config.target
        if target.path is not None:
            kept, mean = self._kept()
            stages.append(self._training("train", target, kept, target.training, self._subset(kept)))
            stages += self._evaluate(mean)
        return stages

    def _compared(self) -> Iterator[StagePlan]:
        """What the run is an alternative to."""
        target = self.config.target
        if target.path is not None:
            whole = dataclasses.replace(target.training, steps=None)
            yield self._training(WHOLE_POOL, target, self.records, whole)
        yield from self._judge()

    def planned(self) -> RunPlan:
        """The whole plan."""
        stages, compared = self.stages(), list(self._compared())
        rate = self.settings.flops_per_s
        if rate is None:
            rate = self.settings.utilization * matrix_product_rate(self.config.compute)
            self.assumptions.append(
                f"{rate:.3g} FLOP/s reached on one device: {self.settings.utilization:.0%} of a large matrix product "
                "here (plan.utilization; plan.flops_per_s sets the rate of another machine)"
            )
        else:
            self.assumptions.append(f"{rate:.3g} FLOP/s reached on one device (plan.flops_per_s)")
        return RunPlan(stages, compared, self.ranks, rate, self._device_bytes(), self.assumptions)

    def _device_bytes(self) -> int | None:
        gib = self.settings.device_gib
        return device_memory(self.config.compute.accelerator) if gib is None else int(gib * 2**30)

    def _count(self, setting: str, name: str, pool: Pool | None) -> int:
        given: int | None = getattr(self.settings, setting)
        if given is None and pool is None and name == "pool":
            raise ConfigError(["plan.records is missing: say how many records there are, or name them in pool.path"])
        return given if given is not None else 0 if pool is None else len(pool)

    def _assume_tokens(self) -> None:
        tokens = self.settings.tokens
        if tokens is None:
            self.assumptions.append(f"samples as long as {RECORDS_READ} records of the pool, spread over it")
        else:
            self.assumptions.append(
                f"{tokens} tokens a sample, {self.settings.image_tokens} of them images and "
                f"{self.settings.answer_tokens} answer (plan.tokens, plan.image_tokens, plan.answer_tokens)"
            )
        self.assumptions.append(
            "counted as the cost log counts: matrix products and attention; with the checks on trusted samples of a "
            "training that does not stop early, without those of trials"
        )

    def _warm_up(self) -> StagePlan:
        proxy = self.config.proxy
        return self._training("warm-up", proxy, self._warm_up_records(proxy.warmup.fraction), proxy.warmup.training)

    def _warm_up_records(self, fraction: float) -> int:
        """Records drawn for the warm-up: those of the run itself, where its pool is the one that is planned."""
        if self.pool is None or self.settings.records is not None:
            return max(1, round(fraction * self.records))
        return max(1, len(self.pool.random_share(fraction, self.config.seed)))

    def _training(
        self,
        stage: str,
        settings: Proxy | Target,
        samples: int,
        training: Training,
        disk: Mapping[str, int] | None = None,
    ) -> StagePlan:
        where: Where = "target" if isinstance(settings, Target) else "proxy"
        (_, data), compute, cost = (
            self.models.shapes(where),
            self.models.compute_of(where),
            self.models.training_cost(where),
        )
        epochs = 1.0 if training.epochs is None else training.epochs
        shown = training.steps * training.batch_size if training.steps is not None else max(1, round(samples * epochs))
        flops = shown * cost.flops_per_sample
        if stage != WHOLE_POOL:
            flops += self._checks_flops(where, math.ceil(shown / training.batch_size))
        held, trained = self.models.weights(settings, where)
        sharded = compute.strategy == "fsdp" if where == "target" else shards_proxy(compute)
        parts = self.ranks if sharded else 1
        memory = {
            "weights": held // parts,
            "gradients": trained // parts,
            "AdamW": 2 * trained // parts,
            "activations": cost.activations,
        }
        if stage == "warm-up":
            memory["weights before the step"] = trained // parts
            if sharded:
                memory["weights gathered"] = round(held * gathered_share(self.models.shapes(where)[0]))
        if precision_of(compute) == "bf16-mixed":
            memory["weights in bf16"] = held // 2 // parts
        written = {"proxy": held, "second moments": trained}
        if where == "target":
            written = {} if disk is None else {**disk, "target": held, "checkpoint": 3 * trained}
        return StagePlan(stage, shown, shown * data.mean_tokens, (flops, flops), memory, written)

    def _checks_flops(self, where: Where, steps: int) -> float:
        """Of the loss on trusted samples in the course of a training of so many steps, on all ranks."""
        name = "dev" if self.config.dev.path is not None or where == "target" else "anchors"
        trusted = open_data(self.config, name)
        count = len(trusted) if trusted is not None else 0
        if name == "anchors" and self.settings.anchors is not None:
            count = self.settings.anchors
        if not count:
            return 0.0
        model, data = self.models.shapes(where)
        if self.settings.tokens is None and trusted is not None:
            data = self.models.encoded(model.encoder, name, ANCHORS_READ)
        every = list(range(len(data.encoded)))
        batches = self.models.batches(model, data, every, self.config.compute.tokens_per_batch, MOST_BATCHES)
        flops = sum(count_pass(partial(forward, model, batch), model).flops for batch in batches)
        return self.ranks * len(check_steps(steps)) * count * flops / sum(map(len, batches))

    def _trials(self) -> Iterator[StagePlan]:
        """Of a selector that tries subsets: the most it may run."""
        selector = create(self.config.selector.name, self.config.selector.options)
        size = self.config.proxy.warmup.training.batch_size
        trials, steps = selector.trials_at_most(self.records, size)
        if trials:
            (_, data), samples = self.models.shapes("proxy"), trials * steps * size
            most = samples * self.models.training_cost("proxy").flops_per_sample
            yield StagePlan(
                f"at most {trials} trials of {steps} steps", samples, samples * data.mean_tokens, (0.0, most)
            )

    def _score(self, choice: SelectorChoice) -> Iterator[StagePlan]:
        selector = create(choice.name, choice.options)
        if not selector.uses_proxy:
            return
        proxy, compute = self.config.proxy, self.config.compute
        model, data = self.models.shapes("proxy")
        every = list(range(len(data.encoded)))
        batches = self.models.batches(model, data, every, compute.tokens_per_batch, MOST_BATCHES)
        held, _ = self.models.weights(proxy, "proxy")
        anchors, groups = self._anchors()
        self.assumptions += sharding_problems(self.config, choice.shown, selector, groups)
        weights = {"weights": held}
        if shards_proxy(compute):
            weights = {"weights": held // self.ranks, "weights gathered": round(held * gathered_share(model))}
        memory = dataclasses.replace(
            proxy_memory(model, proxy, compute, anchors, groups),
            weights=sum(weights.values()),
            free=self._device_bytes(),
        )
        try:
            selector.fit_memory(memory)
        except SelectorError as error:
            self.assumptions.append(f"{choice.shown}: {error}")
        scoring = PlannedScoring(
            model,
            memory,
            self.records,
            singles=self.models.batches(model, data, spread(every, SINGLES), 1),
            batches=batches,
            anchor_batches=self._anchor_batches(model, data),
            flops=lambda work: count_pass(work, model).flops,
        )
        found = selector.plan_scoring(scoring) or _one_pass(scoring, choice.shown)
        self.assumptions += found.assumptions
        low, high = (self.ranks * found.setup_flops + self.records * one for one in found.sample_flops)
        table = self.records * (ROW_BYTES + found.row_bytes)
        name = "score" if choice == self.config.selector else f"score ({choice.shown})"
        tokens = self.records * data.mean_tokens
        yield StagePlan(
            name,
            self.records,
            tokens,
            (low, high),
            {**weights, **found.memory},
            {"score table": table, **found.disk},
        )

    def _anchors(self) -> tuple[int, int]:
        """How many anchors there are, and how many groups."""
        if self.settings.anchors is not None:
            return self.settings.anchors, 1
        anchors = read_anchors(self.config)
        return len(anchors.samples), anchors.group_count

    def _anchor_batches(self, model: MultimodalModel, data: Encodings) -> list[Batch]:
        if self.settings.tokens is None:
            if self.config.anchors.path is None:
                return []
            data = self.models.encoded(model.encoder, "anchors", ANCHORS_READ)
        elif not self.settings.anchors:
            return []
        some = spread(list(range(len(data.encoded))), ANCHORS_READ)
        return self.models.batches(model, data, some, self.config.compute.tokens_per_batch, MOST_BATCHES)

    def _kept(self) -> tuple[int, float]:
        """Samples of the subset, and their mean length in the target's tokens."""
        _, data = self.models.shapes("target")
        return _kept_records(self.config.budget, self.records, data.mean_tokens), data.mean_tokens

    def _subset(self, kept: int) -> dict[str, int]:
        size = self.settings.record_bytes
        return {} if size is None else {"subset": kept * size}

    def _evaluate(self, mean_tokens: float) -> Iterator[StagePlan]:
        tests = self._count("test", "test", open_data(self.config, "test"))
        if not tests:
            return
        target = self.config.target
        model, data = self.models.shapes("target")
        every = list(range(len(data.encoded)))
        batches = self.models.batches(model, data, every, self.config.compute.tokens_per_batch, MOST_BATCHES)
        found = {batch.shape: count_pass(partial(forward, model, batch), model).flops for batch in batches}
        flops = tests * sum(found[batch.shape] for batch in batches) / sum(map(len, batches))
        self.assumptions.append("evaluation: one forward pass over each question and its expected answer")
        held, _ = self.models.weights(dataclasses.replace(target, lora=None), "target")
        yield StagePlan("evaluate", tests, tests * mean_tokens, (flops, flops), {"weights": held})

    def _judge(self) -> Iterator[StagePlan]:
        where: Where = "target" if self.config.target.path else "proxy"
        if self.models.settings_of(where)[0].path is None:
            return
        model, data = self.models.shapes(where)
        given = self.settings.judge_parameters
        parameters = sum(p.numel() for p in model.parameters()) if given is None else given
        tokens = self.records * (data.mean_tokens + self.settings.judge_tokens)
        flops = 2.0 * parameters * tokens
        whose = f"as large as the {where}" if given is None else "(plan.judge_parameters)"
        self.assumptions.append(
            f"judge of {parameters:.3g} parameters {whose}, 2 FLOPs a parameter and token; "
            f"{self.settings.judge_tokens} tokens of rubric and reply beside each sample (plan.judge_tokens)"
        )
        yield StagePlan("judge of the whole pool", self.records, tokens, (flops, flops))


def _with_dependencies(choice: SelectorChoice) -> Iterator[SelectorChoice]:
    """The selectors that score the pool for one, each before those that need it."""
    seen: list[SelectorChoice] = []
    for dependency in create(choice.name, choice.options).dependencies():
        for one in _with_dependencies(dependency):
            if one not in seen:
                seen.append(one)
                yield one
    yield choice


def _one_pass(scoring: PlannedScoring, name: str) -> ScoringPlan:
    """The plan for a selector that gives none."""
    assumption = f"{name} passes each sample through the proxy once, forward or forward and backward; no setup"
    low, high = (scoring.per_sample(partial(work, scoring.model)) for work in (forward, backward))
    return ScoringPlan(0.0, (low, high), assumptions=[assumption])


def _kept_records(budget: Budget, records: int, length: float) -> int:
    if budget.tokens is not None:
        return max(1, min(records, round(budget.tokens / length)))
    return records if budget.threshold is not None else max(1, budget.size(records))


def matrix_product_rate(compute: Compute) -> float:
    """FLOP/s of a large matrix product on this machine's device, in the precision of the passes; takes a moment."""
    on_gpu = on_cuda(compute)
    device, size = ("cuda", 8192) if on_gpu else ("cpu", 1024)
    dtype = torch.bfloat16 if precision_of(compute).startswith("bf16") and on_gpu else torch.float32
    a = torch.randn(size, size, device=device, dtype=dtype)
    fastest = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        a @ a
        if on_gpu:
            torch.cuda.synchronize()
        fastest = min(fastest, time.perf_counter() - start)
    return 2.0 * size**3 / fastest

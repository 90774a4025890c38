"""Plans a run: what each stage will cost, from shapes alone. Loads no weight and computes no pass.

The FLOPs are counted on the code that will run, on models without weights (``ostlight.models.shapes``), as the cost log
counts them: matrix products and attention.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeVar

import torch

from ostlight.config.budget import Budget
from ostlight.config.schema import Compute, Config, Model, Proxy, SelectorChoice, Target, Training
from ostlight.data.pool import Pool
from ostlight.data.sample import Sample
from ostlight.errors import BadRecord, ConfigError, DataError, SelectorError
from ostlight.models.batch import Batch, by_token_budget
from ostlight.models.encode import Encoded, Encoder
from ostlight.models.load import load_encoder
from ostlight.models.memory import device_memory
from ostlight.models.module import MultimodalModel
from ostlight.models.shapes import PassCost, count_pass, made_up_samples, shapes_of, trained_bytes, weight_bytes
from ostlight.pipeline.inputs import open_pool, read_anchors, with_digitmath
from ostlight.pipeline.memory import proxy_memory
from ostlight.pipeline.run_folder import RunFolder
from ostlight.selection.planning import PlannedScoring, ScoringPlan
from ostlight.selection.registry import create
from ostlight.training.precision import on_cuda, precision_of, target_compute

RECORDS_READ = 100
"""Records that are read and encoded, spread over the pool."""
MOST_BATCHES = 3
"""Batches counted of each kind."""
SINGLES, ANCHORS_READ = 4, 32
ROW_BYTES = 64
"""Of a record in the score table: position, id, state and tags, compressed."""

T = TypeVar("T")
Where = Literal["proxy", "target"]


@dataclass(frozen=True)
class StagePlan:
    """What one stage will take.

    Attributes:
        stage: its name, as in the cost log.
        samples: that go through the model, those of every epoch.
        tokens: theirs, padding left out.
        flops: lowest and highest estimate, of all ranks.
        memory: bytes on each rank's device, by what they are for.
        disk: bytes it writes, by what they are for.
    """

    stage: str
    samples: float
    tokens: float
    flops: tuple[float, float]
    memory: Mapping[str, int] = field(default_factory=dict)
    disk: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.stage}: {self.tokens:,.0f} tokens, {_range(*self.flops, _flops)} FLOPs"

    @property
    def memory_bytes(self) -> int:
        return sum(self.memory.values())

    @property
    def disk_bytes(self) -> int:
        return sum(self.disk.values())


@dataclass
class RunPlan:
    """What a run will take.

    Attributes:
        stages: in the order they run.
        compared: what the run is an alternative to: training on the whole pool, and a judge that reads it.
        devices: ranks.
        flops_per_s: of one device.
        device_bytes: memory of one device; ``None`` where it is not known.
        assumptions: sentences.
    """

    stages: list[StagePlan]
    compared: list[StagePlan]
    devices: int
    flops_per_s: float
    device_bytes: int | None
    assumptions: list[str]

    def stage(self, name: str) -> StagePlan:
        """The stage of that name.

        Raises:
            KeyError: the run has none.
        """
        for stage in (*self.stages, *self.compared):
            if stage.stage == name:
                return stage
        raise KeyError(name)

    def device_hours(self, stage: StagePlan) -> tuple[float, float]:
        """Lowest and highest, over all devices together."""
        low, high = stage.flops
        return low / self.flops_per_s / 3600, high / self.flops_per_s / 3600

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield from self._table(self.stages)
        low, high = (sum(stage.flops[k] for stage in self.stages) for k in (0, 1))
        whole = StagePlan("whole run", 0, 0, (low, high))
        hours = _range(*self.device_hours(whole), _hours)
        per_device = "" if self.devices == 1 else f", on {self.devices} devices at once"
        yield f"whole run: {_range(low, high, _flops)} FLOPs, {hours} device-hours{per_device}"
        if self.compared:
            yield "beside it:"
            yield from self._table(self.compared)
        yield "memory on each device" + (f", of {_size(self.device_bytes)}:" if self.device_bytes else ":")
        for stage in self.stages:
            if stage.memory:
                fits = self.device_bytes is None or stage.memory_bytes <= self.device_bytes
                parts = ", ".join(f"{name} {_size(size)}" for name, size in stage.memory.items())
                yield f"  {stage.stage}: {_size(stage.memory_bytes)}{'' if fits else ', does not fit'} = {parts}"
        yield "disk:"
        for stage in self.stages:
            if stage.disk:
                parts = ", ".join(f"{name} {_size(size)}" for name, size in stage.disk.items())
                yield f"  {stage.stage}: {_size(stage.disk_bytes)} = {parts}"
        yield "assuming:"
        yield from (f"  {assumption}" for assumption in self.assumptions)

    def _table(self, stages: Sequence[StagePlan]) -> Iterator[str]:
        rows = [("stage", "samples", "tokens", "FLOPs", "device-hours")]
        for stage in stages:
            flops, hours = _range(*stage.flops, _flops), _range(*self.device_hours(stage), _hours)
            rows.append((stage.stage, f"{stage.samples:,.0f}", f"{stage.tokens:.3g}", flops, hours))
        widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
        for row in rows:
            cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]  # noqa: B905
            yield "  " + "  ".join(cells)


def _range(low: float, high: float, shown: Callable[[float], str]) -> str:
    return shown(high) if low == high else f"{shown(low)} to {shown(high)}"


def _flops(count: float) -> str:
    return f"{count:.3g}"


def _hours(hours: float) -> str:
    return f"{hours:.3g}" if hours >= 0.001 else "<0.001"


def _size(count: int) -> str:
    for unit, name in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count / 2**10:.1f} KiB"


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


@dataclass(frozen=True)
class _Encodings:
    """Some samples as one model sees them."""

    samples: list[Sample]
    encoded: list[Encoded]

    @property
    def mean_tokens(self) -> float:
        return sum(map(len, self.encoded)) / len(self.encoded)


@dataclass(frozen=True)
class _TrainingCost:
    """FLOPs of a sample's training, in the mean, and bytes of the largest micro-batch's activations."""

    flops_per_sample: float
    activations: int


class _Planner:
    def __init__(self, config: Config) -> None:
        self.config = config
        self.settings = config.plan
        self.ranks = config.compute.devices * config.compute.num_nodes
        self.pool = self._open("pool")
        self.records = self._count("records", "pool", self.pool)
        self.assumptions: list[str] = []
        self._models: dict[Where, tuple[MultimodalModel, _Encodings]] = {}
        self._costs: dict[Where, _TrainingCost] = {}
        self._sizes: dict[tuple[str, bool], tuple[int, int]] = {}

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
            yield self._training("train on the whole pool", target, self.records, whole)
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

    def _open(self, name: str) -> Pool | None:
        data = getattr(self.config, name)
        return open_pool(data, name, require_answer=False) if data.path is not None else None

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
            "counted as the cost log counts: matrix products and attention; not the loss on trusted samples during "
            "training and trials"
        )

    def _settings(self, where: Where) -> tuple[Proxy | Target, Training]:
        proxy, target = self.config.proxy, self.config.target
        return (proxy, proxy.warmup.training) if where == "proxy" else (target, target.training)

    def _shapes(self, where: Where) -> tuple[MultimodalModel, _Encodings]:
        """A model without weights, in the precision of its passes, and samples for it; made once."""
        if where not in self._models:
            self._models[where] = self._made_shapes(where)
        return self._models[where]

    def _compute(self, where: str) -> Compute:
        return target_compute(self.config) if where == "target" else self.config.compute

    def _made_shapes(self, where: Where) -> tuple[MultimodalModel, _Encodings]:
        settings: Model
        settings, training = self._settings(where)
        if settings.path is None:
            raise ConfigError([f"{where}.path is missing: name a model folder or hub name"])
        if precision_of(self._compute(where)).startswith("bf16"):
            settings = dataclasses.replace(settings, dtype="bfloat16")
        if self.settings.tokens is None:
            encoder = load_encoder(settings, where)
            model = shapes_of(settings, where, encoder, training)
            return model, self._encoded(encoder)
        model = shapes_of(settings, where, None, training)
        given = self.settings
        made = made_up_samples(model, self.settings.tokens, given.answer_tokens, given.image_tokens, RECORDS_READ)
        return model, _Encodings(*made)

    def _encoded(self, encoder: Encoder, data: str = "pool", most: int = RECORDS_READ) -> _Encodings:
        pool = self.pool if data == "pool" else self._open(data)
        found = _Encodings([], [])
        if pool is None:
            return found
        positions = range(0, len(pool), max(1, len(pool) // most))[:most]
        first: BadRecord | None = None
        for _, read in pool.read(positions):
            try:
                if isinstance(read, BadRecord):
                    raise read
                found.encoded.append(encoder.encode(read))
                found.samples.append(read)
            except BadRecord as error:
                first = first or error
        if not found.encoded:
            raise DataError(f"{data}: none of the {len(positions)} records read can be used; the first: {first}")
        return found

    def _weights(self, settings: Model, where: str) -> tuple[int, int]:
        """Bytes of a rank's weights as they are held, and of those that are trained."""
        key = (where, isinstance(settings, Target) and settings.lora is not None)
        if key not in self._sizes:
            model = shapes_of(settings, where, None)
            shrinks = 2 / _itemsize(settings) if precision_of(self._compute(where)) == "bf16-true" else 1
            self._sizes[key] = round(weight_bytes(model) * shrinks), round(trained_bytes(model) * shrinks)
        return self._sizes[key]

    def _warm_up(self) -> StagePlan:
        proxy = self.config.proxy
        drawn = max(1, round(proxy.warmup.fraction * self.records))
        return self._training("warm-up", proxy, drawn, proxy.warmup.training)

    def _training(
        self,
        stage: str,
        settings: Proxy | Target,
        samples: int,
        training: Training,
        disk: Mapping[str, int] | None = None,
    ) -> StagePlan:
        where: Where = "target" if isinstance(settings, Target) else "proxy"
        (_, data), compute, cost = self._shapes(where), self._compute(where), self._training_cost(where)
        epochs = 1.0 if training.epochs is None else training.epochs
        shown = training.steps * training.batch_size if training.steps is not None else round(samples * epochs)
        flops = shown * cost.flops_per_sample
        held, trained = self._weights(settings, where)
        parts = self.ranks if compute.strategy == "fsdp" and where == "target" else 1
        memory = {
            "weights": held // parts,
            "gradients": trained // parts,
            "AdamW": 2 * trained // parts,
            "activations": cost.activations,
        }
        if stage == "warm-up":
            memory["weights before the step"] = trained
        if precision_of(compute) == "bf16-mixed":
            memory["weights in bf16"] = held // 2 // parts
        written = {"proxy": held, "second moments": trained}
        if where == "target":
            written = {} if disk is None else {**disk, "target": held, "checkpoint": 3 * trained}
        return StagePlan(stage, shown, shown * data.mean_tokens, (flops, flops), memory, written)

    def _trials(self) -> Iterator[StagePlan]:
        """Of a selector that tries subsets: the most it may run."""
        selector = create(self.config.selector.name, self.config.selector.options)
        size = self.config.proxy.warmup.training.batch_size
        trials, steps = selector.trials_at_most(self.records, size)
        if trials:
            (_, data), samples = self._shapes("proxy"), trials * steps * size
            most = samples * self._training_cost("proxy").flops_per_sample
            yield StagePlan(
                f"at most {trials} trials of {steps} steps", samples, samples * data.mean_tokens, (0.0, most)
            )

    def _training_cost(self, where: Where) -> _TrainingCost:
        """Of some steps of the proxy's warm-up or the target's training, as a rank takes them."""
        if where not in self._costs:
            model, data = self._shapes(where)
            size, found, costs, counted = (
                self._settings(where)[1].batch_size,
                dict[Any, PassCost](),
                list[PassCost](),
                0,
            )
            for start in range(0, len(data.encoded), size)[:MOST_BATCHES]:
                chosen = list(range(start, min(start + size, len(data.encoded))))[:: self.ranks]
                for batch in self._batches(model, data, chosen, self.config.compute.tokens_per_batch):
                    if batch.shape not in found:
                        found[batch.shape] = count_pass(partial(_backward, model, batch), model)
                    costs.append(found[batch.shape])
                    counted += len(batch)
            total = sum(cost.flops for cost in costs)
            self._costs[where] = _TrainingCost(total / counted, max(cost.activations for cost in costs))
        return self._costs[where]

    def _batches(
        self,
        model: MultimodalModel,
        data: _Encodings,
        chosen: Sequence[int],
        tokens_per_batch: int,
        most: int | None = None,
    ) -> list[Batch]:
        """By length, as they are scored and trained on; at most so many of them, evenly spread."""
        groups = by_token_budget([len(data.encoded[k]) for k in chosen], tokens_per_batch)
        rows = [[chosen[k] for k in group] for group in _spread(groups, most or len(groups))]
        return [model.collator.batch([data.samples[k] for k in row], [data.encoded[k] for k in row]) for row in rows]

    def _score(self, choice: SelectorChoice) -> Iterator[StagePlan]:
        selector = create(choice.name, choice.options)
        if not selector.uses_proxy:
            return
        proxy, compute = self.config.proxy, self.config.compute
        model, data = self._shapes("proxy")
        every = list(range(len(data.encoded)))
        batches = self._batches(model, data, every, compute.tokens_per_batch, MOST_BATCHES)
        held, _ = self._weights(proxy, "proxy")
        anchors, groups = self._anchors()
        memory = dataclasses.replace(
            proxy_memory(model, proxy, compute, anchors, groups), weights=held, free=self._device_bytes()
        )
        try:
            selector.fit_memory(memory)
        except SelectorError as error:
            self.assumptions.append(f"{choice.shown}: {error}")
        scoring = PlannedScoring(
            model,
            memory,
            self.records,
            singles=self._batches(model, data, _spread(every, SINGLES), 1),
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
            {"weights": held, **found.memory},
            {"score table": table, **found.disk},
        )

    def _anchors(self) -> tuple[int, int]:
        """How many anchors there are, and how many groups."""
        if self.settings.anchors is not None:
            return self.settings.anchors, 1
        anchors = read_anchors(self.config)
        return len(anchors.samples), max(1, len(set(anchors.groups)))

    def _anchor_batches(self, model: MultimodalModel, data: _Encodings) -> list[Batch]:
        if self.settings.tokens is None:
            if self.config.anchors.path is None:
                return []
            data = self._encoded(model.encoder, "anchors", ANCHORS_READ)
        elif not self.settings.anchors:
            return []
        some = _spread(list(range(len(data.encoded))), ANCHORS_READ)
        return self._batches(model, data, some, self.config.compute.tokens_per_batch, MOST_BATCHES)

    def _kept(self) -> tuple[int, float]:
        """Samples of the subset, and their mean length in the target's tokens."""
        _, data = self._shapes("target")
        return _kept_records(self.config.budget, self.records, data.mean_tokens), data.mean_tokens

    def _subset(self, kept: int) -> dict[str, int]:
        size = self.settings.record_bytes
        return {} if size is None else {"subset": kept * size}

    def _evaluate(self, mean_tokens: float) -> Iterator[StagePlan]:
        tests = self._count("test", "test", self._open("test"))
        if not tests:
            return
        target = self.config.target
        model, data = self._shapes("target")
        every = list(range(len(data.encoded)))
        batches = self._batches(model, data, every, self.config.compute.tokens_per_batch, MOST_BATCHES)
        found = {batch.shape: count_pass(partial(_forward, model, batch), model).flops for batch in batches}
        flops = tests * sum(found[batch.shape] for batch in batches) / sum(map(len, batches))
        self.assumptions.append("evaluation: one forward pass over each question and its expected answer")
        held, _ = self._weights(dataclasses.replace(target, lora=None), "target")
        yield StagePlan("evaluate", tests, tests * mean_tokens, (flops, flops), {"weights": held})

    def _judge(self) -> Iterator[StagePlan]:
        where: Where = "target" if self.config.target.path else "proxy"
        if self._settings(where)[0].path is None:
            return
        model, data = self._shapes(where)
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
    low, high = (scoring.per_sample(partial(work, scoring.model)) for work in (_forward, _backward))
    return ScoringPlan(0.0, (low, high), assumptions=[assumption])


def _forward(model: MultimodalModel, batch: Batch) -> None:
    with torch.no_grad():
        model.losses(batch)


def _backward(model: MultimodalModel, batch: Batch) -> None:
    model.losses(batch).mean().backward()


def _spread(items: Sequence[T], most: int) -> list[T]:
    """At most so many of them, evenly spread."""
    return list(items) if len(items) <= most else [items[k * len(items) // most] for k in range(most)]


def _kept_records(budget: Budget, records: int, length: float) -> int:
    if budget.tokens is not None:
        return max(1, min(records, round(budget.tokens / length)))
    return records if budget.threshold is not None else max(1, budget.size(records))


def _itemsize(settings: Model) -> int:
    dtype: torch.dtype = getattr(torch, settings.dtype)
    return dtype.itemsize


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

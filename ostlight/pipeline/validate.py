"""Checks a configuration against its data and models, and estimates what the run will cost. Trains nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from ostlight.config.budget import ANCHOR_GROUP, GRADIENT_CLUSTER, Budget
from ostlight.config.schema import Config, Data, Model, Training
from ostlight.data.pool import Pool
from ostlight.data.remote import local_model
from ostlight.errors import BadRecord, ConfigError, OstlightError
from ostlight.models.adapters import base_of
from ostlight.models.encode import Encoder
from ostlight.models.load import load_encoder
from ostlight.pipeline.inputs import open_pool, read_anchors, with_digitmath
from ostlight.pipeline.run_folder import RunFolder
from ostlight.pipeline.sample_text import mark_answers
from ostlight.selection.context import no_anchors
from ostlight.selection.registry import create, create_all
from ostlight.selection.selector import Selector

RECORDS_READ = 100
"""Records that are read and encoded, spread over the pool."""
FLOPS_TRAINING, FLOPS_FORWARD = 6, 2
"""Operations per parameter and token: forward and backward pass, and forward pass alone."""


@dataclass
class StageEstimate:
    """What one stage will cost.

    Attributes:
        tokens: that go through the model, padding left out.
        flops: lowest and highest estimate.
    """

    stage: str
    tokens: float
    flops: tuple[float, float]

    def __str__(self) -> str:
        low, high = self.flops
        flops = f"{high:.2g}" if low == high else f"{low:.2g} to {high:.2g}"
        return f"{self.stage}: {self.tokens:,.0f} tokens, {flops} FLOPs"


@dataclass
class Validation:
    """What a configuration was checked to be.

    Attributes:
        problems: what keeps the run from working.
        records: number of records by setting (``pool``, ``anchors``, ``dev``, ``test``).
        read: records of the pool that were read and encoded.
        rejected: those that cannot be used, by reason.
        answers_cut: those whose answer the length limit cuts.
        tokens_per_sample: mean length of the usable ones, in the proxy's tokens; 0 without a model to count with.
        sample: one of them as the model sees it, answers between ``[[`` and ``]]``.
        stages: estimated cost of each.
        assumptions: of the estimates.
    """

    problems: list[str] = field(default_factory=list)
    records: dict[str, int] = field(default_factory=dict)
    read: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    answers_cut: int = 0
    tokens_per_sample: float = 0.0
    sample: str = ""
    stages: list[StageEstimate] = field(default_factory=list)
    assumptions: list[str] = field(default_factory=list)

    @contextmanager
    def collect_problem(self, setting: str) -> Iterator[None]:
        """Ends the block at an error and adds its first line to the problems, led by the setting that caused it."""
        try:
            yield
        except (OSError, ValueError, ImportError, RuntimeError, OstlightError) as error:
            text = error.problems[0] if isinstance(error, ConfigError) else str(error).strip().split("\n")[0]
            is_led = text.startswith(setting.partition(".")[0])
            self.problems.append(text if is_led else f"{setting}: {text}")

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield "records: " + (", ".join(f"{name} {count:,}" for name, count in self.records.items()) or "none")
        if self.read:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.rejected.items())
            rejected = f"{sum(self.rejected.values())} would be rejected" + (f" ({reasons})" if reasons else "")
            yield f"read and encoded {self.read} records of the pool: {rejected}"
        if self.answers_cut:
            yield f"{self.answers_cut} of their answers would be cut by max_length"
        if self.sample:
            yield "one sample as the model sees it, what it is trained on between [[ and ]]:"
            yield from (f"  {line}" for line in self.sample.split("\n"))
        if self.stages:
            yield "estimated cost:"
            yield from (f"  {stage}" for stage in self.stages)
        if self.assumptions:
            yield "assuming:"
            yield from (f"  {assumption}" for assumption in self.assumptions)
        for problem in self.problems:
            yield f"problem: {problem}"
        if not self.problems:
            yield "no problem found"


def validate(config: Config) -> Validation:
    """Opens the data, encodes some records, and estimates the cost of every stage.

    Problems are collected, so one call lists all of them.

    Raises:
        ConfigError: paths of data that do not exist.
        SelectorError: no such selector, or it does not take these options.
    """
    selector = create(config.selector.name, config.selector.options)
    create_all(config.benchmark.selectors if config.benchmark else (), "benchmark.selectors")
    config = with_digitmath(config, RunFolder(RunFolder.path_of(config), config, write=config.digitmath is not None))
    report = Validation()
    pools = _open_pools(config, selector, report)
    _check_anchors(config, selector, report)
    encoder = _load_encoder(config.proxy, "proxy", selector.uses_proxy, report)
    target_encoder = _load_encoder(config.target, "target", False, report)
    if "pool" not in pools:
        return report
    lengths, tags = _encode_records(pools["pool"], encoder or target_encoder, selector, report)
    _check_strata(config, tags, report)
    if lengths:
        report.tokens_per_sample = sum(lengths) / len(lengths)
        _estimate_cost(config, selector, len(pools["pool"]), report)
    return report


def _open_pools(config: Config, selector: Selector, report: Validation) -> dict[str, Pool]:
    pools = {}
    for name in ("pool", "anchors", "dev", "test"):
        data: Data = getattr(config, name)
        if data.path is None:
            continue
        with report.collect_problem(f"{name}.path"):
            pools[name] = open_pool(data, name, require_answer=name != "pool" or selector.needs_answers)
            report.records[name] = len(pools[name])
    return pools


def _check_anchors(config: Config, selector: Selector, report: Validation) -> None:
    if config.anchors.path is None and selector.needs_anchors:
        report.problems.append(str(no_anchors(config.selector.name)))
    if "anchors" in report.records:
        with report.collect_problem("anchors"):
            read_anchors(config)


def _load_encoder(model: Model, where: str, is_required: bool, report: Validation) -> Encoder | None:
    if model.path is not None:
        with report.collect_problem(f"{where}.path"):
            return load_encoder(model, where)
    elif is_required:
        report.problems.append(f"{where}.path is missing: the selector scores with this model")
    return None


def _encode_records(
    pool: Pool, encoder: Encoder | None, selector: Selector, report: Validation
) -> tuple[list[int], set[str]]:
    """Returns the lengths of the usable records in tokens, none without an encoder, and the tags of all."""
    positions = range(0, len(pool), max(1, len(pool) // RECORDS_READ))[:RECORDS_READ]
    rejected: Counter[str] = Counter()
    lengths, tags = [], set[str]()
    for _, read in pool.read(positions):
        try:
            if isinstance(read, BadRecord):
                raise read
            tags |= read.tags.keys()
            if encoder is None:
                continue
            encoded = encoder.encode(read) if selector.needs_answers else encoder.encode_prompt(read)
        except BadRecord as error:
            rejected[error.reason] += 1
            continue
        lengths.append(len(encoded))
        report.answers_cut += encoded.answer_cut
        report.sample = report.sample or mark_answers(encoder, encoded)
    report.read, report.rejected = len(positions), dict(rejected.most_common())
    if sum(rejected.values()) == len(positions):
        report.problems.append(f"pool: none of the {len(positions)} records read can be used")
    return lengths, tags


def _check_strata(config: Config, tags: set[str], report: Validation) -> None:
    budgets = {"budget": config.budget}
    if config.benchmark is not None:
        budgets |= {f"benchmark.budgets[{k}]": budget for k, budget in enumerate(config.benchmark.budgets)}
    for where, budget in budgets.items():
        if budget.stratify_by not in (None, ANCHOR_GROUP, GRADIENT_CLUSTER, *tags):
            report.problems.append(
                f"{where}.stratify_by is {budget.stratify_by!r}, a tag of none of the {report.read} records read; "
                f"their tags are: {', '.join(sorted(tags)) or 'none'}"
            )


def _estimate_cost(config: Config, selector: Selector, records: int, report: Validation) -> None:
    length = report.tokens_per_sample
    report.assumptions.append(
        f"{length:,.0f} tokens a sample, the mean of those read; {FLOPS_TRAINING} FLOPs for each parameter and token "
        f"of training, {FLOPS_FORWARD} of a forward pass"
    )
    parameters = _count_parameters(config.proxy, "proxy", report) if selector.uses_proxy else 0
    if parameters:
        warmup, tokens = config.proxy.warmup, records * length
        if warmup.fraction > 0:
            samples = max(1, round(warmup.fraction * records))
            report.stages.append(_training("warm-up", warmup.training, samples, length, parameters))
        forward, training = (factor * parameters * tokens for factor in (FLOPS_FORWARD, FLOPS_TRAINING))
        report.stages.append(StageEstimate("score", tokens, (forward, training)))
        trials, steps = selector.trials_at_most(records, warmup.training.batch_size)
        if trials:
            tokens = trials * steps * warmup.training.batch_size * length
            flops = FLOPS_TRAINING * parameters * tokens
            report.stages.append(StageEstimate(f"at most {trials} trials of {steps} steps", tokens, (0.0, flops)))
        report.assumptions.append(
            "scoring passes each sample through the proxy once: forward only, or forward and backward where the "
            "selector takes gradients; its setup and dependencies come on top (`select` measures them before "
            "it starts)"
        )
    parameters = _count_parameters(config.target, "target", report)
    if parameters:
        kept = _kept_records(config.budget, records, length)
        report.stages.append(_training("train", config.target.training, kept, length, parameters))


def _kept_records(budget: Budget, records: int, length: float) -> int:
    if budget.tokens is not None:
        return max(1, min(records, round(budget.tokens / length)))
    return records if budget.threshold is not None else max(1, budget.size(records))


def _training(stage: str, training: Training, samples: int, length: float, parameters: int) -> StageEstimate:
    epochs = 1.0 if training.epochs is None else training.epochs
    shown = samples * epochs if training.steps is None else training.steps * training.batch_size
    tokens = shown * length
    flops = FLOPS_TRAINING * parameters * tokens
    return StageEstimate(f"{stage} on {samples:,} samples", tokens, (flops, flops))


def _count_parameters(settings: Model, where: str, report: Validation) -> int:
    """Returns the model's parameters, from its configuration alone; 0 where none is named or it cannot be read."""
    path, trust = settings.path, {"trust_remote_code": settings.trust_remote_code}
    if path is None:
        return 0
    multimodal: Any = AutoModelForImageTextToText
    text_only: Any = AutoModelForCausalLM
    with report.collect_problem(f"{where}.path"):
        path = local_model(path)
        config = AutoConfig.from_pretrained(base_of(path, where) or path, **trust)
        with torch.device("meta"):
            try:
                model = multimodal.from_config(config, **trust)
            except ValueError:  # a text-only model
                model = text_only.from_config(config, **trust)
        return int(model.num_parameters())
    return 0

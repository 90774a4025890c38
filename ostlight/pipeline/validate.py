"""Checks a configuration against its data and models, and estimates what the run will cost. Trains nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from ostlight.config.schema import Config, Data, Model, Training
from ostlight.data.pool import Pool
from ostlight.data.sanitize import harmless
from ostlight.errors import BadRecord, ConfigError, OstlightError
from ostlight.influence.parameters import select_parameters
from ostlight.models.adapters import adapters_base
from ostlight.models.encode import Encoded, Encoder
from ostlight.models.load import load_encoder
from ostlight.models.losses import IGNORED
from ostlight.pipeline.inputs import open_pool, read_anchors, with_digitmath
from ostlight.pipeline.run_folder import RunFolder
from ostlight.selection.registry import create
from ostlight.selection.selector import Selector

RECORDS_READ = 100
"""Records that are read and encoded, spread over the pool."""
FLOPS_TRAINING, FLOPS_FORWARD = 6, 2
"""Operations per parameter and token: forward and backward pass, and forward pass alone."""
REPEATED = 4
"""Equal tokens in a row that are shown as one, with their number."""
MAX_CHARACTERS = 2_000
"""Shown of a sample."""


@dataclass
class StageEstimate:
    """What one stage will cost.

    Attributes:
        stage: its name.
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
        gradient_vector_bytes: memory of the selector's fixed gradient vectors; ``None`` where it holds none.
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
    gradient_vector_bytes: float | None = None
    assumptions: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield "records: " + (", ".join(f"{name} {count:,}" for name, count in self.records.items()) or "none")
        if self.read:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.rejected.items())
            yield (
                f"read and encoded {self.read} records of the pool: {sum(self.rejected.values())} would be rejected"
                + (f" ({reasons})" if reasons else "")
            )
        if self.answers_cut:
            yield f"{self.answers_cut} of their answers would be cut by max_length"
        if self.sample:
            yield "one sample as the model sees it, what it is trained on between [[ and ]]:"
            yield from (f"  {line}" for line in self.sample.split("\n"))
        if self.stages:
            yield "estimated cost:"
            yield from (f"  {stage}" for stage in self.stages)
        if self.gradient_vector_bytes is not None:
            yield f"  gradient vectors: {_size(self.gradient_vector_bytes)}"
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
    config = with_digitmath(config, RunFolder(RunFolder.path_of(config), config, write=config.digitmath is not None))
    report = Validation()
    pools = _open_pools(config, selector, report)
    groups = _check_anchors(config, report)
    encoder = _load_encoder(config.proxy, "proxy", selector.uses_proxy, report)
    target_encoder = _load_encoder(config.target, "target", False, report)
    if "pool" not in pools:
        return report
    lengths = _encode_records(pools["pool"], encoder or target_encoder, selector, report)
    if lengths:
        report.tokens_per_sample = sum(lengths) / len(lengths)
        _estimate_cost(config, selector, len(pools["pool"]), groups, report)
    return report


def _open_pools(config: Config, selector: Selector, report: Validation) -> dict[str, Pool]:
    settings: dict[str, Data] = {"pool": config.pool, "anchors": config.anchors, "dev": config.dev, "test": config.test}
    pools = {}
    for name, data in settings.items():
        if data.path is None:
            continue
        try:
            pools[name] = open_pool(data, name, require_answer=name != "pool" or selector.needs_answers)
            report.records[name] = len(pools[name])
        except OstlightError as error:
            report.problems.append(_with_setting(f"{name}.path", error))
    return pools


def _check_anchors(config: Config, report: Validation) -> int:
    """Returns the number of anchor groups; 0 without anchors."""
    if config.anchors.path is None:
        report.assumptions.append("no anchors are named: a selector that needs them will refuse to score")
    if "anchors" not in report.records:
        return 0
    try:
        return len(set(read_anchors(config).groups))
    except OstlightError as error:
        report.problems.append(_with_setting("anchors", error))
        return 0


def _load_encoder(model: Model, where: str, is_required: bool, report: Validation) -> Encoder | None:
    if model.path is None:
        if is_required:
            report.problems.append(f"{where}.path is missing: the selector scores with this model")
        return None
    try:
        return load_encoder(model, where)
    except OstlightError as error:
        report.problems.append(_with_setting(f"{where}.path", error))
        return None


def _encode_records(pool: Pool, encoder: Encoder | None, selector: Selector, report: Validation) -> list[int]:
    """Returns the lengths of the usable records in tokens; empty without an encoder."""
    positions = range(0, len(pool), max(1, len(pool) // RECORDS_READ))[:RECORDS_READ]
    rejected: Counter[str] = Counter()
    lengths = []
    for _, read in pool.read(positions):
        try:
            if isinstance(read, BadRecord):
                raise read
            if encoder is None:
                continue
            encoded = encoder.encode(read) if selector.needs_answers else encoder.encode_prompt(read)
        except BadRecord as error:
            rejected[error.reason] += 1
            continue
        lengths.append(len(encoded))
        report.answers_cut += encoded.answer_cut
        report.sample = report.sample or _mark_answers(encoder, encoded)
    report.read, report.rejected = len(positions), dict(rejected.most_common())
    if sum(rejected.values()) == len(positions):
        report.problems.append(f"pool: none of the {len(positions)} records read can be used")
    return lengths


def _mark_answers(encoder: Encoder, encoded: Encoded) -> str:
    """Returns the sample's text with the trained tokens between ``[[`` and ``]]``, and repeated tokens as one."""
    pairs = zip(encoded.inputs["input_ids"].tolist(), (encoded.labels != IGNORED).tolist(), strict=True)
    text = ""
    for is_answer, run in groupby(pairs, key=lambda pair: pair[1]):
        part = _decode([token for token, _ in run], encoder.tokenizer)
        text += f"[[{part}]]" if is_answer else part
    text = harmless(text)
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]} ... ({len(text):,} characters)"


def _decode(tokens: list[int], tokenizer: Any) -> str:
    text, pending = "", []
    for token, equal in groupby(tokens):
        count = len(list(equal))
        if count < REPEATED:
            pending += [token] * count
        else:
            text += str(tokenizer.decode(pending)) + f"{tokenizer.decode([token])}[x{count}]"
            pending = []
    return text + str(tokenizer.decode(pending))


def _estimate_cost(config: Config, selector: Selector, records: int, groups: int, report: Validation) -> None:
    length = report.tokens_per_sample
    report.assumptions.append(
        f"{length:,.0f} tokens a sample, the mean of those read; {FLOPS_TRAINING} FLOPs for each parameter and token "
        f"of training, {FLOPS_FORWARD} of a forward pass"
    )
    proxy = _meta_model(config.proxy, "proxy", report) if selector.uses_proxy else None
    if proxy is not None:
        _estimate_scoring(config, selector, proxy, records, groups, report)
    target = _meta_model(config.target, "target", report) if config.target.path is not None else None
    if target is not None:
        kept = _kept_records(config, records, length)
        report.stages.append(_training("train", config.target.training, kept, length, target))


def _estimate_scoring(
    config: Config, selector: Selector, proxy: nn.Module, records: int, groups: int, report: Validation
) -> None:
    length, parameters = report.tokens_per_sample, _count(proxy)
    warmup = config.proxy.warmup
    if warmup.fraction > 0:
        samples = max(1, round(warmup.fraction * records))
        report.stages.append(_training("warm-up", warmup.training, samples, length, proxy))
    tokens = records * length
    low, high = (factor * parameters * tokens for factor in (FLOPS_FORWARD, FLOPS_TRAINING))
    report.stages.append(StageEstimate("score", tokens, (low, high)))
    report.assumptions.append(
        "scoring passes each sample through the proxy once: forward only, or forward and backward where the selector "
        "takes gradients; its setup, dependencies and trials come on top (`select` measures them before it starts)"
    )
    _estimate_gradient_vectors(vars(selector.options), proxy, max(1, groups), report)


def _estimate_gradient_vectors(options: Mapping[str, Any], proxy: nn.Module, groups: int, report: Validation) -> None:
    """Sets the memory of the vectors that each sample's gradient is multiplied with, where the options have them."""
    if "vector_storage" not in options:
        return
    vectors = _vector_count(options, groups)
    if vectors == 0:
        return
    try:
        scope = str(options.get("parameters", "all"))
        selected = sum(p.numel() for p in select_parameters(proxy, scope).values())
    except OstlightError as error:
        report.problems.append(_with_setting("selector.options.parameters", error))
        return
    width = 2 if options["vector_storage"] == "bf16" else 4
    report.gradient_vector_bytes = float(vectors * selected * width)
    report.assumptions.append(f"{vectors} gradient vectors of {selected:,} parameters ({scope}), {width} bytes each")


def _vector_count(options: Mapping[str, Any], groups: int) -> int:
    """Vectors by estimator: one for each anchor group, and measured directions or, for each group, curvature probes."""
    directions = {"projected": options.get("rank") or 32, "first_order": 0, "finite_difference": 0}
    estimator = options.get("estimator")
    if estimator == "second_order":
        return groups * (1 + (options.get("probes") or 64))
    return groups + directions[estimator] if estimator in directions else 0


def _kept_records(config: Config, records: int, length: float) -> int:
    budget = config.budget
    if budget.tokens is not None:
        return max(1, min(records, round(budget.tokens / length)))
    return records if budget.threshold is not None else max(1, budget.size(records))


def _training(stage: str, training: Training, samples: int, length: float, model: nn.Module) -> StageEstimate:
    epochs = 1.0 if training.epochs is None else training.epochs
    shown = samples * epochs if training.steps is None else training.steps * training.batch_size
    tokens = shown * length
    flops = FLOPS_TRAINING * _count(model) * tokens
    return StageEstimate(f"{stage} on {samples:,} samples", tokens, (flops, flops))


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _meta_model(settings: Model, where: str, report: Validation) -> nn.Module | None:
    """Returns the model without weights, from its configuration alone."""
    path = settings.path
    if path is None:
        return None
    trust = {"trust_remote_code": settings.trust_remote_code}
    multimodal: Any = AutoModelForImageTextToText
    text_only: Any = AutoModelForCausalLM
    try:
        config = AutoConfig.from_pretrained(adapters_base(path, where) or path, **trust)
        with torch.device("meta"):
            try:
                model: nn.Module = multimodal.from_config(config, **trust)
            except ValueError:  # a text-only model
                model = text_only.from_config(config, **trust)
    except (OSError, ValueError, ImportError, RuntimeError, OstlightError) as error:
        report.problems.append(_with_setting(f"{where}.path", error))
        return None
    return model


def _with_setting(setting: str, error: Exception) -> str:
    """Returns the error's first line, led by the setting that caused it."""
    text = error.problems[0] if isinstance(error, ConfigError) else str(error).strip().split("\n")[0]
    return text if text.startswith(setting.partition(".")[0]) else f"{setting}: {text}"


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"

"""Checks a configuration against its data and models, and estimates what the run will cost. Trains nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from ostlight.config.budget import ANCHOR_GROUP, GRADIENT_CLUSTER
from ostlight.config.schema import Config, Data, Model, SelectorChoice
from ostlight.data.pool import Pool
from ostlight.errors import BadRecord, ConfigError, OstlightError
from ostlight.models.encoding.encoder import Encoder
from ostlight.models.load import load_encoder
from ostlight.models.shapes import shapes_of
from ostlight.pipeline.inputs import open_pool, read_anchors, with_digitmath
from ostlight.pipeline.plan import planned_stages
from ostlight.pipeline.planned_models import RECORDS_READ
from ostlight.pipeline.required import missing_settings, refuse_unsuited_anchors
from ostlight.pipeline.run_folder import RunFolder
from ostlight.pipeline.run_plan import StagePlan
from ostlight.pipeline.sample_text import mark_answers
from ostlight.pipeline.sharded_proxy import sharding_problems
from ostlight.selection.registry import create, create_all
from ostlight.selection.selector import Selector

UNCOUNTED = (OSError, ValueError, ImportError, RuntimeError, OstlightError)
"""What a model that cannot be made without its weights raises; it may run all the same."""


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
        looked: whether data and models were opened: not where settings are missing, which is known at once.
    """

    problems: list[str] = field(default_factory=list)
    records: dict[str, int] = field(default_factory=dict)
    read: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    answers_cut: int = 0
    tokens_per_sample: float = 0.0
    sample: str = ""
    stages: list[StagePlan] = field(default_factory=list)
    assumptions: list[str] = field(default_factory=list)
    looked: bool = True

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
        if not self.looked:
            yield from (f"problem: {problem}" for problem in self.problems)
            yield "data and models were not looked at; set what is missing first"
            return
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

    Problems are collected, so one call lists all of them. Where settings are missing, it ends with these, before any
    file is read.

    Raises:
        ConfigError: paths of data that do not exist.
        SelectorError: no such selector, or it does not take these options.
    """
    selector = create(config.selector.name, config.selector.options)
    choices = config.benchmark.selectors if config.benchmark else ()
    compared = create_all(choices, "benchmark.selectors")
    if missing := list(missing_settings(config, selector)):
        return Validation(problems=missing, looked=False)
    config = with_digitmath(config, RunFolder(RunFolder.path_of(config), config, write=config.digitmath is not None))
    report = Validation()
    encoder = _load_encoder(config.proxy, "proxy", report)  # before the pool, whose indexing may take long
    target_encoder = _load_encoder(config.target, "target", report)
    pools = _open_pools(config, selector, report)
    _check_selectors(config, [(config.selector, selector), *zip(choices, compared, strict=True)], report)
    if "pool" not in pools:
        return report
    lengths, tags = _encode_records(pools["pool"], encoder or target_encoder, selector, report)
    _check_strata(config, tags, report)
    if lengths:
        report.tokens_per_sample = sum(lengths) / len(lengths)
    if lengths and not report.problems:
        _estimate_cost(config, report)
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


def _check_selectors(config: Config, selectors: Sequence[tuple[SelectorChoice, Selector]], report: Validation) -> None:
    """Whether anchors and compute serve each of the selectors."""
    anchors = None
    if "anchors" in report.records:
        with report.collect_problem("anchors"):
            anchors = read_anchors(config)
    for choice, selector in selectors:
        if anchors is not None:
            with report.collect_problem("anchors"):
                refuse_unsuited_anchors(anchors, choice.shown, selector)
        groups = 1 if anchors is None else anchors.group_count
        report.problems += sharding_problems(config, choice.shown, selector, groups)


def _load_encoder(model: Model, where: str, report: Validation) -> Encoder | None:
    if model.path is not None:
        with report.collect_problem(f"{where}.path"):
            encoder = load_encoder(model, where)
            with suppress(*UNCOUNTED):
                shapes_of(model, where, encoder)  # so that it refuses what the model has no place for
            return encoder
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


def _estimate_cost(config: Config, report: Validation) -> None:
    """A model that cannot be counted without its weights may run all the same, so this makes no problem."""
    try:
        report.stages, report.assumptions = planned_stages(config)
    except ConfigError as error:  # the same stages would refuse it, after the pool was scored
        report.problems += [problem for problem in error.problems if problem not in report.problems]
    except UNCOUNTED as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        report.assumptions = [f"the cost is not estimated: {reason}"]

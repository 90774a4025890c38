"""The rules every selector must follow: one method per rule, yielding each violation and how to fix it."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import yaml
from scipy.stats import spearmanr

from ostlight.config.bind import bind
from ostlight.config.budget import Budget
from ostlight.errors import ConfigError, DataError, OstlightError
from ostlight.models.batch import Batch
from ostlight.models.cost import StageCost
from ostlight.models.encoding.encoder import Encoded
from ostlight.pipeline.inputs import open_pool
from ostlight.pipeline.run_folder import RunFolder
from ostlight.pipeline.selection import Selection
from ostlight.pipeline.subset_selection import count_tokens
from ostlight.selection.scores import FIXED_NAMES
from ostlight.selection.selector import Selector
from ostlight.selection.usage import Usage
from ostlight.testing import pools
from ostlight.testing.compare import first_difference
from ostlight.testing.processes import kill_and_resume
from ostlight.testing.runner import SelectorRunner

BASE = "base"
"""Name of the first run; the others are compared with its score table."""
AGREEING = 0.5
"""Rank correlation of two seeds' scores from which on the seed is a small error, not what decides."""
Violations = Iterator[str]


class Interrupted(BaseException):
    """Ends a run from inside a selector, as Ctrl-C does."""


class ContractCheck:
    """Checks one selector class.

    Args:
        tolerance: see ``check_selector``.

    Attributes:
        cause: the first exception the selector raised.
    """

    def __init__(self, runner: SelectorRunner, tolerance: float) -> None:
        self.runner, self.tolerance = runner, tolerance
        self.cause: BaseException | None = None

    def find_violations(self, in_process: bool = True, processes: bool = True) -> list[str]:
        """All violations. If the first run fails, only what is wrong with that one.

        Args:
            in_process: whether to check the rules that need no other process.
            processes: whether to check the rule that needs processes of its own.
        """
        found = [*self._check("options", self.options), *self._check("a run", self.first_run)]
        if found:
            return found
        self.table = self.runner.rows(BASE)
        rules: list[tuple[str, Callable[[], Violations]]] = []
        if in_process:
            rules += [
                ("a second run", self.determinism),
                ("another seed", self.seed),
                ("other batches and another order", self.invariance),
                ("an interrupted run", self.resume),
                ("a sample that fails", self.failure),
                ("select", self.select),
                ("selection_options", self.selection_options),
                ("a pool without a usable record", self.nothing_usable),
                ("a run without anchors", self.no_anchors),
            ]
            if self.runner.cls.uses_proxy:
                rules.append(("a sample with NaN from the proxy", self.not_a_number))
        if processes:
            rules.append(("a killed run and two ranks", self.ranks))
        return [violation for title, rule in rules for violation in self._check(title, rule)]

    def _check(self, title: str, rule: Callable[[], Violations]) -> list[str]:
        found: list[str] = []
        try:
            found.extend(f"{title}: {violation}" for violation in rule())
        except Exception as error:  # a selector may raise anything; it is reported with the other violations
            self.cause = self.cause or error
            found.append(f"{title}: {type(error).__name__}: {error}")
        return found

    def options(self) -> Violations:
        cls = self.runner.cls
        selector = self.runner.new_selector()
        if not isinstance(getattr(selector, "options", None), cls.Options) or not hasattr(selector, "usage"):
            yield "self.options or self.usage is missing; call super().__init__(options) first in __init__"
            return
        plain = yaml.safe_load(yaml.safe_dump(dataclasses.asdict(selector.options)))
        if bind(cls.Options, plain) != selector.options:
            yield "self.options changes when written as YAML and read back; do not modify it"
        if not _rejects_mapping(cls.Options, "no_such_option"):
            yield "an unknown option is accepted; make Options a plain dataclass"
        for f in dataclasses.fields(cls.Options):
            if not isinstance(plain[f.name], dict) and not _rejects_mapping(cls.Options, f.name):
                yield f"option {f.name!r} accepts a mapping; annotate it with the type it holds"

    def first_run(self) -> Violations:
        selection = self.runner.run(BASE)
        table = self.runner.rows(BASE)
        self.kept = selection.kept.tolist()
        yield from self._all_accounted_for(selection)
        for position, reason in ((pools.EMPTY_ANSWER, "empty_answer"), (pools.DUPLICATE_ID, "duplicate_id")):
            if table[position]["reason"] != reason:
                yield f"record {position} should be rejected as {reason}; its reason is {table[position]['reason']!r}"
        failed = [row for row in table if row["reason"] == "selector_error"]
        if failed:
            yield (
                f"score failed on {len(failed)} of {len(table)} records, first on {failed[0]['id']!r}: "
                f"{failed[0]['detail']}; raise ostlight.errors.BadRecord(reason, detail) for a sample that cannot "
                "be scored"
            )
        if all(row["state"] != "ok" for row in table):
            yield "no sample got a score"
        yield from self._scores_differ(table)
        for name, id in _not_a_number(table):
            yield f"column {name!r} holds NaN, first for {id!r}; return None for what is unknown, or reject the sample"
        (entry,) = self._score_costs()
        if together := entry.more.get("failed_together"):
            yield (
                f"score failed on {together['batches']} batches but on none of their samples alone: "
                f"{together['last']}; state kept between calls must stay usable (an async client belongs to one "
                "event loop: keep an asyncio.Runner)"
            )
        usage = {f.name: getattr(entry, f.name) for f in dataclasses.fields(Usage)}
        if min(usage.values()) < 0:
            yield f"its usage is negative ({usage}); pass positive amounts to self.usage.add"

    def _scores_differ(self, table: list[dict[str, Any]]) -> Violations:
        cls = self.runner.cls
        scores = {row["score"] for row in table if row["state"] == "ok"}
        stores_more = bool(table[0].keys() - {*FIXED_NAMES, "score"})  # embeddings, say, for other selectors
        if cls.select is Selector.select and not cls.ignores_budget and not stores_more and len(scores) == 1:
            yield (
                f"every sample got the score {scores.pop()}; let exceptions through in score, they reject the sample "
                "that raised them"
            )

    def _score_costs(self) -> list[StageCost]:
        """Cost log entries of the first run's own scoring, without those of the selectors it depends on."""
        config = self.runner.config(BASE)
        entries = RunFolder.of(config).cost_log.read()
        return [e for e in entries if e.stage == "score" and e.selector == config.selector.shown]

    def determinism(self) -> Violations:
        self.runner.run("again")
        yield from self._same_table(
            "again", "the same run gave another table", "use context.seed for random numbers and keep no state"
        )

    def seed(self) -> Violations:
        cls = self.runner.cls
        if cls.stochastic:
            return
        self.runner.run("seed", {"seed": self.runner.config(BASE).seed + 1})
        both = zip(self.table, self.runner.rows("seed"), strict=True)
        pairs = [(one["score"], other["score"]) for one, other in both if one["state"] == other["state"] == "ok"]
        ones, others = (np.array(column, dtype=float) for column in zip(*pairs, strict=True))
        if (ones == others).all() or (
            np.ptp(ones) > 0 and np.ptp(others) > 0 and spearmanr(ones, others).statistic >= AGREEING
        ):
            return
        yield "scores follow the seed; set stochastic = True, so that a benchmark scores again for every seed"

    def invariance(self) -> Violations:
        other_batches = {"compute.tokens_per_batch": 100, "compute.shard_size": 7}
        reversed_pool = {"pool.path": str(self.runner.pools.reversed)}
        self.runner.run("both", other_batches | reversed_pool)
        if first_difference(self.table, self.runner.rows("both"), self.tolerance) is None:
            return
        fix = "a score may only depend on its own sample"
        self.runner.run("batches", other_batches)
        yield from self._same_table("batches", "other batches gave another table", fix)
        self.runner.run("order", reversed_pool)
        yield from self._same_table("order", "the pool in reverse gave another table", fix)

    def resume(self) -> Violations:
        def interrupt(batch: Batch) -> Batch:
            if len(self.runner.parts("interrupted")) >= 2:
                raise Interrupted
            return batch

        try:
            self.runner.run("interrupted", before_score=interrupt)
            yield "score catches BaseException, so Ctrl-C does not stop a run; catch Exception at most"
            return
        except Interrupted:
            pass
        written = self.runner.parts("interrupted")
        self.runner.run("interrupted")
        resumed = self.runner.parts("interrupted")
        if any(resumed.get(path) != time for path, time in written.items()):
            yield "finished shards were scored again"
        fix = "keep no state from one batch to the next"
        yield from self._same_table("interrupted", "the resumed run gave another table", fix)

    def failure(self) -> Violations:
        victim = self._scored_id(1 / 2)

        def fail(batch: Batch) -> Batch:
            if any(sample.id == victim for sample in batch.samples):
                raise ArithmeticError("raised by check_selector")
            return batch

        selection = self.runner.run("failing", before_score=fail)
        yield from self._all_accounted_for(selection)
        fix = "score must give the same result for a sample alone as in a batch, and may be called again for a sample"
        yield from self._same_table("failing", "the failure of one sample changed others", fix, {victim})

    def not_a_number(self) -> Violations:
        victim = self._scored_id(1 / 3)
        selection = self.runner.run("nan", before_score=lambda batch: _with_nan(batch, victim))
        yield from self._all_accounted_for(selection)
        fix = "no sample of a batch may influence another's score"
        yield from self._same_table("nan", "NaN in one sample changed others", fix, {victim})
        before, after = (next(r for r in rows if r["id"] == victim) for rows in (self.table, self.runner.rows("nan")))
        if after["state"] == "ok" and first_difference([before], [after], self.tolerance) is not None:
            yield (
                f"record {victim!r} got the score {after['score']} although the proxy returned NaN; return NaN, "
                "or a `failure`, for such a sample"
            )

    def selection_options(self) -> Violations:
        names = self.runner.cls.selection_options
        if not names:
            return
        read: set[str] = set()
        self.runner.run("watched", watch_options=lambda options: _watched(options, {*names}, read))
        for name in sorted(read):
            yield f"score reads {name!r}, and changing it does not score again; take it out of selection_options"

    def select(self) -> Violations:
        usable = sum(row["state"] == "ok" for row in self.table)
        config = self.runner.config(BASE)
        tokens = count_tokens(config, open_pool(config.pool, "pool"), np.arange(len(self.table)))
        usable_tokens = int(tokens[[row["position"] for row in self.table if row["state"] == "ok"]].sum())
        budgets = (
            (Budget(count=pools.RECORDS), usable),
            (Budget(fraction=0.5), round(usable / 2)),
            (Budget(count=1), 1),
            (Budget(tokens=usable_tokens // 2), usable),
            (Budget(fraction=0.5, stratify_by="task"), round(usable / 2)),
        )
        for budget, limit in budgets:
            first, second = (self.runner.run(BASE, {"budget": budget}).kept.tolist() for _ in range(2))
            if first != second:
                yield f"with {budget.label} the same table gave two selections; use a fixed seed"
            if self.runner.cls.ignores_budget:
                if budget.stratify_by is None and first != self.kept:
                    yield f"with {budget.label} it selects other records than with 25%; set ignores_budget to False"
                continue
            if len(first) > limit:
                yield f"with {budget.label} it selects {len(first)} of {usable} samples; use budget.size(len(scores))"
            if budget.stratify_by is not None:
                yield from self._shares(first, budget)
            if budget.tokens is not None and tokens[first].sum() > budget.tokens:
                yield f"with {budget.label} it selects {tokens[first].sum()} tokens; add up scores.tokens"
        if len(self._score_costs()) != 1:
            yield "selecting with another budget scored the pool again"

    def _shares(self, kept: list[int], budget: Budget) -> Violations:
        scored = [row for row in self.table if row["state"] == "ok"]
        strata = {row["position"]: dict(row["tags"])[str(budget.stratify_by)] for row in scored}
        shares = budget.shares(Counter(strata.values()))
        for stratum, count in sorted(Counter(strata[position] for position in kept).items()):
            share = shares[stratum].count if stratum in shares else 0
            if count > (share or 0):
                yield (
                    f"with {budget.label} it selects {count} samples of {budget.stratify_by} {stratum!r}, whose share "
                    f"is {share}; set handles_strata to False, or share the budget with select_per_stratum"
                )
                return

    def nothing_usable(self) -> Violations:
        try:
            selection = self.runner.run("nothing", {"pool.path": str(self.runner.pools.unusable)})
            yield f"it selects {len(selection.kept)} records that cannot be used"
        except DataError as error:
            if "no record is kept" not in str(error):
                raise
        reasons = [row["reason"] for row in self.runner.rows("nothing")]
        if reasons != ["empty_answer"] * pools.UNUSABLE:
            yield f"all records should be rejected as empty_answer; the reasons are {reasons}"

    def no_anchors(self) -> Violations:
        try:
            self.runner.run("without", {"anchors.path": None, "anchors.group": None})
        except OstlightError as error:
            if "anchors" not in str(error):
                yield f"the error should name anchors.path; it is: {error}; call context.require_anchors(NAME)"

    def ranks(self) -> Violations:
        problem = kill_and_resume(self.runner, "killed")
        if problem is not None:
            yield problem
            return
        fix = "setup runs on every rank and score on each rank's part of the pool: share nothing between samples"
        yield from self._same_table("killed", "killed and resumed on two ranks, it gave another table", fix)

    def _same_table(self, name: str, problem: str, fix: str, leave_out: set[str | None] | None = None) -> Violations:
        difference = first_difference(self.table, self.runner.rows(name), self.tolerance, leave_out)
        if difference is not None:
            yield f"{problem}: {difference}; {fix}"

    def _all_accounted_for(self, selection: Selection) -> Violations:
        kept, dropped, rejected = len(selection.kept), selection.dropped, sum(selection.rejected.values())
        if kept + dropped + rejected != pools.RECORDS or dropped < 0:
            yield f"{kept} kept, {dropped} dropped and {rejected} rejected do not add up to {pools.RECORDS} records"

    def _scored_id(self, fraction: float) -> str:
        """Id of the sample this far down the scored ones."""
        ids = [str(row["id"]) for row in self.table if row["state"] == "ok"]
        return ids[int(len(ids) * fraction)]


def _not_a_number(table: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Columns that hold NaN in the row of a scored sample, each with the first id."""
    seen = set()
    for row in table:
        for name, value in row.items():
            numbers = [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, float)]
            if row["state"] == "ok" and name not in seen and np.isnan(numbers).any():
                seen.add(name)
                yield name, row["id"]


def _watched(options: Any, names: set[str], read: set[str]) -> Any:
    """A copy of the options that adds those of ``names`` which are looked at to ``read``."""
    plain = type(options)

    def look(self: Any, name: str) -> Any:
        if name in names:
            read.add(name)
        return object.__getattribute__(self, name)

    watched = copy.copy(options)
    object.__setattr__(
        watched, "__class__", type(plain.__name__, (plain,), {"__getattribute__": look, "__slots__": ()})
    )
    return watched


def _with_nan(batch: Batch, victim: str) -> Batch:
    """The batch, with NaN for every floating-point number in one sample's encoding (its images)."""
    if batch.collator is None or all(sample.id != victim for sample in batch.samples):
        return batch
    encoded = [
        Encoded({k: v * torch.nan if v.is_floating_point() else v for k, v in e.inputs.items()}, e.labels)
        if sample.id == victim
        else e
        for sample, e in zip(batch.samples, batch.encoded, strict=True)
    ]
    return batch.collator.batch(batch.samples, encoded).to(batch.labels.device)


def _rejects_mapping(options: type, name: str) -> bool:
    try:
        bind(options, {name: {"wrong": "type"}}, where="selector.options")
    except ConfigError:
        return True
    return False

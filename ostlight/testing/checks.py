"""What every selector must hold to, one method a rule; each yields what is violated and the mend."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import yaml

from ostlight.config.bind import bind
from ostlight.config.budget import Budget
from ostlight.errors import ConfigError, DataError, OstlightError
from ostlight.models.batch import Batch
from ostlight.models.cost import StageCost
from ostlight.models.encode import Encoded
from ostlight.pipeline.inputs import open_pool
from ostlight.pipeline.run_folder import RunFolder
from ostlight.pipeline.select import Selection
from ostlight.pipeline.subset_selection import count_tokens
from ostlight.selection.selector import Selector
from ostlight.selection.usage import Usage
from ostlight.testing import pools
from ostlight.testing.compare import difference
from ostlight.testing.processes import kill_and_resume
from ostlight.testing.runs import Runs

BASE = "base"
Found = Iterator[str]


class Stopped(BaseException):
    """Ends a run from inside a selector, as Ctrl-C would."""


class Checks:
    """All rules, on runs of one class.

    Args:
        runs: of the class under test.
        tolerance: see ``check_selector``.
    """

    def __init__(self, runs: Runs, tolerance: float) -> None:
        self.runs, self.tolerance = runs, tolerance
        self.cause: BaseException | None = None

    def violations(self, here: bool = True, processes: bool = True) -> list[str]:
        """Everything that is violated; without a first run that works, only what is wrong with that.

        Args:
            here: whether to check the rules that this process can.
            processes: whether to check the rule that needs processes of its own.
        """
        found = [*self._tried("options", self.options), *self._tried("a run", self.run)]
        if found:
            return found
        self.table = self.runs.rows(BASE)
        rules: list[tuple[str, Callable[[], Found]]] = []
        if here:
            rules += [
                ("a second run", self.determinism),
                ("other batches and another order", self.invariance),
                ("a stopped run", self.resume),
                ("a sample that fails", self.failure),
                ("pick", self.pick),
                ("a pool without a usable record", self.nothing_usable),
                ("a run without anchors", self.no_anchors),
            ]
            if self.runs.cls.uses_proxy:
                rules.append(("a sample the proxy makes NaN of", self.not_a_number))
        if processes:
            rules.append(("a killed run and two ranks", self.ranks))
        return [violation for title, rule in rules for violation in self._tried(title, rule)]

    def _tried(self, title: str, rule: Callable[[], Found]) -> list[str]:
        found: list[str] = []
        try:
            found.extend(f"{title}: {violation}" for violation in rule())
        except Exception as error:  # whatever the selector raises is told with the rest
            self.cause = self.cause or error
            found.append(f"{title}: {type(error).__name__}: {error}")
        return found

    def options(self) -> Found:
        cls = self.runs.cls
        selector = self.runs.make()
        if not isinstance(getattr(selector, "options", None), cls.Options) or not hasattr(selector, "usage"):
            yield "self.options or self.usage is not there; call super().__init__(options) first in __init__"
            return
        plain = yaml.safe_load(yaml.safe_dump(dataclasses.asdict(selector.options)))
        if bind(cls.Options, plain) != selector.options:
            yield "self.options written as YAML reads back as something else; leave them as they come"
        if not _refused(cls.Options, "no_such_option"):
            yield "an option that does not exist is not refused; make Options a plain dataclass"
        for f in dataclasses.fields(cls.Options):
            if not isinstance(plain[f.name], dict) and not _refused(cls.Options, f.name):
                yield f"a mapping is taken for the option {f.name!r}; give it a type that says what it holds"

    def run(self) -> Found:
        selection = self.runs.select(BASE)
        table = self.runs.rows(BASE)
        self.kept = selection.kept.tolist()
        yield from self._accounted(selection, pools.RECORDS)
        for position, reason in ((pools.EMPTY_ANSWER, "empty_answer"), (pools.DOUBLE_ID, "duplicate_id")):
            if table[position]["reason"] != reason:
                yield f"record {position} should be set aside as {reason}; its reason is {table[position]['reason']!r}"
        failed = [row for row in table if row["reason"] == "selector_error"]
        if failed:
            yield (
                f"score failed on {len(failed)} of {len(table)} records, first on {failed[0]['id']!r}: "
                f"{failed[0]['detail']}; raise ostlight.errors.BadRecord(reason, detail) where a sample cannot be "
                "scored"
            )
        if all(row["state"] != "ok" for row in table):
            yield "no sample got a score"
        (entry,) = self._scored()
        together = entry.more.get("failed_together")
        if together:
            yield (
                f"score failed on {together['batches']} batches and on none of their samples alone: "
                f"{together['last']}; what one call leaves behind must serve the next (an async client lives in one "
                "event loop: keep an asyncio.Runner)"
            )
        spent = {f.name: getattr(entry, f.name) for f in dataclasses.fields(Usage)}
        if min(spent.values()) < 0:
            yield f"it spent less than nothing ({spent}); self.usage.add takes what was paid"

    def _scored(self) -> list[StageCost]:
        """CostLog lines of the selector's own scoring in the first run, not of those that scored for it."""
        config = self.runs.config(BASE)
        lines = RunFolder.of(config).cost_log.read()
        return [e for e in lines if e.stage == "score" and e.selector == config.selector.shown]

    def determinism(self) -> Found:
        self.runs.select("again")
        yield from self._same("again", "the same run gave another table", "draw with context.seed, and keep no state")

    def invariance(self) -> Found:
        other_batches = {"compute.tokens_per_batch": 100, "compute.shard_size": 7}
        backwards = {"pool.path": str(self.runs.pools.backwards)}
        self.runs.select("both", other_batches | backwards)
        if difference(self.table, self.runs.rows("both"), self.tolerance) is None:
            return
        alone = "a score may depend on its sample alone"
        self.runs.select("batches", other_batches)
        yield from self._same("batches", "other batches gave another table", alone)
        self.runs.select("order", backwards)
        yield from self._same("order", "the pool in reverse gave another table", alone)

    def resume(self) -> Found:
        scores = self.runs.folder / "stopped" / "scores"

        def stopping(selector: Selector) -> None:
            def score(batch: Batch, score: Callable[[Batch], Mapping[str, Any]] = selector.score) -> Mapping[str, Any]:
                if len(list(scores.glob("part-*.parquet"))) >= 2:
                    raise Stopped
                return score(batch)

            selector.score = score  # type: ignore[method-assign]

        try:
            self.runs.select("stopped", change=stopping)
            yield "score swallows BaseException, so Ctrl-C does not stop a run; catch Exception at most"
            return
        except Stopped:
            pass
        written = {p: p.stat().st_mtime_ns for p in scores.glob("part-*.parquet")}
        self.runs.select("stopped")
        if any(p.stat().st_mtime_ns != before for p, before in written.items()):
            yield "shards that were finished were scored again"
        yield from self._same(
            "stopped", "taken up again it gave another table", "keep nothing from one batch to the next"
        )

    def failure(self) -> Found:
        victim = self._scored_id(1, 2)

        def failing(selector: Selector) -> None:
            def score(batch: Batch, score: Callable[[Batch], Mapping[str, Any]] = selector.score) -> Mapping[str, Any]:
                if any(sample.id == victim for sample in batch.samples):
                    raise ArithmeticError("planted by check_selector")
                return score(batch)

            selector.score = score  # type: ignore[method-assign]

        selection = self.runs.select("failing", change=failing)
        yield from self._accounted(selection, pools.RECORDS)
        mend = "score must give the same for a sample alone as in a batch, and may be called again for a sample"
        yield from self._same("failing", "one sample's failure changed the others", mend, {victim})

    def not_a_number(self) -> Found:
        victim = self._scored_id(1, 3)

        def poisoning(selector: Selector) -> None:
            def score(batch: Batch, score: Callable[[Batch], Mapping[str, Any]] = selector.score) -> Mapping[str, Any]:
                return score(_poisoned(batch, victim))

            selector.score = score  # type: ignore[method-assign]

        selection = self.runs.select("poisoned", change=poisoning)
        yield from self._accounted(selection, pools.RECORDS)
        mend = "no sample of a batch may enter another's score"
        yield from self._same("poisoned", "one sample's NaN changed the others", mend, {victim})
        before, after = (
            next(r for r in rows if r["id"] == victim) for rows in (self.table, self.runs.rows("poisoned"))
        )
        if after["state"] == "ok" and difference([before], [after], self.tolerance) is not None:
            yield (
                f"record {victim!r} got the score {after['score']} from a proxy that gave NaN; let NaN through, "
                "or return a `failure` for it"
            )

    def pick(self) -> Found:
        usable = sum(row["state"] == "ok" for row in self.table)
        config = self.runs.config(BASE)
        tokens = count_tokens(config, open_pool(config.pool, "pool"), np.arange(len(self.table)))
        whole = int(tokens[[row["position"] for row in self.table if row["state"] == "ok"]].sum())
        budgets = (
            (Budget(count=pools.RECORDS), usable),
            (Budget(fraction=0.5), round(usable / 2)),
            (Budget(count=1), 1),
            (Budget(tokens=whole // 2), usable),
            (Budget(fraction=0.5, stratify_by="task"), round(usable / 2)),
        )
        for budget, most in budgets:
            first, second = (self.runs.select(BASE, {"budget": budget}).kept.tolist() for _ in range(2))
            if first != second:
                yield f"with {budget.label} the same table gave two picks; draw with a fixed seed"
            if self.runs.cls.ignores_budget:
                if budget.stratify_by is None and first != self.kept:
                    yield f"with {budget.label} it keeps other records than with 25%; set ignores_budget to False"
                continue
            if len(first) > most:
                yield f"with {budget.label} it keeps {len(first)} of {usable}; use budget.size(len(scores))"
            if budget.tokens is not None and tokens[first].sum() > budget.tokens:
                yield f"with {budget.label} it keeps {tokens[first].sum()} tokens; add up scores.tokens"
        if len(self._scored()) != 1:
            yield "another budget scored the pool anew"

    def nothing_usable(self) -> Found:
        try:
            selection = self.runs.select("nothing", {"pool.path": str(self.runs.pools.unreadable)})
            yield f"it keeps {len(selection.kept)} records that cannot be used"
        except DataError as error:
            if "no record is kept" not in str(error):
                raise
        aside = [row["reason"] for row in self.runs.rows("nothing")]
        if aside != ["empty_answer"] * pools.UNREADABLE:
            yield f"its records should be set aside for their empty answers; they are {aside}"

    def no_anchors(self) -> Found:
        try:
            self.runs.select("without", {"anchors.path": None, "anchors.group": None})
        except OstlightError as error:
            if "anchors" not in str(error):
                yield f"the error should name anchors.path, and says: {error}; call context.require_anchors(NAME)"

    def ranks(self) -> Found:
        outcome = kill_and_resume(self.runs, "killed")
        if not outcome.killed:
            yield f"a new process could not run it: {_last_line(outcome.said)}"
            return
        if not outcome.resumed:
            yield f"two ranks could not take it up: {_last_line(outcome.said)}"
            return
        if outcome.scored_again:
            yield "shards that were finished were scored again"
        mend = "setup runs on every rank, score on each rank's part of the pool: share nothing between samples"
        yield from self._same("killed", "killed and taken up by two ranks it gave another table", mend)

    def _same(self, name: str, what: str, mend: str, leave_out: set[str | None] | None = None) -> Found:
        told = difference(self.table, self.runs.rows(name), self.tolerance, leave_out)
        if told is not None:
            yield f"{what}: {told}; {mend}"

    def _accounted(self, selection: Selection, records: int) -> Found:
        kept, dropped, aside = len(selection.kept), selection.dropped, sum(selection.rejected.values())
        if kept + dropped + aside != records or dropped < 0:
            yield f"{kept} kept, {dropped} dropped and {aside} set aside are not the {records} records read"

    def _scored_id(self, part: int, of: int) -> str:
        ids = [row["id"] for row in self.table if row["state"] == "ok"]
        return ids[len(ids) * part // of]


def _poisoned(batch: Batch, victim: str) -> Batch:
    """The batch with NaN for every number of one sample's encoding (its pictures)."""
    if batch.collator is None or all(sample.id != victim for sample in batch.samples):
        return batch
    encoded = [
        Encoded({k: v * torch.nan if v.is_floating_point() else v for k, v in e.inputs.items()}, e.labels)
        if sample.id == victim
        else e
        for sample, e in zip(batch.samples, batch.encoded, strict=True)
    ]
    return batch.collator.batch(batch.samples, encoded).to(batch.labels.device)


def _refused(options: type, name: str) -> bool:
    try:
        bind(options, {name: {"wrong": "type"}}, where="selector.options")
    except ConfigError:
        return True
    return False


def _last_line(stderr: str) -> str:
    lines = [line for line in stderr.splitlines() if line.strip()]
    return lines[-1] if lines else "no word of why"

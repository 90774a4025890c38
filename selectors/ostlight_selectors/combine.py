"""Combines selectors: the mean of their ranks, what all of them admit, or a cascade."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Interval

from ostlight.config.budget import Budget
from ostlight.config.schema import SelectorChoice
from ostlight.errors import SelectorError
from ostlight.models.batch import Batch
from ostlight.pipeline import fingerprint
from ostlight.pipeline.scoring.rows import checked_columns
from ostlight.selection.admission import admitted_first, warn_of_filling
from ostlight.selection.context import ScoringContext
from ostlight.selection.planning import ProxyMemory
from ostlight.selection.pool_columns import PoolColumns
from ostlight.selection.registry import create, create_all
from ostlight.selection.scores import Scores, SelectionContext, rejections
from ostlight.selection.select_rows import select_rows
from ostlight.selection.selector import Selector
from ostlight_selectors.ost.filter import seeded_uniform

log = logging.getLogger("ostlight.selectors.combine")

ADMITTED = "admitted_by_part"
"""Column of an intersection: whether each part admits the sample."""
STAGE = "scored_by"
"""Column of a cascade: number of the last part that scored the sample."""


@dataclass
class Part:
    """One of the selectors combined.

    Attributes:
        name: a registered selector.
        options: its own.
        keep: share of the whole pool that it selects for the next part of a cascade (not for the last part), or admits
            to an intersection.
        threshold: lowest score that it admits to an intersection; without ``keep`` and ``threshold`` it admits whatever
            it would select without a budget.
    """

    name: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    keep: Annotated[float, Interval(gt=0, le=1)] | None = None
    threshold: float | None = None

    @property
    def admits(self) -> Budget:
        """The budget by which it admits samples to an intersection."""
        if self.keep is not None:
            return Budget(fraction=self.keep)
        return Budget(threshold=-math.inf if self.threshold is None else self.threshold)


class Combine(Selector):
    """Combines selectors by the mean or product of their ranks, by what all of them admit, or in a cascade.

    Every part has its own scores below the run folder (``dependencies/``) and its own entry in the cost log, and
    resumes by itself. ``rank_mean`` averages a sample's ranks over the parts, from 1 for the best to 0 for samples a
    part would never select; ``rank_product`` multiplies them, so that a sample must do well by every part. An
    ``intersection`` takes a random subset of the samples that every part admits: those within its ``keep`` or
    ``threshold``, or all that it would ever select (``ost`` with ``selection: filter``: whose step lowers the anchor
    loss). If they are too few, those that most parts admit fill the budget, by mean rank, and a warning says so. The
    score is the number of parts that admit the sample, plus its mean rank in [0, 1). In a ``cascade`` each part scores
    only what the earlier parts selected, so an expensive judge at the end costs little; the budget is filled in the
    last part's order. Where a part draws at random what it selects, a benchmark scores the combination again for every
    seed.
    """

    @dataclass
    class Options:
        """Attributes:
        how: ``rank_mean``, ``rank_product``, ``intersection`` or ``cascade``.
        of: the parts, at least two: ``{name: ost, options: {...}, keep: 0.5}``.
        then: order in which an intersection fills the budget: ``random`` (by the run's seed) or ``rank`` (mean rank
            over the parts); ``null`` is ``random``.
        """

        how: Literal["rank_mean", "rank_product", "intersection", "cascade"] = "rank_mean"
        of: list[Part] = field(default_factory=list)
        then: Literal["random", "rank"] | None = None

        def problems(self) -> Iterator[str]:
            """Too few parts, and shares that are missing, superfluous or larger than the one before."""
            if len(self.of) < 2:
                yield f"of names {len(self.of)} selectors; name at least two to combine"
                return
            if self.then is not None and self.how != "intersection":
                yield f"then belongs to an intersection; how is {self.how}"
            for k, part in enumerate(self.of):
                if part.threshold is not None and self.how != "intersection":
                    yield f"of[{k}].threshold belongs to an intersection; how is {self.how}"
                elif part.threshold is not None and part.keep is not None:
                    yield f"of[{k}] takes one of keep, threshold; got keep={part.keep}, threshold={part.threshold}"
            *shares, last = [part.keep for part in self.of]
            if self.how == "intersection":
                return
            if self.how != "cascade":
                if any(share is not None for share in [*shares, last]):
                    yield f"of: keep belongs to a cascade or an intersection; how is {self.how}"
                return
            if last is not None:
                yield f"of: the last part keeps what the budget says; drop its keep={last}"
            largest = 1.0
            for k, share in enumerate(shares):
                if share is None or share > largest:
                    yield f"of[{k}].keep must be a share of the pool that is at most {largest:g}; got {share}"
                largest = share or largest

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.parts = create_all(self.options.of, "selector.options.of")
        self.cascade, self.last = self.options.how == "cascade", self.parts[-1]
        self.intersection = self.options.how == "intersection"
        if self.cascade and self.last.dependencies():
            raise SelectorError(
                f"selector.options.of: the last part of a cascade cannot be {self.options.of[-1].name!r}, which reads "
                "scores of other selectors; put it first"
            )
        if len({part.needs_answers for part in self.parts}) > 1:
            raise SelectorError("selector.options.of: some parts score answers and some do without; they share no pool")
        # What a combination is depends on its parts: these are looked up on the instance.
        self.needs_answers = self.last.needs_answers  # type: ignore[misc]
        # What a part selects decides scores here, unless it is the last of a cascade, or a threshold leaves no draw.
        selecting = self.parts[:-1] if self.cascade else self.parts
        if self.intersection:
            pairs = zip(self.parts, self.options.of, strict=True)
            selecting = [part for part, settings in pairs if settings.keep is not None]
        draws = any(part.stochastic_selection for part in selecting)
        self.stochastic = draws or any(part.stochastic for part in self.parts)  # type: ignore[misc]
        self.draws = self.intersection and self.options.then != "rank"
        self.stochastic_selection = self.draws or any(part.stochastic_selection for part in self.parts)  # type: ignore[misc]
        self.needs_anchors = any(part.needs_anchors for part in self.parts)  # type: ignore[misc]
        self.uses_proxy = any(part.uses_proxy for part in self.parts)  # type: ignore[misc]
        self.retried_reasons = tuple(sorted({reason for part in self.parts for reason in part.retried_reasons}))  # type: ignore[misc]
        self.last.usage = self.usage

    def dependencies(self) -> list[SelectorChoice]:
        if not self.cascade:
            return [SelectorChoice(p.name, p.options, f"{k}-{p.name}") for k, p in enumerate(self.options.of, start=1)]
        earlier = self.options.of[:-1]
        if len(earlier) == 1:
            return [SelectorChoice(earlier[0].name, earlier[0].options, f"1-{earlier[0].name}")]
        parts = [dataclasses.asdict(part) for part in earlier]
        parts[-1]["keep"] = None
        return [SelectorChoice("combine", {"how": "cascade", "of": parts}, f"1-to-{len(parts)}")]

    def check_anchors(self, groups: Sequence[str]) -> None:
        for part in self.parts:
            part.check_anchors(groups)

    def check_budget(self, budget: Budget) -> None:
        if self.cascade:
            self.last.check_budget(budget)

    def fit_memory(self, proxy: ProxyMemory) -> None:
        """The last part of a cascade runs here; the others fit themselves, each in its own run."""
        if not self.cascade:
            return
        before = dataclasses.asdict(self.last.options)
        self.last.fit_memory(proxy)
        chosen = {n: value for n, value in dataclasses.asdict(self.last.options).items() if value != before[n]}
        if chosen:
            part = self.options.of[-1]
            self.options.of[-1] = dataclasses.replace(part, options=part.options | chosen)

    def tags_needed(self) -> dict[str, str]:
        parts = enumerate(self.parts)
        return {f"of[{k}].options.{option}": tag for k, part in parts for option, tag in part.tags_needed().items()}

    def trials_at_most(self, records: int, samples_per_step: int) -> tuple[int, int]:
        return self.last.trials_at_most(records, samples_per_step) if self.cascade else (0, 0)

    def fingerprints(self) -> dict[str, str]:
        if not self.cascade:
            return {}
        code = {"of the last part": fingerprint.of_class(type(self.last))}
        return code | {f"of the last part: {name}": value for name, value in self.last.fingerprints().items()}

    def setup(self, context: ScoringContext) -> None:
        self.failed = {p: error for table in context.dependencies.values() for p, error in rejections(table).items()}
        # Nothing is tried in a part, and what it notes is not kept: it only ranks, or selects for the next part.
        within = SelectionContext(
            None, lambda: context.groups, lambda name, value: None, context.seed, context.group_tag
        )
        tables = [Scores(context.dependencies[choice.shown], within) for choice in self.dependencies()]
        # What one part gives no score for is never kept, and must not move the ranks and shares of the others.
        usable = [np.array([p not in self.failed for p in table.positions.tolist()], dtype=bool) for table in tables]
        tables = [table.take(np.flatnonzero(rows)) for table, rows in zip(tables, usable, strict=True)]
        if not self.cascade:
            self.columns = self._pool_columns(tables)
            return
        (choice,), (scores,) = self.dependencies(), tables
        share = Budget(fraction=self.options.of[-2].keep)
        rows = select_rows(create(choice.name, choice.options), scores, share)
        self.selected = set(scores.positions[rows].tolist())
        reached = scores.column(STAGE) if STAGE in scores else np.ones(len(scores), dtype=int)
        self.earlier = {
            p: (float(s), int(k)) for p, s, k in zip(scores.positions.tolist(), scores.score, reached, strict=True)
        }
        log.info(f"cascade: {self.options.of[-1].name} scores {len(self.selected):,} of {len(scores):,} samples")
        self.last.setup(context)

    def score(self, batch: Batch) -> Mapping[str, Any]:
        return self._cascade_columns(batch) if self.cascade else self.columns.of(batch.samples)

    def teardown(self) -> None:
        if self.cascade:
            self.last.teardown()

    def _pool_columns(self, tables: Sequence[Scores]) -> PoolColumns:
        """Ranks and, of an intersection, admissions by each part, of the samples that every part scored."""
        scored = tables[0].positions.tolist()
        shape = len(scored), len(self.parts)
        ranks = [_ranks(part, scores) for part, scores in zip(self.parts, tables, strict=True)]
        places = np.array([[of[p] for of in ranks] for p in scored], dtype=np.float64).reshape(shape)
        if not self.intersection:
            combined = places.mean(1) if self.options.how == "rank_mean" else places.prod(1)
            return PoolColumns(np.array(scored), {"score": combined, "place_by_part": places}, self.failed)
        admitted = np.empty(shape, dtype=bool)
        for k, (part, settings, scores) in enumerate(zip(self.parts, self.options.of, tables, strict=True)):
            try:
                rows = select_rows(part, scores, settings.admits)
            except SelectorError as error:  # some cannot say whom they admit without a size
                raise SelectorError(f"selector.options.of[{k}]: {error}; or give the part a share, keep") from error
            of_part = set(scores.positions[rows].tolist())
            admitted[:, k] = [p in of_part for p in scored]
            log.info(f"intersection: {settings.name} admits {admitted[:, k].sum():,} of {len(scored):,} samples")
        log.info(f"intersection: all admit {admitted.all(1).sum():,} of {len(scored):,} samples")
        combined = admitted.sum(1) + places.mean(1) * len(scored) / (len(scored) + 1)
        columns = {"score": combined, ADMITTED: admitted, "place_by_part": places}
        return PoolColumns(np.array(scored), columns, self.failed)

    def _cascade_columns(self, batch: Batch) -> dict[str, Any]:
        positions = [sample.position for sample in batch.samples]
        rows = [k for k, p in enumerate(positions) if p in self.selected]
        earlier = [self.earlier.get(p, (float("nan"), 0)) for p in positions]
        columns: dict[str, list[Any]] = {"score": [s for s, _ in earlier], STAGE: [k for _, k in earlier]}
        columns["failure"] = [self.failed.get(p) for p in positions]
        if rows:
            part = batch.rows(rows)
            for name, values in checked_columns(self.last.score(part), len(part), type(self.last).__name__).items():
                column = columns.setdefault(name, [None] * len(positions))
                for row, value in zip(rows, values, strict=True):
                    column[row] = value
            for row in rows:
                columns[STAGE][row] = len(self.parts)
        return columns

    def select(self, scores: Scores, budget: Budget) -> np.ndarray:
        if self.intersection:
            return self._select_admitted(scores, budget)
        if not self.cascade:
            return budget.top(scores)
        rows = np.flatnonzero(scores.column(STAGE) == len(self.parts))
        if budget.threshold is None and budget.tokens is None:
            wanted = budget.size(len(scores))
            budget = Budget(count=wanted)
            if len(rows) < wanted:
                log.warning(
                    f"cascade: the budget asks for {wanted:,} of {len(scores):,} samples, and {len(rows):,} of them "
                    "reached the last part; raise the keep of those before it"
                )
        if not len(rows):
            return rows
        return rows[np.asarray(self.last.select(scores.take(rows), budget), dtype=np.int64)]

    def _select_admitted(self, scores: Scores, budget: Budget) -> np.ndarray:
        """Rows that all parts admit; then, if they are too few, those that come closest, which is told."""
        by_score = np.lexsort((scores.positions, -scores.score))
        if budget.threshold is not None:
            return budget.within(scores, by_score)
        admitted = np.asarray(scores.column(ADMITTED).all(1))
        order = np.argsort(seeded_uniform(scores), kind="stable") if self.draws else by_score
        selected = budget.within(scores, admitted_first(admitted, order, by_score))
        warn_of_filling(log, "intersection", selected, admitted, " by all parts")
        return selected


def _ranks(part: Selector, scores: Scores) -> dict[int, float]:
    """By position: 1 for the best, down by equal steps; 0 for samples the part would never select.

    Samples of equal score get the mean of their ranks, so the pool's order does not matter.
    """
    rows = select_rows(part, scores, Budget(fraction=1.0))
    _, tie = np.unique(scores.score[rows], return_inverse=True)
    steps = np.bincount(tie, np.arange(len(rows))) / np.bincount(tie)
    ranks = np.zeros(len(scores))
    ranks[rows] = 1 - steps[tie] / max(1, len(scores))
    return dict(zip(scores.positions.tolist(), ranks.tolist(), strict=True))

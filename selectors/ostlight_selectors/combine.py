"""Combines selectors: the mean of their ranks, or a cascade."""

from __future__ import annotations

import dataclasses
import logging
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
from ostlight.selection.context import ScoringContext
from ostlight.selection.registry import create, create_all
from ostlight.selection.scores import Scores, SelectionContext, rejections
from ostlight.selection.select_rows import select_rows
from ostlight.selection.selector import Selector

log = logging.getLogger("ostlight.selectors.combine")

STAGE = "scored_by"
"""Column of a cascade: number of the last part that scored the sample."""


@dataclass
class Part:
    """One of the selectors combined.

    Attributes:
        name: a registered selector.
        options: its own.
        keep: share of the whole pool that it selects for the next part of a cascade; not for the last part.
    """

    name: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    keep: Annotated[float, Interval(gt=0, le=1)] | None = None


class Combine(Selector):
    """Combines selectors by the mean or product of their ranks, or in a cascade, each scoring what the last selected.

    Every part has its own scores below the run folder (``dependencies/``) and its own entry in the cost log, and
    resumes by itself. ``rank_mean`` averages a sample's ranks over the parts, from 1 for the best to 0 for samples a
    part would never select; ``rank_product`` multiplies them, so that a sample must do well by every part. In a
    ``cascade`` each part scores only what the earlier parts selected, so an expensive
    judge at the end costs little; the budget is filled in the last part's order. Where a part draws at random what it
    selects, a benchmark scores the combination again for every seed.
    """

    @dataclass
    class Options:
        """Attributes:
        how: ``rank_mean``, ``rank_product`` or ``cascade``.
        of: the parts, at least two: ``{name: ost, options: {...}, keep: 0.5}``.
        """

        how: Literal["rank_mean", "rank_product", "cascade"] = "rank_mean"
        of: list[Part] = field(default_factory=list)

        def problems(self) -> Iterator[str]:
            """Too few parts, and shares that are missing, superfluous or larger than the one before."""
            if len(self.of) < 2:
                yield f"of names {len(self.of)} selectors; name at least two to combine"
                return
            *shares, last = [part.keep for part in self.of]
            if self.how != "cascade":
                if any(share is not None for share in [*shares, last]):
                    yield f"of: keep belongs to a cascade; how is {self.how}"
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
        if self.cascade and self.last.dependencies():
            raise SelectorError(
                f"selector.options.of: the last part of a cascade cannot be {self.options.of[-1].name!r}, which reads "
                "scores of other selectors; put it first"
            )
        if len({part.needs_answers for part in self.parts}) > 1:
            raise SelectorError("selector.options.of: some parts score answers and some do without; they share no pool")
        # What a combination is depends on its parts: these are looked up on the instance.
        self.needs_answers = self.last.needs_answers  # type: ignore[misc]
        # What a part selects decides scores here, unless it is the last of a cascade.
        selecting = self.parts[:-1] if self.cascade else self.parts
        draws = any(part.stochastic_selection for part in selecting)
        self.stochastic = draws or any(part.stochastic for part in self.parts)  # type: ignore[misc]
        self.stochastic_selection = any(part.stochastic_selection for part in self.parts)  # type: ignore[misc]
        self.needs_anchors = any(part.needs_anchors for part in self.parts)  # type: ignore[misc]
        self.uses_proxy = any(part.uses_proxy for part in self.parts)  # type: ignore[misc]
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

    def tags_needed(self) -> dict[str, str]:
        parts = enumerate(self.parts)
        return {f"of[{k}].options.{option}": tag for k, part in parts for option, tag in part.tags_needed().items()}

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
        if not self.cascade:
            ranks = [_ranks(part, scores) for part, scores in zip(self.parts, tables, strict=True)]
            self.ranks = {p: [of[p] for of in ranks] for p in ranks[0] if p not in self.failed}
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
        positions = [sample.position for sample in batch.samples]
        return self._cascade_columns(batch, positions) if self.cascade else self._rank_columns(positions)

    def teardown(self) -> None:
        if self.cascade:
            self.last.teardown()

    def _rank_columns(self, positions: Sequence[int]) -> dict[str, Any]:
        ranks = [self.ranks.get(p, [float("nan")] * len(self.parts)) for p in positions]
        failures = [self.failed.get(p) for p in positions]
        combined = np.mean if self.options.how == "rank_mean" else np.prod
        return {"score": [float(combined(of)) for of in ranks], "place_by_part": ranks, "failure": failures}

    def _cascade_columns(self, batch: Batch, positions: Sequence[int]) -> dict[str, Any]:
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
        if not self.cascade:
            return budget.top(scores)
        rows = np.flatnonzero(scores.column(STAGE) == len(self.parts))
        if not len(rows):
            return rows
        if budget.threshold is None and budget.tokens is None:
            budget = Budget(count=budget.size(len(scores)))
        return rows[np.asarray(self.last.select(scores.take(rows), budget), dtype=np.int64)]


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

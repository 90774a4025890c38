"""Tries the subsets of several selectors on the proxy and keeps the one that trains it best."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from ostlight.config.budget import Budget
from ostlight.config.schema import Count, SelectorChoice
from ostlight.errors import DivergedError, SelectorError
from ostlight.models.batch import Batch
from ostlight.models.cost_estimate import duration
from ostlight.pipeline import fingerprint
from ostlight.progress import phase
from ostlight.selection.context import ScoringContext
from ostlight.selection.metric_selector import MetricSelector
from ostlight.selection.notes import UTILITY
from ostlight.selection.registry import create_all
from ostlight.selection.scores import FIXED_NAMES, Scores, rejections
from ostlight.selection.select_rows import select_rows
from ostlight.selection.selector import Selector
from ostlight.selection.strata import COLUMNS_OF, Strata, select_from

log = logging.getLogger("ostlight.selectors.best_of")

STEPS, FEWEST_STEPS = 100, 25
"""Of a trial, where the options name none: fewer on small pools."""

WORSE = 3.0
"""Standard errors by which a group has to be worse off for its candidate to be refused."""


def default_candidates() -> list[SelectorChoice]:
    """A random subset of what ``ost`` admits, with natural and plain gradients, the ranking by utility, a random
    subset, low loss, and the lowest losses among the admitted."""
    return [
        SelectorChoice("ost", label="filter"),
        SelectorChoice("ost", {"step": "sgd"}, "filter, sgd"),
        SelectorChoice("ost", {"selection": "top"}, "top"),
        SelectorChoice("random"),
        SelectorChoice("loss", label="low loss"),
        SelectorChoice("ost", {"then": "-loss"}, "filter, low loss"),
    ]


def _can_refuse(candidates: Sequence[SelectorChoice], repeats: int) -> bool:
    """Whether there is a random subset to compare groups with, and the noise of a trial."""
    return repeats > 1 and any(choice.name == "random" for choice in candidates)


@dataclass(frozen=True)
class Source:
    """Where a candidate's scores come from.

    Attributes:
        dependency: label of the selector that scores for it.
        metric: column of that selector's table that the candidate ranks by; ``None`` where it is the score.
    """

    dependency: str
    metric: str | None = None


class BestOf(Selector):
    """Of the subsets that several selectors choose, the one that trains the proxy best in a brief trial.

    The ranking of a score is the best subset of some pools and a poor one of others (docs/explanation/sets.md). So
    every candidate selects its subset, the base checkpoint is fine-tuned on each for a few steps, and the candidate
    after which the loss on the trusted samples is lowest is kept. The trusted samples are the development set, or
    the anchors where there is none. Trials cost the same for a pool of any size.

    The score table holds the first candidate's score and columns, and those of the other selectors as
    ``DEPENDENCY.COLUMN``. Nothing is tried, and the first candidate's rows are kept, where a threshold fixes the
    subset, where all samples are kept, in an earlier part of a cascade, or outside a run. Where a candidate draws at
    random what it selects, a benchmark selects again for every seed, trials included.
    """

    uses_proxy: ClassVar[bool] = True
    handles_strata: ClassVar[bool] = True
    selection_options: ClassVar[tuple[str, ...]] = ("candidates", "steps", "repeats", "rule", "refuse_worse_groups")
    check_options: ClassVar[Mapping[str, Any]] = {
        "steps": 2,
        "candidates": [
            {"name": "ost", "options": {"estimator": "first_order", "parameters": "head"}},
            {"name": "random"},
            {"name": "loss"},
        ],
    }

    @dataclass
    class Options:
        """Attributes:
        candidates: the selectors whose subsets are tried, ``{name: ost, options: {...}, label: filter}``. By default
            ``ost`` with ``selection: filter`` (with ``step: kfac``, with ``step: sgd``, and taking the lowest losses
            among the admitted), with ``selection: top``, ``random`` and low ``loss``.
        steps: optimiser steps of a trial. ``null`` for 100, and for fewer, down to 25, on pools so small that trials
            would take longer than scoring; the log says so.
        repeats: trials of each subset, in different orders of its samples; their spread is the noise of a trial.
        rule: which subset is kept: ``one_standard_error`` (the first candidate whose mean log loss is within one
            standard error of the lowest) or ``lowest``.
        refuse_worse_groups: whether a candidate is refused after which the loss of some group of trusted samples is
            higher than after the candidate ``random``, by more than three standard errors and by more nats than the
            mean over all is lower: a mean hides one task that is forgotten. Groups are by the tag ``anchors.group``, or
            else ``evaluation.by``. ``null`` refuses where there are groups, a candidate ``random`` and repeats.
        """

        candidates: list[SelectorChoice] = field(default_factory=default_candidates)
        steps: Count | None = None
        repeats: Count = 2
        rule: Literal["one_standard_error", "lowest"] = "one_standard_error"
        refuse_worse_groups: bool | None = None

        def problems(self) -> Iterator[str]:
            """Too few candidates or repeats, and labels that two candidates share."""
            labels = [choice.shown for choice in self.candidates]
            if len(labels) < 2:
                yield f"candidates names {len(labels)} selectors; name at least two to try"
            for label in sorted({label for label in labels if labels.count(label) > 1}):
                yield f"candidates: two are called {label!r}; give one a label of its own"
            if self.repeats < 2 and self.rule == "one_standard_error":
                yield "repeats must be at least 2 with rule=one_standard_error, which needs the noise of a trial"
            if self.refuse_worse_groups and not _can_refuse(self.candidates, self.repeats):
                yield "refuse_worse_groups compares with a candidate random, over repeats of at least 2; add them"

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.candidates = create_all(self.options.candidates, "selector.options.candidates")
        for choice, candidate in zip(self.options.candidates, self.candidates, strict=True):
            if not candidate.needs_answers:
                raise SelectorError(
                    f"selector.options.candidates: {choice.shown!r} selects samples without answers, on which nothing "
                    "can be trained; leave it out"
                )
            candidate.usage = self.usage
        self._dependencies, self.sources = _resolve(self.options.candidates, self.candidates)
        # A dependency that asks the proxy costs about a training step for each record.
        dependencies = create_all(self._dependencies, "selector.options.candidates")
        self._passes = max(1, sum(dependency.uses_proxy for dependency in dependencies))
        # Random candidates behind the first use the run's seed alone: they change no score that is shown.
        self.stochastic = self.candidates[0].stochastic  # type: ignore[misc]
        self.stochastic_selection = any(one.stochastic_selection for one in self.candidates)  # type: ignore[misc]
        self.needs_anchors = any(candidate.needs_anchors for candidate in self.candidates)  # type: ignore[misc]
        reasons = {reason for candidate in self.candidates for reason in candidate.retried_reasons}
        self.retried_reasons = tuple(sorted(reasons))  # type: ignore[misc]

    def dependencies(self) -> list[SelectorChoice]:
        return self._dependencies

    def check_anchors(self, groups: Sequence[str]) -> None:
        for candidate in self.candidates:
            candidate.check_anchors(groups)

    def check_budget(self, budget: Budget) -> None:
        """One candidate that stores what the strata are found by is enough."""
        checking = [one for one in self.candidates if type(one).check_budget is not Selector.check_budget]
        refusals = []
        for candidate in checking:
            try:
                candidate.check_budget(budget)
            except SelectorError as refusal:
                refusals.append(refusal)
        if refusals and len(refusals) == len(checking):
            raise refusals[0]

    def tags_needed(self) -> dict[str, str]:
        return {
            f"candidates[{k}].options.{option}": tag
            for k, candidate in enumerate(self.candidates)
            for option, tag in candidate.tags_needed().items()
        }

    def fingerprints(self) -> dict[str, str]:
        first = dataclasses.asdict(self.sources[0])
        if self.sources[0].metric is not None:
            first["prefer"] = self.candidates[0].options.prefer
        return {"the first of candidates": fingerprint.of_values(first)}

    def setup(self, context: ScoringContext) -> None:
        self.tables = {choice.shown: context.dependencies[choice.shown] for choice in self._dependencies}
        self.rejections = {p: error for table in self.tables.values() for p, error in rejections(table).items()}
        first = Scores(self.tables[self.sources[0].dependency])
        first = self._view(0, first) if len(first) else first
        self.first_scores = dict(zip(first.positions.tolist(), first.score.tolist(), strict=True))
        for name, value in context.dependency_notes.get(self.sources[0].dependency, {}).items():
            if self.sources[0].metric is None or name != UTILITY:
                context.note(name, value)

    def score(self, batch: Batch) -> dict[str, Any]:
        positions = [sample.position for sample in batch.samples]
        columns: dict[str, Any] = {}
        for label, table in self.tables.items():
            rows = table.take(pa.array(positions))  # a score table has a row for every position
            extra = {name: _values(rows[name]) for name in table.column_names if name not in FIXED_NAMES}
            score = np.array(rows["score"].to_numpy(), dtype=np.float64)
            if label != self.sources[0].dependency:
                extra = {f"{label}.{name}": values for name, values in extra.items()}
            columns |= extra | {f"{label}.score": score}
        columns["score"] = [self.first_scores.get(position, float("nan")) for position in positions]
        return columns | {"failure": [self.rejections.get(position) for position in positions]}

    def select(self, scores: Scores, budget: Budget) -> np.ndarray:
        first, _ = self._subset(0, scores, budget)
        if budget.threshold is not None or len(first) == len(scores):
            return first
        if not scores.in_run or scores.context.trial is None:
            return first
        repeats = self.options.repeats
        subsets, notes = {}, {}
        for k, choice in enumerate(self.options.candidates):
            rows, noted = self._subset(k, scores, budget)
            if len(rows):
                subsets[choice.shown] = rows
            if noted:
                notes[choice.shown] = noted
        if not subsets:
            return first
        distinct = len({np.sort(rows).tobytes() for rows in subsets.values()})
        per_step, seconds = scores.context.samples_per_step, scores.context.seconds_per_sample
        steps = self._steps(len(scores), distinct * repeats, per_step)
        about = f", about {duration(seconds * distinct * repeats * steps * per_step)}" if seconds else ""
        log.info(
            f"{distinct * repeats} trials on the proxy: {distinct} different subsets, {repeats} orders of each, "
            f"{steps} steps{about}"
        )
        if steps < (self.options.steps or STEPS):
            log.info(
                f"trials: {steps} steps instead of {STEPS}, which would take longer than scoring this pool; "
                f"selector.options.steps={STEPS} takes them all the same"
            )
        trials = _trials(scores, list(subsets.values()), repeats, steps)
        losses = np.array(trials, dtype=np.float64)
        refuses = self.options.refuse_worse_groups is not False and _can_refuse(self.options.candidates, repeats)
        refused = self._refused(list(subsets), trials) if refuses else {}
        for label, (group, times) in refused.items():
            log.info(
                f"refused: {label}: after it the loss of {group!r} is {times:.2f} times that after a random subset"
            )
        allowed = [label not in refused for label in subsets]
        selected = list(subsets)[first_of_the_best(np.where(np.c_[allowed], losses, np.inf), self.options.rule)]
        losses_by_label = dict(zip(subsets, losses.tolist(), strict=True))
        finite = {label: each if np.isfinite(each).all() else None for label, each in losses_by_label.items()}
        note = {"samples": len(subsets[selected]), "selected": selected, "losses": finite, "notes": notes}
        note |= {"refused": refused} if refused else {}
        note["rule"] = self.options.rule
        scores.context.note("best_of", note)
        means = {label: f"{label} {np.mean(each):.4g}" for label, each in losses_by_label.items()}
        log.info(
            f"selected: {means.pop(selected)}, mean loss on the trusted samples over {repeats} trials; "
            f"others: {', '.join(means.values())}"
        )
        return subsets[selected]

    def trials_at_most(self, records: int, samples_per_step: int) -> tuple[int, int]:
        trials = self.options.repeats * len(self.candidates)
        return trials, self._steps(records, trials, samples_per_step)

    def _steps(self, records: int, trials: int, samples_per_step: int) -> int:
        """Of each trial: as many as are asked for, or as scoring the records costs, if that is fewer."""
        if self.options.steps is not None:
            return int(self.options.steps)
        return max(FEWEST_STEPS, min(STEPS, self._passes * records // (trials * samples_per_step)))

    def _refused(self, labels: Sequence[str], trials: Sequence[Sequence[float]]) -> dict[str, tuple[str, float]]:
        """The group that is worst off after each refused candidate, and its loss over that after ``random``."""
        random = [choice.shown for choice in self.options.candidates if choice.name == "random"]
        baseline = next((k for k, label in enumerate(labels) if label in random), None)
        if baseline is None or not np.isfinite(trials[baseline]).all():
            label, why = (
                (random[0], "keeps no sample") if baseline is None else (labels[baseline], "diverged in a trial")
            )
            log.warning(f"refuse_worse_groups: {label}, which the others are compared with, {why}; nobody is refused")
            return {}
        groups = [[getattr(trial, "by_group", {}) for trial in each] for each in trials]
        if not groups[baseline][0]:
            level = logging.WARNING if self.options.refuse_worse_groups else logging.INFO
            log.log(level, "no candidate is refused for a worse group: name the trusted samples' tag in anchors.group")
            return {}
        gains = np.mean(trials[baseline]) - np.mean(trials, 1)
        found = {k: worst_group(each, groups[baseline], gains[k]) for k, each in enumerate(groups) if all(each)}
        return {labels[k]: worst for k, worst in found.items() if worst is not None and k != baseline}

    def _subset(self, k: int, scores: Scores, budget: Budget) -> tuple[np.ndarray, dict[str, Any]]:
        """Rows that a candidate keeps, and what it noted.

        Rows that were ranked by another score than the table's are put in the order of the table's, best first.
        """
        notes: dict[str, Any] = {}
        view = self._view(k, scores)
        if scores.in_run:
            view = view.with_context(dataclasses.replace(scores.context, note=notes.__setitem__))
        rows = self._select(k, view, scores, budget)
        if self.sources[k] != self.sources[0]:
            rows = rows[np.lexsort((scores.positions[rows], -scores.score[rows]))]
        return rows, notes

    def _select(self, k: int, view: Scores, scores: Scores, budget: Budget) -> np.ndarray:
        """As ``select_rows``; strata that need columns which the candidate's table lacks are another's."""
        candidate, tag = self.candidates[k], budget.stratify_by
        needed = COLUMNS_OF.get(tag or "", ())
        if tag is None or all(name in view for name in needed):
            return select_rows(candidate, view, budget)
        views = (self._view(other, scores) for other in range(len(self.candidates)))
        strata = Strata.of(next((one for one in views if all(name in one for name in needed)), scores), tag)
        return select_from(strata, view, budget, lambda part, share: select_rows(candidate, part, share))

    def _view(self, k: int, scores: Scores) -> Scores:
        """The scores as the candidate's own table has them, and no column of another's."""
        source, candidate = self.sources[k], self.candidates[k]
        view, prefix = scores, f"{source.dependency}."
        if source.dependency != self.sources[0].dependency:
            own = {n.removeprefix(prefix): scores.stored(n) for n in scores.names if n.startswith(prefix)}
            view = scores.with_fixed_columns().with_columns(own)
        if source.metric is None:
            return view
        assert isinstance(candidate, MetricSelector), "only metric selectors read another's column"
        return view.with_score(candidate.score_of(view.column(source.metric)))


def first_of_the_best(losses: np.ndarray, rule: str = "one_standard_error") -> int:
    """Index of the first candidate whose mean log loss is within one standard error of a difference from the lowest.

    Candidates are named in the order of preference, as in the one-standard-error rule (Breiman, Friedman, Olshen and
    Stone 1984, "Classification and Regression Trees", section 3.4.3). Noise grows with the loss, so logarithms are
    compared.

    Args:
        losses: ``[candidates, repeats]``, in nats; infinite where a trial diverged, whose candidate is never selected.
        rule: ``lowest`` allows no standard error.

    Raises:
        DivergedError: every candidate diverged in some trial.
    """
    logs = np.log(np.maximum(losses, np.finfo(np.float64).tiny))
    means, finite = logs.mean(1), np.isfinite(logs).all(1)
    if not finite.any():
        raise DivergedError(
            f"a trial of each of the {len(losses)} candidates diverged; lower the warm-up's learning rate "
            "(proxy.warmup.training.lr)"
        )
    noise = 0.0
    if rule == "one_standard_error":
        noise = np.sqrt(logs[finite].var(1, ddof=1).mean() * 2 / losses.shape[1])
    return int(np.flatnonzero(means <= means[finite].min() + noise)[0])


def worst_group(
    candidate: Sequence[Mapping[str, float]], baseline: Sequence[Mapping[str, float]], gain: float
) -> tuple[str, float] | None:
    """The group whose loss rises most above the baseline's, and its loss over the baseline's.

    ``None`` where no group's rise is larger than the gain, and beyond the noise: its mean log loss is above the
    baseline's by ``WORSE`` standard errors of a difference. The error is that of a group's log loss between repeats,
    pooled over groups and both subsets.

    Args:
        candidate: mean loss by group, in nats, for each repeat; likewise ``baseline``.
        gain: by how much the mean over all groups is lower than the baseline's, in nats.
    """
    names = sorted(baseline[0])
    ours, theirs = (
        np.log(np.maximum([[repeat[name] for name in names] for repeat in each], np.finfo(np.float64).tiny))
        for each in (candidate, baseline)
    )
    error = np.sqrt((ours.var(0, ddof=1).mean() + theirs.var(0, ddof=1).mean()) / len(ours))
    logs = ours.mean(0) - theirs.mean(0)
    rises = np.where(logs > WORSE * error, np.exp(ours).mean(0) - np.exp(theirs).mean(0), -np.inf)
    k = int(rises.argmax())
    return (names[k], float(np.exp(logs[k]))) if rises[k] > max(0.0, gain) else None


def _trials(scores: Scores, subsets: Sequence[np.ndarray], repeats: int, steps: int) -> list[list[float]]:
    """``[subsets][repeats]`` losses in nats; equal subsets are tried once in each repeat."""
    losses: dict[tuple[int, bytes], float] = {}
    keys = [np.sort(rows).tobytes() for rows in subsets]
    with phase("trials", len(set(keys)) * repeats, "trials") as done:
        for k in range(repeats):
            for key, rows in zip(keys, subsets, strict=True):
                if (k, key) not in losses:
                    losses[k, key] = scores.trial(rows, k, steps)
                    done.advance()
    return [[losses[k, key] for k in range(repeats)] for key in keys]


def _values(column: pa.ChunkedArray) -> list[Any]:
    """One value a row; lists as arrays, which keep their precision."""
    if pa.types.is_list(column.type) and not pa.types.is_nested(column.type.value_type):
        return [row.values.to_numpy(zero_copy_only=False) if row.is_valid else None for row in column]
    return [*column.to_pylist()]


def _resolve(
    choices: Sequence[SelectorChoice], candidates: Sequence[Selector]
) -> tuple[list[SelectorChoice], list[Source]]:
    """The selectors that score for the candidates, and the source of each candidate's scores.

    Candidates that differ in ``selection_options`` alone share one. A metric selector reads its column from another
    candidate's table where there is one that has it.
    """
    dependencies: dict[str, SelectorChoice] = {}
    sources = []
    for choice, candidate in zip(choices, candidates, strict=True):
        provider = _provider(choice, candidate, candidates)
        k = candidates.index(provider or candidate)
        name, left_out, defaults = choices[k].name, candidates[k].selection_options, candidates[k].Options()
        key = repr((name, {n: v for n, v in dataclasses.asdict(candidates[k].options).items() if n not in left_out}))
        if key not in dependencies:
            options = {n: v for n, v in dataclasses.asdict(candidates[k].options).items() if n not in left_out}
            options = {n: v for n, v in options.items() if n in choices[k].options or v != getattr(defaults, n)}
            dependencies[key] = SelectorChoice(name, options, f"{len(dependencies) + 1}-{name}")
        sources.append(Source(dependencies[key].shown, choice.name if provider else None))
    return list(dependencies.values()), sources


def _provider(choice: SelectorChoice, candidate: Selector, candidates: Sequence[Selector]) -> Selector | None:
    """The first candidate whose table holds what a metric selector with default options measures."""
    if not isinstance(candidate, MetricSelector) or candidate.column != choice.name:
        return None
    if dataclasses.replace(candidate.options, prefer=candidate.Options().prefer) != candidate.Options():
        return None
    return next((other for other in candidates if choice.name in other.metric_columns), None)

"""The contract between the framework and a selector. All of it is on this page."""

from __future__ import annotations

import dataclasses
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ostlight.config.budget import Budget
from ostlight.errors import SelectorError
from ostlight.selection.scores import Scores
from ostlight.selection.usage import Usage

if TYPE_CHECKING:
    from ostlight.config.schema import SelectorChoice
    from ostlight.models.batch import Batch
    from ostlight.selection.context import ScoringContext
    from ostlight.selection.planning import PlannedScoring, ProxyMemory, ScoringPlan


class Selector(ABC):
    """Scores every sample of a pool and selects some of them.

    Subclass it, write a docstring (its first line is what ``ostlight selectors`` shows) and ``score``. Sharding,
    resume, several devices, progress, quarantine and the cost log come from the framework. A class that breaks the
    contract is refused when it is defined.

    Attributes:
        options: an instance of the class's own ``Options``, filled from the YAML's ``selector.options``.
        usage: what this selector pays for beyond the proxy: ``self.usage.add(calls=1, price=...)`` while it scores or
            selects. The framework sums it over the ranks into the cost log; time and the proxy's work it measures.
        uses_proxy: whether batches come encoded for the proxy model (``batch.inputs``, ``batch.labels``) and ``setup``
            finds a proxy. Leave it off for selectors that only read the samples: they then cost no model.
        needs_anchors: whether it scores by the anchors; a run without any is then refused before its warm-up.
        needs_answers: whether a record without an answer is rejected. Where it is off, batches come encoded up to the
            question only (``Encoder.encode_prompt``), those of labelled samples too.
        scores_sharded: whether it takes no more of the proxy than losses and logits without gradients, so that it also
            scores one whose weights are sharded over the ranks (``compute.shard_proxy``).
        scores_utility: whether its score is a utility: by how many nats a training step on the sample lowers the loss
            on the anchors. The report then calls samples below 0 toxic, and says which sources help and hurt.
        stochastic: whether scores change with the seed by design; a benchmark then scores again for every seed.
        stochastic_selection: whether ``select`` depends on the run's seed (``scores.context.seed``); a benchmark then
            selects again for every seed.
        selection_options: options that only ``select`` reads; changing them selects again and does not score again.
        compute_options: options that say where and how a score is computed and leave it as it is (an address, a number
            of threads, a price list); changing them does not score again either.
        renamed_options: options of earlier versions and what replaced them: ``{"eta": "step_size"}``. A key with a
            value, ``"objective=sample"``, is for that value alone. ``registry.create`` refuses them with the new name.
        handles_strata: who splits the budget where ``budget.stratify_by`` is set. On: ``select`` is called once, with
            all rows and the budget as it is, and keeps to each stratum's share itself. Off: it is called once for each
            stratum, with that stratum's rows and its share of the budget (without ``stratify_by``).
        ignores_budget: whether ``select`` keeps the same whatever the budget; a benchmark then trains it once a seed.
        metric_columns: columns that hold what the metric selector of the same name measures with its default options:
            ``("loss",)``. A selector that needs them can read this one's table instead of scoring the pool again.
        check_options: options with which ``ostlight.testing.check_selector`` runs it where they are not given: smaller
            numbers than the defaults where those would make the check take minutes.
        retried_reasons: reasons for which it rejects a sample that may have passed by the next run (a server that did
            not answer); these samples are then scored again.
    """

    uses_proxy: ClassVar[bool] = False
    needs_anchors: ClassVar[bool] = False
    needs_answers: ClassVar[bool] = True
    scores_sharded: ClassVar[bool] = False
    scores_utility: ClassVar[bool] = False
    stochastic: ClassVar[bool] = False
    stochastic_selection: ClassVar[bool] = False
    handles_strata: ClassVar[bool] = False
    ignores_budget: ClassVar[bool] = False
    selection_options: ClassVar[tuple[str, ...]] = ()
    compute_options: ClassVar[tuple[str, ...]] = ()
    renamed_options: ClassVar[Mapping[str, str]] = {}
    metric_columns: ClassVar[tuple[str, ...]] = ()
    check_options: ClassVar[Mapping[str, Any]] = {}
    retried_reasons: ClassVar[tuple[str, ...]] = ()

    @dataclass
    class Options:
        """Fields with types and defaults; unknown keys and wrong types in the YAML are refused by name."""

    def __init__(self, options: Any = None) -> None:
        self.options: Any = options if options is not None else self.Options()
        self.usage = Usage()

    def setup(self, context: ScoringContext) -> None:  # noqa: B027 - optional, so not abstract
        """Called once on every rank that scores, before its first batch, with the proxy, the anchors and the seed."""

    def dependencies(self) -> Sequence[SelectorChoice]:
        """Selectors the pool is scored by first, each under its own label. By default none.

        ``setup`` finds their score tables in ``context.dependencies``, their notes in ``context.dependency_notes`` and
        the folders with what else they left in ``context.dependency_folders``, by label. A benchmark scores a
        dependency once for all selectors that need it.
        """
        return ()

    def fingerprints(self) -> dict[str, str]:
        """Fingerprints (``ostlight.pipeline.fingerprint``) of the files and model folders the options name, by option.

        Scores made from others are refused, as they are when an option's value changes.
        """
        return {}

    def tags_needed(self) -> Mapping[str, str]:
        """Tags of the pool that this selector reads, by the option that names each. By default none.

        A run whose pool has no such tag is refused before any work.
        """
        return {}

    def check_anchors(self, groups: Sequence[str]) -> None:  # noqa: B027 - optional, so not abstract
        """Called before any work: refuses anchors that do not serve the options.

        Args:
            groups: of each anchor; empty where there are none.

        Raises:
            SelectorError: says which option, and what it needs.
        """

    def check_budget(self, budget: Budget) -> None:  # noqa: B027 - optional, so not abstract
        """Called before any work: refuses a budget that the scores by these options will not serve.

        Raises:
            SelectorError: says what the budget needs, and which option gives it.
        """

    def trials_at_most(self, records: int, samples_per_step: int) -> tuple[int, int]:
        """How many trials ``select`` may run, and the steps of each, for what a run says before it starts. By default
        none.

        Args:
            records: of the pool.
            samples_per_step: of a trial.
        """
        return 0, 0

    def fit_memory(self, proxy: ProxyMemory) -> None:  # noqa: B027 - optional, so not abstract
        """Called before anything is loaded, for selectors with a proxy: refuses what cannot fit into memory, and sets
        those of ``options`` that are left to it. The options it sets are what scores are claimed with.

        Raises:
            SelectorError: what it needs does not fit; says what would.
        """

    def sharding_problem(self, groups: int, full: bool) -> str | None:
        """Why the options do not do for a proxy whose weights are sharded over the ranks, and what to set instead, as
        the predicate of a sentence about the selector; ``None``, the default, where they do. Asked before anything is
        loaded, where ``scores_sharded``.

        Args:
            groups: of the anchors; 1 where they have none.
            full: whether weights and passes are in float32 or wider.
        """
        return None

    def plan_scoring(self, scoring: PlannedScoring) -> ScoringPlan | None:
        """What scoring with the proxy will take, from shapes alone; asked by ``ostlight plan`` of a fresh instance.

        By default ``None``: the plan then has one pass of the proxy over each sample, forward or forward and backward.
        """
        return None

    @abstractmethod
    def score(self, batch: Batch) -> Mapping[str, Any]:
        """Score one batch.

        Returns:
            Columns, each with one value per sample of the batch, in its order: arrays, tensors or lists. ``score`` must
            be among them (higher is better); every other column is stored beside it. Of columns whose names begin with
            ``_`` only ``rescore`` is shown anything. A sample whose score is not
            finite is rejected; an optional column ``failure`` (a ``BadRecord`` or ``None``) says why. The result may
            depend on the sample alone, never on what else is in the batch.
        """

    def teardown(self) -> None:  # noqa: B027 - optional, so not abstract
        """Called once on every rank that was set up, after its last batch, or where scoring fails or is stopped."""

    def select(self, scores: Scores, budget: Budget) -> Sequence[int] | np.ndarray:
        """Rows of ``scores`` to keep, best first. By default those with the highest score.

        It sees the stored table alone, at least one row of it: a new budget is selected for by a fresh instance that
        was not set up and has scored nothing.
        """
        return budget.top(scores)

    def rescore(self, context: ScoringContext, parts: Iterable[Scores]) -> Iterator[Mapping[str, Any]]:
        """Scores for other anchors, from stored columns; called by ``ostlight rescore`` in place of ``setup`` and
        ``score``, once, on one process.

        Args:
            context: with the new anchors, and the proxy that scored.
            parts: the scored rows, hidden columns among them, a shard at a time.

        Returns:
            For each part, in order, columns as ``score`` returns them. They replace the selector's columns.

        Raises:
            SelectorError: this selector cannot, which is the default, or its options stored nothing to do it with.
        """
        raise SelectorError(
            f"{type(self).__name__} cannot score for other anchors from what it stored; run `ostlight select` with "
            "them and another name"
        )

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _refuse_malformed(cls)

    @classmethod
    def summary(cls) -> str:
        """First line of the docstring."""
        return (inspect.getdoc(cls) or "").split("\n", 1)[0]


RENAMED = {
    "pick": "select",
    "before": "dependencies",
    "inputs": "fingerprints",
    "seeded": "stochastic",
    "picks_within": "handles_strata",
    "pick_options": "selection_options",
    "spent": "usage",
}
"""Methods and class attributes of earlier versions, which would be ignored silently."""

SIGNATURES = {
    "score": ["self", "batch"],
    "setup": ["self", "context"],
    "teardown": ["self"],
    "select": ["self", "scores", "budget"],
    "rescore": ["self", "context", "parts"],
    "check_anchors": ["self", "groups"],
    "check_budget": ["self", "budget"],
    "fit_memory": ["self", "proxy"],
    "sharding_problem": ["self", "groups", "full"],
    "plan_scoring": ["self", "scoring"],
}

FLAGS = (
    "uses_proxy",
    "needs_anchors",
    "needs_answers",
    "scores_sharded",
    "scores_utility",
    "stochastic",
    "stochastic_selection",
    "handles_strata",
    "ignores_budget",
)


def _refuse_malformed(cls: type[Selector]) -> None:
    """Raises:
    SelectorError: the class breaks the contract; says what is wrong and how to fix it.
    """
    for problem, fix in (*_class_problems(cls), *_option_problems(cls)):
        raise SelectorError(f"selector class {cls.__module__}.{cls.__qualname__}: {problem}; {fix}")


def _class_problems(cls: type[Selector]) -> Iterator[tuple[str, str]]:
    """What is wrong with methods and flags, and how to fix it."""
    for old in cls.__dict__.keys() & RENAMED.keys():
        yield f"{old} is now {RENAMED[old]}", f"rename it to {RENAMED[old]}"
    if not cls.__dict__.get("__doc__"):
        yield "it has no docstring", "its first line is shown by `ostlight selectors`: say what the selector prefers"
    if cls.score is Selector.score:
        yield "score is missing", "define `def score(self, batch)` returning a dict with the key 'score'"
    for name, parameters in SIGNATURES.items():
        method, right = inspect.getattr_static(cls, name), f"define it as `def {name}({', '.join(parameters)})`"
        if not inspect.isfunction(method):
            yield f"{name} is a {type(method).__name__}", right
        elif len(inspect.signature(method).parameters) != len(parameters):
            yield f"{name} takes ({', '.join(inspect.signature(method).parameters)})", right
    for flag in FLAGS:
        if not isinstance(getattr(cls, flag), bool):
            yield f"{flag} is {getattr(cls, flag)!r}", "set it to True or False"


def _option_problems(cls: type[Selector]) -> Iterator[tuple[str, str]]:
    """What is wrong with ``Options``, and how to fix it."""
    if not (isinstance(cls.Options, type) and dataclasses.is_dataclass(cls.Options)):
        yield "Options is no dataclass", "write @dataclass above `class Options`"
        return
    fields = dataclasses.fields(cls.Options)
    names = {f.name for f in fields}
    for f in fields:
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            yield f"Options.{f.name} has no default", f"give it one: `{f.name}: {f.type} = ...`"
    for listed in ("selection_options", "compute_options", "check_options"):
        for name in set(getattr(cls, listed)) - names:
            yield f"{listed} names {name!r}, which is no option", "name fields of Options"
    for name, value in vars(cls.Options).items():
        if not (name.startswith("_") or name in names or callable(value)):
            yield f"Options.{name} has no type", f"annotate it: `{name}: int = ...`"
    try:
        OmegaConf.structured(cls.Options)
    except (OmegaConfBaseException, ValueError) as error:
        yield f"Options cannot be read from YAML: {error}", "use int, float, bool, str, enums, lists or dicts of them"

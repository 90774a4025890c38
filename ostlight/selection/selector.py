"""The contract between the framework and a selector. All of it is on this page."""

from __future__ import annotations

import dataclasses
import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
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


class Selector(ABC):
    """Scores every sample of a pool and picks some of them.

    Subclass it, write a docstring (its first line is what ``ostlight selectors`` shows) and ``score``. Sharding,
    resume, several devices, progress, quarantine and the cost cost log come from the framework. A class that breaks the
    contract is refused when it is created.

    Attributes:
        options: an instance of the class's own ``Options``, filled from the YAML's ``selector.options``.
        usage: what this selector pays for beyond the proxy: ``self.usage.add(calls=1, price=...)`` while it scores or
            picks. The framework sums it over the ranks into the cost log; time and the proxy's work it measures itself.
        uses_proxy: whether batches come encoded for the proxy model (``batch.inputs``, ``batch.labels``) and ``setup``
            finds a proxy. Leave it off for selectors that only read the samples: they then cost no model.
        needs_answers: whether a record without an answer is set aside. Where it is off, batches come encoded up to the
            question only (``Encoder.encode_prompt``), those of labelled samples too.
        stochastic: whether scores change with the seed by design; a benchmark then scores anew for every seed.
        selection_options: options that only ``select`` reads; changing them picks anew and does not score anew.
        compute_options: options that say where and how a score is computed and leave it as it is (an address, a number
            of threads, a price list); changing them does not score anew either.
        handles_strata: whether ``select`` itself sees to the shares of ``budget.stratify_by``; where it does not, it
            is called once for each kind of sample, with that kind's rows and its part of the budget.
        ignores_budget: whether ``select`` keeps the same whatever the budget; a benchmark then trains it once a seed.
    """

    uses_proxy: ClassVar[bool] = False
    needs_answers: ClassVar[bool] = True
    stochastic: ClassVar[bool] = False
    handles_strata: ClassVar[bool] = False
    ignores_budget: ClassVar[bool] = False
    selection_options: ClassVar[tuple[str, ...]] = ()
    compute_options: ClassVar[tuple[str, ...]] = ()

    @dataclass
    class Options:
        """Fields with types and defaults; unknown keys and wrong types in the YAML are refused by name."""

    def __init__(self, options: Any = None) -> None:
        self.options: Any = options if options is not None else self.Options()
        self.usage = Usage()

    def setup(self, context: ScoringContext) -> None:  # noqa: B027 - optional, so not abstract
        """Called once on every rank that scores, before its first batch, with the proxy, the anchors and the seed."""

    def dependencies(self) -> Sequence[SelectorChoice]:
        """Selectors the pool is scored by first, each under a label of its own; ``setup`` finds their score tables in
        ``context.dependencies``, by label. By default none."""
        return ()

    def fingerprints(self) -> dict[str, str]:
        """Fingerprints (``ostlight.pipeline.fingerprint``) of the files and model folders the options name, by option.

        Scores made from others are refused, as they are when an option's value changes.
        """
        return {}

    @abstractmethod
    def score(self, batch: Batch) -> Mapping[str, Any]:
        """Score one batch.

        Returns:
            Columns, each with one value per sample of the batch, in its order: arrays, tensors or lists. ``score`` must
            be among them (higher is better); every other column is kept as evidence. A sample whose score is not finite
            is set aside; an optional column ``failure`` (a ``BadRecord`` or ``None``) says why. The result may depend
            on the sample alone, never on what else is in the batch.
        """

    def teardown(self) -> None:  # noqa: B027 - optional, so not abstract
        """Called once on every rank that was set up, after its last batch, or where scoring fails or is stopped."""

    def select(self, scores: Scores, budget: Budget) -> Sequence[int] | np.ndarray:
        """Rows of ``scores`` to keep, best first. By default those with the highest score.

        It sees the stored table alone, at least one row of it: a new budget picks anew, from a fresh instance that was
        not set up and has scored nothing.
        """
        return budget.top(scores)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _refuse_malformed(cls)

    @classmethod
    def summary(cls) -> str:
        """First line of the docstring."""
        return (inspect.getdoc(cls) or "").split("\n", 1)[0]


def _refuse_malformed(cls: type[Selector]) -> None:
    """Says what is wrong with a class, and the mend.

    Raises:
        SelectorError: the class breaks the contract.
    """

    def refuse(what: str, mend: str) -> None:
        raise SelectorError(f"selector class {cls.__module__}.{cls.__qualname__}: {what}; {mend}")

    if not cls.__dict__.get("__doc__"):
        refuse("it has no docstring", "its first line is shown by `ostlight selectors`: say what the selector prefers")
    if cls.score is Selector.score:
        refuse("score is missing", "define `def score(self, batch)` returning a dict with the key 'score'")
    for name, parameters in (
        ("score", ["self", "batch"]),
        ("setup", ["self", "context"]),
        ("teardown", ["self"]),
        ("select", ["self", "scores", "budget"]),
    ):
        method = inspect.getattr_static(cls, name)
        if not inspect.isfunction(method):
            refuse(f"{name} is a {type(method).__name__}", f"define it as `def {name}({', '.join(parameters)})`")
        elif len(inspect.signature(method).parameters) != len(parameters):
            got = ", ".join(inspect.signature(method).parameters)
            refuse(f"{name} takes ({got})", f"define it as `def {name}({', '.join(parameters)})`")
    for flag in ("uses_proxy", "needs_answers", "stochastic", "handles_strata", "ignores_budget"):
        if not isinstance(getattr(cls, flag), bool):
            refuse(f"{flag} is {getattr(cls, flag)!r}", "set it to True or False")
    if not (isinstance(cls.Options, type) and dataclasses.is_dataclass(cls.Options)):
        refuse("Options is no dataclass", "write @dataclass above `class Options`")
    for f in dataclasses.fields(cls.Options):
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            refuse(f"Options.{f.name} has no default", f"give it one: `{f.name}: {f.type} = ...`")
    for listed in ("selection_options", "compute_options"):
        strange = [name for name in getattr(cls, listed) if name not in _field_names(cls.Options)]
        if strange:
            refuse(f"{listed} names {strange[0]!r}, which is no option", "name fields of Options")
    unannotated = [k for k in vars(cls.Options) if not k.startswith("_") and k not in _field_names(cls.Options)]
    unannotated = [k for k in unannotated if not callable(getattr(cls.Options, k))]
    if unannotated:
        refuse(f"Options.{unannotated[0]} has no type", f"annotate it: `{unannotated[0]}: int = ...`")
    try:
        OmegaConf.structured(cls.Options)
    except (OmegaConfBaseException, ValueError) as error:
        refuse(f"Options cannot be read from YAML: {error}", "use int, float, bool, str, enums, lists or dicts of them")


def _field_names(options: type) -> set[str]:
    return {f.name for f in dataclasses.fields(options)}

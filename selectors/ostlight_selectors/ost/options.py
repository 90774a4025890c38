"""Options of ``ost``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval

from ostlight.config.budget import GRADIENT_CLUSTER, Budget
from ostlight.config.schema import Count, Positive
from ostlight.errors import SelectorError

Estimator = Literal["projected", "exact", "first_order", "second_order", "finite_difference"]

WITH_PHI: tuple[Estimator, ...] = ("projected", "second_order")
STORED_BY: dict[str, tuple[Estimator, ...]] = {
    "alignment": ("first_order", "projected", "second_order", "finite_difference"),
    "cosine": ("first_order", "projected", "second_order"),
    "gradient_norm": ("first_order", "projected", "second_order", "exact"),
    "phi": WITH_PHI,
}
"""Columns that not every estimator stores."""

ONLY_WITH = {
    "rank": ("estimator", ("projected",)),
    "probes": ("estimator", ("second_order",)),
    "damping": ("step", ("kfac", "ekfac")),
    "then": ("selection", ("filter",)),
    "admit": ("selection", ("filter",)),
    "min_confidence": ("selection", ("filter",)),
    "temperature": ("selection", ("sample",)),
    "normalize": ("selection", ("round_robin",)),
    "set_step_size": ("selection", ("set",)),
    "set_batch_size": ("selection", ("set",)),
}
"""Options that only some choices of another option read."""


@dataclass
class OstOptions:
    """What is measured, and how samples are selected by it.

    Attributes:
        estimator: of the utility; ``null`` is first order by the cheapest way there is (``finite_difference``, or
            ``first_order`` where anchors have groups, ``utility_by_anchor`` is set or the weights are in half
            precision), and ``projected`` with ``selection=top`` or ``set``, which read sizes and not signs alone.
            ``projected`` (what the step does to the anchors' answers, from a few measured steps; about one
            training step per sample), ``exact`` (the step is taken; a pass over all anchors per sample),
            ``first_order`` (the inner product of the gradients), ``second_order`` (and sketched curvature) or
            ``finite_difference`` (first order from two forward passes: for any architecture, and with less memory).
        parameters: those the step changes: ``blocks``, ``last:N``, ``head``, ``all``, ``lora`` or a regular expression;
            ``auto`` is ``blocks``, or as many of the last ones as fit into memory.
        step: the step's shape: ``sgd`` (as in the paper), ``adam`` (second moments of the warm-up, frozen), ``kfac`` or
            ``ekfac`` (natural gradient; curvature of 300 pool samples). ``null`` is ``kfac``, and ``sgd`` with
            ``selection=top`` or ``set``.
        step_size: ``null`` makes the median simulated step as long as the median step of the warm-up.
        rank: measured directions of ``projected``; ``null`` is 32.
        probes: random curvature probes of ``second_order``; ``null`` is 64.
        damping: of ``kfac`` and ``ekfac``, a share of the mean eigenvalue; ``null`` is 0.1.
        utility_by_anchor: store each anchor's utility too: two bytes an anchor and sample.
        random_products: store that many products of each sample's gradient with random directions, a byte each, from
            which ``ostlight rescore`` scores for other anchors; 1024 is a good number with ``sgd``, 4096 with ``kfac``.
            ``null`` stores none.
        selection: ``filter`` (admit samples whose step lowers the anchor loss, then take those that ``then`` says: a
            random subset), ``top`` (the highest utilities, as in the paper), ``sample`` (at random, higher utilities
            more likely), ``round_robin`` (each anchor in turn its best sample) or ``set`` (the best set: what a
            mini-batch of it does, redundancy and noise counted; needs ``projected`` or ``second_order``).
        then: of ``filter``, the order among the admitted: ``random``, ``coverage`` (clusters of gradients in turn) or a
            column of the scores, highest first (``loss``), lowest first with a minus (``-loss``); ``null`` is
            ``random``.
        admit: of ``filter``, whose loss a step must lower: ``mean`` (of all anchors), ``own_group`` (of the anchors in
            the sample's group, by the tag ``anchors.group``) or ``no_group_hurt`` (of all, and no group's rises by more
            than that); ``null`` is ``mean``. Groups need another estimator than ``finite_difference``.
        min_confidence: of ``filter``: admits only samples whose utility is positive for at least this share of
            bootstrap draws of the anchors; needs ``utility_by_anchor``. ``null`` admits by the sign alone.
        temperature: of ``sample``: 0.1 is close to ``top``, 10 close to a uniform draw; ``null`` is 1.
        normalize: of ``round_robin``: utility over the length of the sample's gradient; ``null`` is true.
        set_step_size: of ``set``, in multiples of the step size that samples are scored with; a set bears longer steps
            than a sample. ``null`` is 10.
        set_batch_size: of the mini-batches of ``set``; ``null`` is 32.
        vector_storage: how the estimators' fixed vectors (one for each anchor group, and the directions or probes, the
            latter for each group; each as large as the parameters) are held: ``full``, ``bf16``, ``offload`` (the
            machine's memory) or ``split`` (over the ranks; the factors of ``kfac`` and ``ekfac`` with them). ``auto``
            is the first that fits of ``full``, ``split``, ``bf16`` and ``offload``, and if none does a lower ``rank``,
            where that is ``null``.
    """

    estimator: Estimator | None = None
    parameters: str = "blocks"
    step: Literal["sgd", "adam", "kfac", "ekfac"] | None = None
    step_size: Positive | None = None
    rank: Count | None = None
    probes: Count | None = None
    damping: Positive | None = None
    utility_by_anchor: bool = False
    random_products: Count | None = None
    selection: Literal["filter", "top", "sample", "round_robin", "set"] = "filter"
    then: str | None = None
    admit: Literal["mean", "own_group", "no_group_hurt"] | None = None
    min_confidence: Annotated[float, Interval(ge=0.5, lt=1)] | None = None
    temperature: Positive | None = None
    normalize: bool | None = None
    set_step_size: Positive | None = None
    set_batch_size: Count | None = None
    vector_storage: Literal["full", "bf16", "offload", "split", "auto"] = "full"

    def __post_init__(self) -> None:
        reads_sizes = self.selection in ("top", "set")
        if self.estimator is None and reads_sizes:
            self.estimator = "projected"
        if self.step is None:
            self.step = "sgd" if reads_sizes else "kfac"

    def problems(self) -> Iterator[str]:
        """Options that do not fit together."""
        for name, (owner, values) in ONLY_WITH.items():
            if getattr(self, name) is not None and getattr(self, owner) not in values:
                hint = "; projected has rank" if name == "probes" and self.estimator == "projected" else ""
                is_now = f"{owner} is {getattr(self, owner) or 'first order (null)'}"
                yield f"{name} is an option of {owner}={' or '.join(values)}; {is_now}{hint}"
        if self.selection == "set" and self.estimator not in ("projected", "second_order"):
            yield "selection=set needs estimator=projected or second_order: it reads their curvature"
        if self.estimator == "finite_difference" and self.vector_storage not in ("full", "auto"):
            yield "vector_storage must be full with estimator=finite_difference, which holds one vector"
        if self.utility_by_anchor and self.estimator == "finite_difference":
            yield "utility_by_anchor needs another estimator than finite_difference, which takes one vector"
        if self.admit not in (None, "mean") and self.estimator == "finite_difference":
            yield f"admit={self.admit} needs another estimator than finite_difference, which takes one vector"
        if self.random_products is not None and self.estimator in ("exact", "finite_difference"):
            yield (
                f"random_products need estimator=projected, first_order or second_order; {self.estimator} takes no "
                "backward pass over whole batches"
            )
        if self.random_products is not None and self.parameters == "auto":
            yield "random_products need named parameters, over which other anchors are scored too; not auto"
        if self.min_confidence is not None and not self.utility_by_anchor:
            yield "min_confidence needs utility_by_anchor=true"

    def check_budget(self, budget: Budget) -> None:
        """Refuses, before the pass over the pool, a budget that would miss a column after it.

        Raises:
            SelectorError: clusters of gradients are asked for, and the estimator stores none of their coordinates.
        """
        if budget.stratify_by == GRADIENT_CLUSTER and self.estimator not in WITH_PHI:
            raise SelectorError(
                f"budget.stratify_by={GRADIENT_CLUSTER} clusters samples by the column 'phi', which "
                f"{_named(self.estimator)} does not store; set selector.options.estimator=projected or second_order"
            )

    def check_columns(self, estimator: Estimator) -> None:
        """Refuses, before the pass over the pool, a ``then`` that reads a column which this estimator does not store.

        Raises:
            SelectorError: names the estimators that do.
        """
        column = "phi" if self.then == "coverage" else (self.then or "").removeprefix("-")
        storing = STORED_BY.get(column)
        if storing is not None and estimator not in storing:
            raise SelectorError(
                f"then={self.then} reads the column {column!r}, which {_named(estimator)} does not store; set "
                f"selector.options.estimator={' or '.join(storing)}"
            )

    def check_anchors(self, groups: Sequence[str]) -> None:
        """Refuses, before the pass over the pool, a selection that would miss a column after it.

        Args:
            groups: of each anchor.

        Raises:
            SelectorError: utilities by anchor or by group are needed and will not be stored.
        """
        grouped = len(set(groups)) > 1
        group = "name the tag that groups the anchors in two groups or more (anchors.group)"
        if self.selection == "round_robin" and not (self.utility_by_anchor or grouped):
            raise SelectorError(
                f"selection=round_robin reads each anchor's utility: set utility_by_anchor=true, or {group}"
            )
        if self.admit not in (None, "mean") and not grouped:
            raise SelectorError(f"admit={self.admit} reads utilities by group: {group}, or leave admit out")
        if self.min_confidence is not None and len(groups) < 2:
            raise SelectorError("min_confidence compares anchors, and there is one; give more, or leave it out")


def _named(estimator: Estimator | None) -> str:
    return f"estimator={estimator}" if estimator else "the default estimator"

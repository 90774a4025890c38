"""``ostlight rescore`` with ``ost``: first-order utilities for other anchors, from stored random products."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from torch import Tensor

from ostlight.errors import DataError
from ostlight.influence.gradients.random_products import RandomDirections
from ostlight.influence.other_anchors import anchor_products
from ostlight.influence.scorer import UtilityScorer
from ostlight.influence.simulated_step import SimulatedStep
from ostlight.models.batch import Batch
from ostlight.selection.context import ScoringContext
from ostlight.selection.score_files import HIDDEN
from ostlight.selection.scores import Scores

log = logging.getLogger("ostlight.selectors.ost")

PRODUCTS = "random_products"
STORED, STORED_SCALE = f"{HIDDEN}{PRODUCTS}", f"{HIDDEN}{PRODUCTS}_scale"
"""Columns of random products, in 8 bits, and of what a unit of them is."""
COMPARED, AT_ONCE = 64, 8
"""Samples whose utilities are computed afresh, and how many together."""
SAFE = 0.8
"""Agreement of signs below which a warning is due."""
ROWS_AT_ONCE = 1 << 14


@dataclass(frozen=True)
class Agreement:
    """Of utilities from random products with fresh ones of first order, over ``samples`` samples of the pool.

    Attributes:
        signs: share whose signs are equal.
        spearman: rank correlation; NaN where one ranking is constant.
    """

    signs: float
    spearman: float
    samples: int

    @classmethod
    def of(cls, found: np.ndarray, fresh: np.ndarray) -> Agreement:
        """Of ``[S]`` utilities computed both ways; none at all agree in nothing."""
        if not len(fresh):
            return cls(float("nan"), float("nan"), 0)
        varied = len(set(found.tolist())) > 1 and len(set(fresh.tolist())) > 1
        spearman = float(spearmanr(found, fresh).statistic) if varied else float("nan")
        return cls(float((np.sign(found) == np.sign(fresh)).mean()), spearman, len(fresh))

    def log(self) -> None:
        """One line; a warning where the signs hardly agree."""
        if not self.samples:
            log.warning("rescored: no sample of the pool could be scored afresh, so the agreement is not known")
            return
        ranks = "not measurable" if math.isnan(self.spearman) else f"{self.spearman:.2f} (Spearman)"
        line = (
            f"rescored: on {self.samples} samples {self.signs:.0%} of signs agree with freshly computed utilities of "
            f"first order; rank agreement {ranks}"
        )
        if self.signs >= SAFE:
            log.info(line)
        else:
            log.warning(f"{line}; more random_products would be safer, or `ostlight select` with these anchors")

    def note(self) -> dict[str, Any]:
        """For the run's notes; ``None`` for what could not be measured."""
        numbers = {"signs": self.signs, "spearman": self.spearman}
        return {n: None if math.isnan(v) else v for n, v in numbers.items()} | {"samples": self.samples}


def rescored(
    context: ScoringContext,
    step: SimulatedStep,
    parameters: str,
    directions: RandomDirections,
    parts: Iterable[Scores],
) -> Iterator[dict[str, Any]]:
    """For each part ``score`` (first-order utility, nats), ``alignment``, ``step_size``, ``loss``, ``gradient_norm``,
    ``utility_by_anchor [N, A]`` and, with groups, ``utility_by_group``. At the end the agreement with fresh utilities
    is logged and noted.

    Args:
        step: with the new anchors; its step size does not matter, that of the scores is kept.
        parameters: the option.
        directions: as when the products were stored.

    Raises:
        DataError: the parts lack the products, hold another number of them, or hold no sample at all.
        InfluenceError: as ``anchor_products``.
    """
    by_anchor = anchor_products(step, directions).cpu().numpy().T
    anchors, compared = step.anchors, list(context.proxy.examples(COMPARED))
    positions = {single.samples[0].position for single in compared}
    found: dict[int, float] = {}
    step_size = math.nan
    for part in parts:
        if not len(part):
            yield {"score": np.empty(0), "utility_by_anchor": np.empty((0, by_anchor.shape[1]))}
            continue
        step_size = float(part.column("step_size")[0])
        alignments = _stored_products_times(part, by_anchor)
        columns: dict[str, Any] = {
            "score": step_size * alignments.mean(1),
            "loss": part.column("loss"),
            "gradient_norm": part.column("gradient_norm"),
            "alignment": alignments.mean(1),
            "step_size": part.column("step_size"),
            "utility_by_anchor": step_size * alignments,
        }
        if anchors.names:
            columns["utility_by_group"] = list(step_size * alignments @ anchors.shares_by_number().numpy().T)
        found |= {
            p: u for p, u in zip(part.positions.tolist(), columns["score"].tolist(), strict=True) if p in positions
        }
        yield columns
    if math.isnan(step_size):
        raise DataError("no sample of the pool has a score, so there is nothing to score again")
    agreement = _agreement(step, parameters, step_size, [one for one in compared if _position(one) in found], found)
    agreement.log()
    for name, value in {"step_size": step_size, "groups": anchors.names, "rescored": agreement.note()}.items():
        context.note(name, value)


def in_eight_bits(products: Tensor) -> dict[str, list[Any]]:
    """The two stored columns of ``[N, M]`` products: whole numbers from -127 to 127, and the size of their unit.

    On DigitMath rounding to 8 bits moves a utility by 0.2 to 0.5% of the utilities' spread, where taking 1,024 random
    products of a gradient moves it by a third (docs/log.md).
    """
    rows = products.double().cpu().numpy()
    largest = np.abs(np.nan_to_num(rows, nan=0.0, posinf=0.0, neginf=0.0)).max(1)
    units = np.where(largest > 0, largest / 127, 1.0)
    whole = np.nan_to_num(rows / units[:, None], nan=0.0, posinf=0.0, neginf=0.0).round().astype(np.int8)
    return {STORED: list(whole), STORED_SCALE: units.tolist()}


def _stored_products_times(part: Scores, vectors: np.ndarray) -> np.ndarray:
    """``[N, A]`` of stored products ``[N, M]`` and ``[M, A]``."""
    if STORED not in part:
        raise DataError("these scores hold no random products; they were removed, or come from `ostlight rescore`")
    stored, units = part.column(STORED), part.column(STORED_SCALE)
    if stored.shape[1:] != vectors.shape[:1]:
        raise DataError(
            f"the scores hold {stored.shape[1:]} random products a sample, the options ask for {len(vectors)}"
        )
    pieces = [stored[k : k + ROWS_AT_ONCE].astype(np.float64) @ vectors for k in range(0, len(stored), ROWS_AT_ONCE)]
    return np.asarray(np.concatenate(pieces) * units[:, None])


def _agreement(
    step: SimulatedStep, parameters: str, step_size: float, singles: list[Batch], found: dict[int, float]
) -> Agreement:
    if not singles:
        return Agreement.of(np.empty(0), np.empty(0))
    scorer = UtilityScorer(
        step.model,
        step.anchors,
        parameters=parameters,
        estimator="first_order",
        step_size=step_size,
        preconditioner=step.preconditioner,
    )
    fresh = [scorer(Batch.together(singles[k : k + AT_ONCE])).utility for k in range(0, len(singles), AT_ONCE)]
    values = np.concatenate([utilities.cpu().numpy() for utilities in fresh])
    known = np.isfinite(values)
    return Agreement.of(np.array([found[_position(one)] for one in singles])[known], values[known])


def _position(single: Batch) -> int:
    return single.samples[0].position

"""How well scores separate clean from defective records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.special import expit, logit

from ostlight.benchmarking.paired_difference import CONFIDENCE

RESAMPLES = 2_000
MIN_SIDE = 5
"""Records, clean or defective, from which on there is an interval: one of fewer covers far less than it promises."""
MIN_RESAMPLED = 20
"""Strata from which on they are resampled: fewer would give an interval that is too narrow."""


@dataclass(frozen=True)
class Auroc:
    """The share of pairs of a clean and a defective record in which the clean one has the higher score, ties counted
    half: 1 is perfect, 0.5 is chance.

    Attributes:
        low, high: its 95% interval; NaN where a side has fewer than ``MIN_SIDE`` records, or no pair is ranked wrong or
            none right, which leaves nothing to estimate a variance from.
        pairs: they are over.
    """

    value: float
    low: float
    high: float
    pairs: int


def auroc(scores: np.ndarray, is_clean: np.ndarray, strata: np.ndarray | None = None) -> Auroc | None:
    """Returns the AUROC of a score, over all pairs or over pairs within one stratum; ``None`` where there is no pair.

    The interval is DeLong's (DeLong et al. 1988, Biometrics 44, equations 3 to 5) on the logit scale, its variances
    summed over strata; with ``MIN_RESAMPLED`` or more strata it is a bootstrap over these.

    Args:
        scores: ``[N]``, finite.
        is_clean: ``[N]``.
        strata: ``[N]`` numbers; records of one question, say, of which some answers are right and others wrong.
    """
    groups = [np.arange(len(scores))] if strata is None else _rows_by_stratum(strata)
    parts = [part for rows in groups if (part := _compare(scores[rows], is_clean[rows]))]
    if not parts:
        return None
    wins, pairs, variances = (np.array(column, dtype=np.float64) for column in zip(*parts, strict=True))
    value = wins.sum() / pairs.sum()
    tail = (1 - CONFIDENCE) / 2
    if len(parts) >= MIN_RESAMPLED:
        weights = np.random.default_rng(0).multinomial(len(parts), np.full(len(parts), 1 / len(parts)), RESAMPLES)
        low, high = np.quantile((weights @ wins) / (weights @ pairs), [tail, 1 - tail])
    else:
        error = np.sqrt(variances.sum()) / pairs.sum()
        is_known = min(is_clean.sum(), (~is_clean).sum()) >= MIN_SIDE and error > 0 and 0 < value < 1
        half = float(stats.norm.ppf(1 - tail)) * error / (value * (1 - value)) if is_known else np.nan
        low, high = expit(logit(value) + half * np.array([-1, 1])) if is_known else (np.nan, np.nan)
    return Auroc(float(value), float(low), float(high), int(pairs.sum()))


def _rows_by_stratum(strata: np.ndarray) -> Sequence[np.ndarray]:
    order = np.argsort(strata, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(strata[order])) + 1)


def _compare(scores: np.ndarray, is_clean: np.ndarray) -> tuple[float, int, float] | None:
    """Returns the pairs that the clean record wins, all pairs, and the variance of the former (NaN where one side is
    a single record); ``None`` without a pair."""
    clean, defective = scores[is_clean], scores[~is_clean]
    if not len(clean) or not len(defective):
        return None
    ranks = stats.rankdata(np.concatenate([clean, defective]))
    pairs = len(clean) * len(defective)
    # Of each clean record the share of defective ones below it, and of each defective one that of clean ones above.
    of_clean = (ranks[: len(clean)] - stats.rankdata(clean)) / len(defective)
    of_defective = 1 - (ranks[len(clean) :] - stats.rankdata(defective)) / len(clean)
    spread = (np.var(side, ddof=1) / len(side) if len(side) > 1 else np.nan for side in (of_clean, of_defective))
    return float(of_clean.mean()) * pairs, pairs, sum(spread) * pairs**2

"""Which sources and tags help and hurt which anchor groups."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import stats

from ostlight.benchmarking.paired_difference import CONFIDENCE
from ostlight.reporting.score_columns import ScoreColumns

FEWEST = 5
"""Samples of which a mean is said to help or hurt: the spread of fewer is hardly known."""
ROUNDING = 1e-12
"""Standard error, over the mean, of equal samples at most."""
NOT_CORRECTED = "each cell has a 95% interval of its own: of 20 that neither help nor hurt, one will seem to"
"""Stands with a table of means."""
MOST_ROWS = 16
"""Values of a tag shown; the rest are one row."""
MOST_VALUES = 1000
"""A tag with more values, or with one for every second sample, identifies samples and does not group them."""


@dataclass(frozen=True)
class MeanUtility:
    """Mean utility of some samples for some anchors, nats; the mean score where scores are no utilities.

    Attributes:
        error: standard error of the mean over the samples.
        samples: their number.
        strength: size of the mean within its matrix, 0 to 1, for its colour.
    """

    mean: float
    error: float
    samples: int
    strength: float = 0.0

    @property
    def effect(self) -> str:
        """``help`` or ``hurt``; ``unclear`` where the 95% interval of the mean (Student's t) holds 0, and where its
        width is not known: of few samples, or of equal ones."""
        if self.samples < FEWEST or not self.error > ROUNDING * abs(self.mean):
            return "unclear"
        if not abs(self.mean) > _standard_errors(self.samples) * self.error:
            return "unclear"
        return "help" if self.mean > 0 else "hurt"


@cache
def _standard_errors(samples: int) -> float:
    """Half the width of the 95% interval of a mean over so many samples."""
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, samples - 1))


@dataclass(frozen=True)
class TagValue:
    """The samples with one value of a tag.

    Attributes:
        toxic: share of them that is toxic.
        kept: share of them kept by each selection.
        utilities: for all anchors, then for each group.
    """

    value: str
    count: int
    toxic: float
    kept: list[float]
    utilities: list[MeanUtility]


@dataclass(frozen=True)
class Matrix:
    """One tag against the anchors as a whole and by group.

    Attributes:
        variance_explained: share of the variance of the utilities' ranks that lies between the tag's values.
    """

    tag: str
    columns: list[str]
    rows: list[TagValue]
    variance_explained: float


def compute_matrices(scores: ScoreColumns) -> list[Matrix]:
    """A matrix for each tag that groups the samples, the one that explains most of the utilities first."""
    matrices = [_matrix(scores, tag, *coded) for tag, coded in encode_tags(scores).items()]
    return sorted(matrices, key=lambda m: -m.variance_explained)


def encode_tags(scores: ScoreColumns) -> dict[str, tuple[list[str], np.ndarray]]:
    """By tag: its values, most frequent first, and ``[N]`` the index of each sample's value among them."""
    encoded = {}
    for tag, values in scores.tags.items():
        names, codes, counts = np.unique(values, return_inverse=True, return_counts=True)
        if 2 <= len(names) <= min(MOST_VALUES, len(scores) / 2):
            order = np.argsort(-counts, kind="stable")
            encoded[tag] = ([str(names[k]) for k in order], np.argsort(order)[codes])
    return encoded


def _matrix(scores: ScoreColumns, tag: str, names: list[str], codes: np.ndarray) -> Matrix:
    shown = names if len(names) <= MOST_ROWS else [*names[: MOST_ROWS - 1], f"{len(names) - MOST_ROWS + 1} others"]
    codes = np.minimum(codes, len(shown) - 1)
    values = scores.score[:, None]
    if scores.by_group is not None:
        values = np.concatenate([values, scores.by_group], axis=1)
    counts = np.bincount(codes, minlength=len(shown))
    means, errors = _means(values, codes, counts)
    largest = float(np.quantile(np.abs(means), 0.9)) or 1.0
    strengths = np.sqrt(np.clip(np.abs(means) / largest, 0, 1))
    toxic = np.bincount(codes, scores.toxic, len(shown)) / counts
    kept = [np.bincount(codes, selection.kept, len(shown)) / counts for selection in scores.selections]
    rows = [
        TagValue(
            value=name or "(none)",
            count=int(counts[k]),
            toxic=float(toxic[k]),
            kept=[float(shares[k]) for shares in kept],
            utilities=[
                MeanUtility(float(mean), float(error), int(counts[k]), float(strength))
                for mean, error, strength in zip(means[k], errors[k], strengths[k], strict=True)
            ],
        )
        for k, name in enumerate(shown)
    ]
    first = "all anchors" if scores.is_utility else "score"
    return Matrix(tag, [first, *scores.groups], rows, _variance_explained(scores, codes, counts))


def _means(values: np.ndarray, codes: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``[rows, columns]`` mean and its standard error; infinite for a single sample."""
    rows = len(counts)
    means = np.stack([np.bincount(codes, column, rows) for column in values.T], axis=1) / counts[:, None]
    deviations = np.square(values - means[codes])
    squares = np.stack([np.bincount(codes, column, rows) for column in deviations.T], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = np.where(counts[:, None] > 1, squares / (counts[:, None] - 1), np.inf)
    return means, np.sqrt(variance / counts[:, None])


def _variance_explained(scores: ScoreColumns, codes: np.ndarray, counts: np.ndarray) -> float:
    """Correlation ratio of the ranks: outliers, which utilities have, cannot decide it alone."""
    place = scores.place - scores.place.mean()
    means = np.bincount(codes, place, len(counts)) / counts
    return float((counts * means**2).sum() / max(1e-12, (place**2).sum()))

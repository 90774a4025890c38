"""Which sources and tags help and hurt which skills."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ostlight.reporting.evidence import Evidence
from ostlight.reporting.noise import CERTAIN

MOST_ROWS = 16
"""Values of a tag shown; the rest are one row."""
MOST_VALUES = 1000
"""A tag with more values (or with one for every second sample) names samples, not kinds of them."""


@dataclass(frozen=True)
class Cell:
    """Mean utility of some samples for some anchors, nats, and its standard error over those samples."""

    mean: float
    error: float
    strength: float = 0.0

    @property
    def told(self) -> str:
        """``help``, ``hurt``, or ``even`` where the mean is within its error."""
        if not abs(self.mean) > CERTAIN * self.error:
            return "even"
        return "help" if self.mean > 0 else "hurt"


@dataclass(frozen=True)
class Row:
    """Samples with one value of a tag. ``kept`` is a share of them, pick by pick."""

    value: str
    count: int
    toxic: float
    kept: list[float]
    cells: list[Cell]


@dataclass(frozen=True)
class Matrix:
    """One tag against the anchors as a whole and by group.

    Attributes:
        explained: share of the variance of the utilities' ranks that lies between the tag's values.
    """

    tag: str
    columns: list[str]
    rows: list[Row]
    explained: float


def matrices(evidence: Evidence) -> list[Matrix]:
    """One for each tag that sorts the samples into kinds, the tag that tells most about the utilities first."""
    made = [_matrix(evidence, tag, *coded) for tag, coded in coded_tags(evidence).items()]
    return sorted(made, key=lambda m: -m.explained)


def coded_tags(evidence: Evidence) -> dict[str, tuple[list[str], np.ndarray]]:
    """By tag: its values, most frequent first, and ``[N]`` the place of each sample's value among them."""
    found = {}
    for tag, values in evidence.tags.items():
        names, codes, counts = np.unique(values, return_inverse=True, return_counts=True)
        if 2 <= len(names) <= min(MOST_VALUES, len(evidence) / 2):
            order = np.argsort(-counts, kind="stable")
            place = np.empty(len(order), np.int64)
            place[order] = np.arange(len(order))
            found[tag] = ([str(names[k]) for k in order], place[codes])
    return found


def _matrix(evidence: Evidence, tag: str, names: list[str], codes: np.ndarray) -> Matrix:
    shown = names if len(names) <= MOST_ROWS else [*names[: MOST_ROWS - 1], f"{len(names) - MOST_ROWS + 1} others"]
    codes = np.minimum(codes, len(shown) - 1)
    values = evidence.score[:, None]
    if evidence.by_group is not None:
        values = np.concatenate([values, evidence.by_group], axis=1)
    counts = np.bincount(codes, minlength=len(shown))
    means, errors = _means(values, codes, counts)
    scale = float(np.quantile(np.abs(means), 0.9)) or 1.0
    strengths = np.sqrt(np.clip(np.abs(means) / scale, 0, 1))
    toxic = np.bincount(codes, evidence.toxic, len(shown)) / counts
    kept = [np.bincount(codes, pick.kept, len(shown)) / counts for pick in evidence.picks]
    rows = [
        Row(
            value=name or "(none)",
            count=int(counts[k]),
            toxic=float(toxic[k]),
            kept=[float(shares[k]) for shares in kept],
            cells=[Cell(*map(float, cell)) for cell in zip(means[k], errors[k], strengths[k], strict=True)],
        )
        for k, name in enumerate(shown)
    ]
    return Matrix(tag, ["all anchors", *evidence.groups], rows, _explained(evidence, codes, counts))


def _means(values: np.ndarray, codes: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``[rows, columns]`` mean and its standard error; infinite for a single sample."""
    rows = len(counts)
    means = np.stack([np.bincount(codes, column, rows) for column in values.T], axis=1) / counts[:, None]
    apart = np.square(values - means[codes])
    squares = np.stack([np.bincount(codes, column, rows) for column in apart.T], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = np.where(counts[:, None] > 1, squares / (counts[:, None] - 1), np.inf)
    return means, np.sqrt(variance / counts[:, None])


def _explained(evidence: Evidence, codes: np.ndarray, counts: np.ndarray) -> float:
    """Correlation ratio of the ranks: outliers, which utilities have, cannot decide it alone."""
    place = evidence.place - evidence.place.mean()
    means = np.bincount(codes, place, len(counts)) / counts
    return float((counts * means**2).sum() / max(1e-12, (place**2).sum()))

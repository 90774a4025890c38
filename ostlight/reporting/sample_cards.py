"""Single samples: what the scores say of each, and what its record holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from ostlight.data.sample import IMAGE_PLACEHOLDER
from ostlight.errors import BadRecord
from ostlight.reporting.images import ReportImage, load_image
from ostlight.reporting.number_format import clipped
from ostlight.reporting.score_columns import ScoreColumns
from ostlight.reporting.selections import Selection

TEXT = 1200
"""Characters of a turn that are shown."""
LONGEST = 36
"""Samples in a list."""
IMAGES = 4
"""Images of a sample that are shown."""
PAGE_BYTES = 8_000_000
"""Bytes of a page that are images."""
LEFT_OUT = f"left out: the page holds {PAGE_BYTES // 1_000_000} MB of images"
TAG = 40
"""Characters of a tag and of its value that are shown."""


@dataclass(frozen=True)
class BudgetOutcome:
    """Whether one selection kept a sample.

    Attributes:
        rank: among the kept, 0 is best; ``None`` where it was dropped.
        margin: score minus the cutoff of the budget; ``None`` where it has none.
    """

    selection: Selection
    rank: int | None
    margin: float | None

    @property
    def state(self) -> str:
        return "dropped" if self.rank is None else "kept"


@dataclass(frozen=True)
class SampleSummary:
    """What the scores say of one sample.

    Attributes:
        place: rank by score among ``scored`` samples, 0 is best.
        numbers: those of ``ScoreColumns.numbers``.
        outcomes: one for each selection.
        groups: utility by anchor group, nats.
    """

    id: str
    position: int
    place: int
    scored: int
    toxic: bool
    numbers: dict[str, float]
    outcomes: list[BudgetOutcome]
    groups: dict[str, float]
    tags: dict[str, str]


def summarise_sample(scores: ScoreColumns, row: int) -> SampleSummary:
    """Returns what the score columns say of one sample."""
    by_group = scores.by_group[row].tolist() if scores.by_group is not None else []
    outcomes = []
    for selection, margin in zip(scores.selections, scores.margins, strict=True):
        rank = int(selection.rank[row]) if selection.kept[row] else None
        outcomes.append(BudgetOutcome(selection, rank, None if margin is None else float(margin[row])))
    return SampleSummary(
        id=scores.ids[row],
        position=int(scores.position[row]),
        place=int(scores.place[row]),
        scored=len(scores),
        toxic=bool(scores.toxic[row]),
        numbers={name: float(column[row]) for name, column in scores.numbers.items()},
        outcomes=outcomes,
        groups=dict(zip(scores.groups, by_group, strict=True)),
        tags={tag: str(values[row]) for tag, values in scores.tags.items() if values[row]},
    )


def sample_lists(scores: ScoreColumns, longest: int = LONGEST) -> dict[str, np.ndarray]:
    """Rows by list: ``useful`` (best first), ``toxic`` or ``lowest`` (worst first), and for each selection
    ``borderline`` with its key (nearest to the cutoff first)."""
    order = np.argsort(scores.place)
    worst = order[::-1]
    lists = {"useful": order[:longest]}
    if scores.is_utility:
        lists["toxic"] = worst[scores.toxic[worst]][:longest]
    else:
        lists["lowest"] = worst[:longest]
    for selection, margin in zip(scores.selections, scores.margins, strict=True):
        if margin is not None:
            lists[f"borderline{selection.key}"] = np.argsort(np.abs(margin), kind="stable")[:longest]
    return lists


@dataclass(frozen=True)
class Card:
    """A sample as the page shows it: its summary, the lists it is in, and what the record holds or ``problem``, the
    reason it cannot be read."""

    summary: SampleSummary
    lists: list[str]
    turns: Sequence[tuple[str, str]] = ()
    images: list[ReportImage] = field(default_factory=list)
    more_images: int = 0
    problem: str | None = None

    @property
    def tags(self) -> dict[str, str]:
        return {clipped(tag, TAG): clipped(value, TAG) for tag, value in self.summary.tags.items()}


def make_cards(scores: ScoreColumns, lists_by_row: Mapping[int, list[str]]) -> Iterator[Card]:
    """Yields a card for each row of the score columns, with long texts clipped and images scaled down.

    Images beyond ``PAGE_BYTES`` in all are left out and say so.
    """
    load = cache(load_image)
    left = PAGE_BYTES
    for row, lists in sorted(lists_by_row.items()):
        summary = summarise_sample(scores, row)
        try:
            sample = scores.run.record(summary.position, summary.id)
        except BadRecord as error:
            yield Card(summary, lists, problem=str(error))
            continue
        turns = [(turn.role, turn_text(turn.text, TEXT)) for turn in sample.turns]
        images = []
        for image in sample.images[:IMAGES]:
            found = load(image)
            left -= len(found.url)
            images.append(found if left >= 0 or found.problem else ReportImage(found.source, problem=LEFT_OUT))
        yield Card(summary, lists, turns, images, max(0, len(sample.images) - IMAGES))


def turn_text(text: str, most: int) -> str:
    """The text of a turn without image placeholders, at most that many characters of it."""
    return clipped(text.replace(IMAGE_PLACEHOLDER, "").strip(), most)

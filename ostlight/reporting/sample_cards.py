"""Single samples: what the scores say of each, and what its record holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ostlight.data.sample import IMAGE_PLACEHOLDER, Sample
from ostlight.errors import BadRecord
from ostlight.reporting.images import ImageStore, ReportImage
from ostlight.reporting.number_format import clipped
from ostlight.reporting.scored_run import ScoredRun
from ostlight.reporting.selections import Selection

TEXT = 1200
"""Characters of a turn that are shown."""
IMAGES = 4
"""Images of a sample that are shown."""
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
        row: in the score columns.
        place: rank by score among ``scored`` samples, 0 is best.
        numbers: those of ``ScoreColumns.numbers``.
        outcomes: one for each selection.
        groups: utility by anchor group, nats.
    """

    row: int
    id: str
    position: int
    place: int
    scored: int
    toxic: bool
    numbers: dict[str, float]
    outcomes: list[BudgetOutcome]
    groups: dict[str, float]
    tags: dict[str, str]


def summarise_samples(scored: ScoredRun, rows: Iterable[int]) -> list[SampleSummary]:
    """Returns what the columns say of each row."""
    return [_summary(scored, row) for row in rows]


def _summary(scored: ScoredRun, row: int) -> SampleSummary:
    scores = scored.scores
    by_group = scores.by_group[row].tolist() if scores.by_group is not None else []
    outcomes = []
    for selection, margin in zip(scores.selections, scored.margins, strict=True):
        rank = int(selection.rank[row]) if selection.kept[row] else None
        outcomes.append(BudgetOutcome(selection, rank, None if margin is None else float(margin[row])))
    return SampleSummary(
        row=row,
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


@dataclass
class Card:
    """A sample as the page shows it: its summary, and what the record holds or ``problem``, the reason it cannot be
    read."""

    summary: SampleSummary
    turns: list[tuple[str, str]] = field(default_factory=list)
    images: list[ReportImage] = field(default_factory=list)
    more_images: int = 0
    problem: str | None = None
    lists: list[str] = field(default_factory=list)

    @property
    def tags(self) -> dict[str, str]:
        return {clipped(tag, TAG): clipped(value, TAG) for tag, value in self.summary.tags.items()}


def make_cards(scored: ScoredRun, rows: Iterable[int], images: ImageStore) -> Iterator[Card]:
    """Yields a card for each row, with long texts clipped and images scaled down."""
    pool = scored.run.pool
    for summary in summarise_samples(scored, rows):
        card = Card(summary)
        try:
            if pool is None:
                raise BadRecord("no_pool", "the pool is not at hand")
            _fill(card, pool[summary.position], images)
        except (BadRecord, IndexError, OSError) as error:
            card.problem = str(error)
        yield card


def _fill(card: Card, sample: Sample, images: ImageStore) -> None:
    if sample.id != card.summary.id:
        raise BadRecord("changed", f"the pool was changed: at this position there is now {sample.id!r}")
    card.turns = [(turn.role, turn_text(turn.text, TEXT)) for turn in sample.turns]
    card.images = [images[image] for image in sample.images[:IMAGES]]
    card.more_images = max(0, len(sample.images) - IMAGES)


def turn_text(text: str, most: int) -> str:
    """The text of a turn without image placeholders, at most that many characters of it."""
    return clipped(text.replace(IMAGE_PLACEHOLDER, "").strip(), most)

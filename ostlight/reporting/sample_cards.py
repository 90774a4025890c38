"""Single samples: what the scores say of each, and what its record holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ostlight.data.pool import Pool
from ostlight.data.sample import IMAGE_PLACEHOLDER, Sample
from ostlight.errors import BadRecord
from ostlight.reporting.images import ImageStore, ReportImage
from ostlight.reporting.near_duplicates import DuplicateGroups
from ostlight.reporting.number_format import UnitScale, clipped
from ostlight.reporting.score_columns import ScoreColumns
from ostlight.reporting.selections import Selection

TEXT = 1200
"""Characters of a turn that are shown."""
IMAGES = 4
"""Images of a sample that are shown."""
TAG = 40
"""Characters of a tag and of its value that are shown."""
NAMED = 2
"""Groups a sentence names."""


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
    """What the scores say of one sample. Utilities, noise and curvature cost are in nats.

    Attributes:
        row: in the score columns.
        place: rank by score among ``scored`` samples, 0 is best.
        outcomes: one for each selection.
        groups: utility by anchor group.
        duplicate_group: index and size of its group of near-duplicates.
    """

    row: int
    id: str
    position: int
    score: float
    noise: float | None
    toxic: bool
    place: int
    scored: int
    outcomes: list[BudgetOutcome]
    groups: dict[str, float]
    cosine: float | None
    first_order_utility: float | None
    curvature_cost: float | None
    loss: float | None
    tags: dict[str, str]
    duplicate_group: tuple[int, int] | None


def summarise_sample(
    scores: ScoreColumns, row: int, duplicates: DuplicateGroups | None, margins: Sequence[np.ndarray | None]
) -> SampleSummary:
    """Collects what the columns say of one row.

    Args:
        margins: ``cutoff_margins`` of each selection.
    """

    def at(values: np.ndarray | None) -> float | None:
        return None if values is None else float(values[row])

    by_group = scores.by_group[row].tolist() if scores.by_group is not None else []
    group = int(duplicates.group_of[row]) if duplicates is not None else -1
    return SampleSummary(
        row=row,
        id=scores.ids[row],
        position=int(scores.position[row]),
        score=float(scores.score[row]),
        noise=at(scores.noise),
        toxic=bool(scores.toxic[row]),
        place=int(scores.place[row]),
        scored=len(scores),
        outcomes=[
            BudgetOutcome(selection, int(selection.rank[row]) if selection.kept[row] else None, at(margin))
            for selection, margin in zip(scores.selections, margins, strict=True)
        ],
        groups=dict(zip(scores.groups, by_group, strict=True)),
        cosine=at(scores.extra.get("cosine")),
        first_order_utility=at(scores.first_order_utility),
        curvature_cost=at(scores.curvature_cost),
        loss=at(scores.extra.get("loss")),
        tags={tag: str(values[row]) for tag, values in scores.tags.items() if values[row]},
        duplicate_group=(group, int(duplicates.sizes[group])) if duplicates is not None and group >= 0 else None,
    )


def summary_sentences(summary: SampleSummary, scale: UnitScale) -> list[str]:
    """Says which groups the sample helps and hurts, where its gradient points and what curvature costs."""
    sentences = []
    ordered = sorted(summary.groups.items(), key=lambda item: -item[1])
    helped = [f"{name} ({scale.show(u)})" for name, u in ordered if u > 0][:NAMED]
    hurt = [f"{name} ({scale.show(u)})" for name, u in reversed(ordered) if u < 0][:NAMED]
    if helped:
        sentences.append(f"Helps most: {' and '.join(helped)}.")
    if hurt:
        sentences.append(f"Hurts most: {' and '.join(hurt)}.")
    if summary.cosine is not None:
        direction = "along" if summary.cosine > 0 else "against"
        sentences.append(f"Its gradient points {direction} the anchors' (cosine {summary.cosine:+.3f}).")
    if summary.curvature_cost is not None and summary.first_order_utility is not None:
        first_order, curvature = scale.show(summary.first_order_utility), scale.show(-summary.curvature_cost)
        sentences.append(f"First-order utility {first_order} {scale.unit}; curvature adds {curvature}.")
    if summary.duplicate_group is not None:
        sentences.append(f"One of {summary.duplicate_group[1]} near-duplicates.")
    return sentences


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


def make_cards(summaries: list[SampleSummary], pool: Pool | None, images: ImageStore) -> Iterator[Card]:
    """Yields a card for each summary, with long texts clipped and images scaled down."""
    for summary in summaries:
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

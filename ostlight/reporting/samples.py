"""Single samples told in words and figures: what each does, to whom, and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ostlight.data.pool import Pool
from ostlight.data.sample import IMAGE_PLACEHOLDER, Sample
from ostlight.errors import BadRecord
from ostlight.reporting.evidence import Evidence
from ostlight.reporting.families import Families
from ostlight.reporting.figures import Scale, clipped
from ostlight.reporting.picks import Pick
from ostlight.reporting.pictures import Album, Picture

TEXT = 1200
"""Characters of a turn that are shown."""
PICTURES = 4
"""Pictures of a sample that are shown."""
TAG = 40
"""Characters of a tag and of its value that are shown."""
NAMED = 2
"""Groups a sentence names."""


@dataclass(frozen=True)
class Part:
    """What became of one sample within one budget.

    Attributes:
        rank: among the kept; ``None`` where it was dropped.
        margin: score minus the line of the budget; ``None`` where it has none.
    """

    pick: Pick
    rank: int | None
    margin: float | None

    @property
    def state(self) -> str:
        return "dropped" if self.rank is None else "kept"


@dataclass(frozen=True)
class Story:
    """What is known of one scored sample.

    Attributes:
        place: by score, 0 is best, of ``of``.
        parts: one for each pick.
        groups: utility by anchor group, nats.
        family: number and size of its near-duplicate family.
    """

    row: int
    id: str
    position: int
    score: float
    noise: float | None
    toxic: bool
    place: int
    of: int
    parts: list[Part]
    groups: dict[str, float]
    cosine: float | None
    slope_gain: float | None
    curvature_cost: float | None
    loss: float | None
    tags: dict[str, str]
    family: tuple[int, int] | None


def story(evidence: Evidence, row: int, families: Families | None, margins: Sequence[np.ndarray | None]) -> Story:
    """Everything the columns say of one row.

    Args:
        margins: of each pick, ``[N]``.
    """
    by_group = evidence.by_group[row].tolist() if evidence.by_group is not None else []
    number = int(families.of[row]) if families is not None else -1
    columns = {name: float(values[row]) for name, values in evidence.columns.items()}
    noise, cost = evidence.noise, evidence.curvature_cost
    gain = columns["step_size"] * columns["alignment"] if {"step_size", "alignment"} <= columns.keys() else None
    return Story(
        row=row,
        id=evidence.ids[row],
        position=int(evidence.position[row]),
        score=float(evidence.score[row]),
        noise=None if noise is None else float(noise[row]),
        toxic=bool(evidence.toxic[row]),
        place=int(evidence.place[row]),
        of=len(evidence),
        parts=[_part(pick, row, margin) for pick, margin in zip(evidence.picks, margins, strict=True)],
        groups=dict(zip(evidence.groups, by_group, strict=True)),
        cosine=columns.get("cosine"),
        slope_gain=gain,
        curvature_cost=None if cost is None else float(cost[row]),
        loss=columns.get("loss"),
        tags={tag: str(values[row]) for tag, values in evidence.tags.items() if values[row]},
        family=(number, int(families.sizes[number])) if families is not None and number >= 0 else None,
    )


def _part(pick: Pick, row: int, margin: np.ndarray | None) -> Part:
    rank = int(pick.rank[row])
    return Part(pick, rank if rank >= 0 else None, None if margin is None else float(margin[row]))


def why(told: Story, scale: Scale) -> list[str]:
    """Sentences: whom it helps and hurts, where its gradient points, what its curvature costs."""
    sentences = []
    ordered = sorted(told.groups.items(), key=lambda item: -item[1])
    helped = [f"{name} ({scale.show(u)})" for name, u in ordered if u > 0][:NAMED]
    hurt = [f"{name} ({scale.show(u)})" for name, u in reversed(ordered) if u < 0][:NAMED]
    if helped or hurt:
        parts = [f"helps {' and '.join(helped)}" if helped else "", f"hurts {' and '.join(hurt)}" if hurt else ""]
        sentences.append(_sentence(", ".join(filter(None, parts))))
    if told.cosine is not None:
        direction = "along" if told.cosine > 0 else "against"
        sentences.append(f"Its gradient points {direction} the anchors' (cosine {told.cosine:+.3f}).")
    if told.curvature_cost is not None and told.slope_gain is not None:
        gain, cost = scale.show(told.slope_gain), scale.show(-told.curvature_cost)
        sentences.append(f"The slope promises {gain} {scale.unit}, the step's own curvature takes {cost}.")
    if told.family is not None:
        sentences.append(f"One of {told.family[1]} near-duplicates.")
    return sentences


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


@dataclass
class Card:
    """A sample as it is shown: its story, and what the record holds. ``problem`` says why nothing is held."""

    story: Story
    why: list[str]
    turns: list[tuple[str, str]] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    more_pictures: int = 0
    problem: str | None = None
    lists: list[str] = field(default_factory=list)

    @property
    def tags(self) -> dict[str, str]:
        return {clipped(tag, TAG): clipped(value, TAG) for tag, value in self.story.tags.items()}


def cards(stories: list[Story], pool: Pool | None, scale: Scale, album: Album) -> Iterator[Card]:
    """One for each story, texts clipped and pictures scaled down."""
    for told in stories:
        card = Card(told, why(told, scale))
        try:
            if pool is None:
                raise BadRecord("no_pool", "the pool is not at hand")
            _fill(card, pool[told.position], album)
        except (BadRecord, IndexError, OSError) as error:
            card.problem = str(error)
        yield card


def _fill(card: Card, sample: Sample, album: Album) -> None:
    if sample.id != card.story.id:
        raise BadRecord("changed", f"the pool was changed: at this place there is now {sample.id!r}")
    card.turns = [(turn.role, clipped(turn.text.replace(IMAGE_PLACEHOLDER, "").strip(), TEXT)) for turn in sample.turns]
    card.pictures = [album[image] for image in sample.images[:PICTURES]]
    card.more_pictures = max(0, len(sample.images) - PICTURES)

"""Accuracy against what it cost in all: selection and training."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from ostlight.config.schema import BASE
from ostlight.evaluation.answers import ALL
from ostlight.reporting.axes import Axis
from ostlight.reporting.figures import duration, prefixed
from ostlight.reporting.standing import Standing

LEFT, RIGHT, TOP, BOTTOM = 46, 16, 18, 42
LETTER, LINE = 6.6, 15
"""Width of a letter and height of a line of text, pixels."""
Place = tuple[float, float]
LABELS = {"device_s": "selection + training, device time", "flops": "selection + training, FLOPs"}


@dataclass(frozen=True)
class Point:
    """A selector in the plot: ``number`` stands in the mark, ``text`` beside it where there is room."""

    number: int
    name: str
    x: float
    y: float
    low: float
    high: float
    kind: str
    text: tuple[float, float, str] | None
    told: str


@dataclass(frozen=True)
class Pareto:
    width: int
    height: int
    points: list[Point]
    front: str
    base: tuple[float, str] | None
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    bottom: float
    top: float
    left: float
    right: float
    x_label: str


def pareto(standings: Sequence[Standing], cost: str, size: tuple[int, int]) -> Pareto | None:
    """The plot for one kind of cost; ``None`` where fewer than two lines have a cost."""
    width, height = size
    paid = [s for s in standings if s.cost(cost) > 0]
    if len(paid) < 2:
        return None
    base = next((100 * s.accuracy[ALL].mean for s in standings if s.label == BASE), None)
    bands = {id(s): _band(s) for s in paid}
    values = [v for band in bands.values() for v in band] + ([base] if base is not None else [])
    low, high = min(values), max(values)
    room = max(1.0, 0.08 * (high - low))
    costs = [s.cost(cost) for s in paid]
    logarithmic = max(costs) > 8 * min(costs)
    spread = (min(costs) / 1.3, max(costs) * 1.3) if logarithmic else _padded(min(costs), max(costs))
    x = Axis(*spread, LEFT, width - RIGHT, logarithmic)
    y = Axis(max(0, low - room), min(100, high + room), height - BOTTOM, TOP)
    places = [(x.at(s.cost(cost)), y.at(100 * s.accuracy[ALL].mean)) for s in paid]
    corners = _corners([p for p, s in zip(places, paid, strict=True) if s.on_front[cost]], width - RIGHT)
    texts = _texts([s.name for s in paid], places, corners, width)
    points = [
        Point(
            number=k + 1,
            name=s.name,
            x=places[k][0],
            y=places[k][1],
            low=y.at(bands[id(s)][0]),
            high=y.at(bands[id(s)][1]),
            kind="frame" if s.frames else "front" if s.on_front[cost] else "behind",
            text=texts[k],
            told=f"{s.name}: {100 * s.accuracy[ALL].mean:.1f}%, {_shown(cost)(s.cost(cost))}",
        )
        for k, s in enumerate(paid)
    ]
    return Pareto(
        width=width,
        height=height,
        points=points,
        front="M" + "L".join(f"{x} {y}" for x, y in corners) if corners else "",
        base=None if base is None else (y.at(base), f"untrained {base:.1f}"),
        x_ticks=x.ticks(width // 110, _shown(cost)),
        y_ticks=y.ticks(5, lambda v: f"{v:g}"),
        bottom=height - BOTTOM,
        top=TOP,
        left=LEFT,
        right=width - RIGHT,
        x_label=LABELS[cost],
    )


def _band(s: Standing) -> tuple[float, float]:
    interval = s.accuracy[ALL]
    half = 0.0 if interval.half != interval.half else interval.half
    return 100 * (interval.mean - half), 100 * (interval.mean + half)


def _padded(low: float, high: float) -> tuple[float, float]:
    room = 0.12 * ((high - low) or high)
    return max(0.0, low - room), high + room


def _shown(cost: str):
    return duration if cost == "device_s" else prefixed


def _corners(front: list[Place], right: float) -> list[Place]:
    """The front as a line: flat until something dearer is better."""
    corners: list[Place] = []
    for x, y in sorted(front):
        corners += [*([(x, corners[-1][1])] if corners else []), (x, y)]
    return [*corners, (right, corners[-1][1])] if corners else []


def _texts(
    names: list[str], places: list[Place], front: list[Place], width: int
) -> list[tuple[float, float, str] | None]:
    """Beside each mark, on the first of six places that is free; none where all are taken: the legend names it."""
    taken = [(x - 9, y - 9, x + 9, y + 9) for x, y in places]
    taken += [(min(a, c), min(b, d), max(a, c), max(b, d)) for (a, b), (c, d) in itertools.pairwise(front)]
    found: list[tuple[float, float, str] | None] = []
    for name, (x, y) in zip(names, places, strict=True):
        long = LETTER * len(name)
        tries = [(x + 13, y + 4, "start"), (x - 13, y + 4, "end"), (x, y - 14, "middle"), (x, y + 23, "middle")]
        tries += [(x + 11, y - 11, "start"), (x + 11, y + 19, "start")]
        text = None
        for tx, ty, anchor in tries:
            begin = {"start": tx, "end": tx - long, "middle": tx - long / 2}[anchor]
            box = (begin, ty - LINE + 3, begin + long, ty + 3)
            clear = all(box[2] < t[0] or t[2] < box[0] or box[3] < t[1] or t[3] < box[1] for t in taken)
            if clear and box[0] > LEFT and box[2] < width - RIGHT + 10:
                taken.append(box)
                text = (round(tx, 1), round(ty, 1), anchor)
                break
        found.append(text)
    return found

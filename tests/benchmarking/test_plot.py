"""Names of points are legible: inside the plot, and over no other name."""

from __future__ import annotations

import itertools

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from ostlight.benchmarking.plot import name_points

NEAR_TOGETHER = [(6.74e11, 86.0, "oracle 20%"), (7.0e11, 57.8, "full"), (6.9e11, 57.7, "random 50%")]
CASES = {
    "a few, some near together": [
        *NEAR_TOGETHER,
        (6.87e11, 56.5, "random 20%"),
        (1.45e12, 82.0, "ost 20% by task"),
    ],
    "over decades": [(10.0**k, 50 + k, f"number {k}") for k in range(9, 15)],
    "many at the top": [(1e12 * 1.1 ** (k % 6), 80 + k / 8, f"selector {k} 20% by task") for k in range(14)],
    "on one spot": [(1e12, 50.0, f"number {k}") for k in range(6)],
}


@pytest.mark.parametrize("points", CASES.values(), ids=CASES)
def test_names_are_inside_and_do_not_overlap(points: list[tuple[float, float, str]]) -> None:
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.plot([x for x, _, _ in points], [y for _, y, _ in points], "o", markersize=8)
    name_points(axes, points)
    figure.canvas.draw()
    boxes = {text.get_text(): Text.get_window_extent(text) for text in axes.texts}  # without their leaders
    assert set(boxes) == {name for _, _, name in points}
    for name, box in boxes.items():
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1, name
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1, name
    for (one, box), (other, its) in itertools.combinations(boxes.items(), 2):
        assert not box.overlaps(its), (one, other)

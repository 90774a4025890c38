"""The plot of a comparison names every row, beside its accuracy and beside its cost."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from ostlight.benchmarking.plot import plot_rows
from ostlight.benchmarking.results import RunResult, summarise


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Returns the figures that are saved."""
    saved: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: saved.append(figure))
    return saved


def rows(*variants: str):
    labels = ["base", "full", "ost", "random"]
    results = [
        RunResult(label, "", "" if label == "base" else "equal_steps", seed, {"all": 0.1 * k}, variant=variant)
        for variant in variants
        for k, label in enumerate(labels)
        for seed in (0, 1)
    ]
    for k, result in enumerate(results):
        result.training_flops = 0 if result.label == "base" else 1e12 * (1 + k)
    return summarise(results)


def test_every_row_is_named_and_the_untrained_model_has_no_cost(figures: list[Figure], tmp_path: Path) -> None:
    plot_rows(rows(""), tmp_path / "plot.png", "title")
    accuracy, cost = figures[0].axes
    assert [label.get_text() for label in accuracy.get_yticklabels()] == ["base", "full", "ost", "random"]
    assert [text.get_text() for text in cost.texts] == ["full", "ost", "random"]
    assert cost.get_xscale() == "log"


def test_with_variants_there_is_no_plot_of_cost(figures: list[Figure], tmp_path: Path) -> None:
    plot_rows(rows("one", "two"), tmp_path / "plot.png", "title")
    (accuracy,) = figures[0].axes
    assert len(accuracy.get_yticklabels()) == 8
    assert {"one", "two"} < {text.get_text() for text in accuracy.texts}


def test_the_axis_holds_every_interval_whole(figures: list[Figure], tmp_path: Path) -> None:
    results = [
        RunResult(label, "", "equal_steps", seed, {"all": value + 0.08 * seed}, training_flops=1e12)
        for label, value in (("random", 0.5), ("ost", 0.85))
        for seed in (0, 1)
    ]
    found = summarise(results)
    plot_rows(found, tmp_path / "plot.png", "title")
    axes = figures[0].axes[0]
    low, high = axes.get_xlim()
    for row in found:
        value = row.values["all"]
        assert low < 100 * (value.mean - value.half_width) < 100 * (value.mean + value.half_width) < high
    assert all(0 <= tick <= 100 for tick in axes.get_xticks())
    right = axes.get_window_extent().x1
    assert all(text.get_window_extent().x1 <= right for text in axes.texts), "the figures are whole too"


def test_what_asked_served_models_is_not_among_the_costs(figures: list[Figure], tmp_path: Path) -> None:
    asked = {"judge": 1000, "ost": 0, "random": 0}
    results = [
        RunResult(label, "", "equal_steps", 0, {"all": 0.5}, training_flops=1e12, selection_calls=calls)
        for label, calls in asked.items()
    ]
    plot_rows(summarise(results), tmp_path / "plot.png", "title")
    cost = figures[0].axes[1]
    assert [text.get_text() for text in cost.texts] == ["ost", "random"]
    assert "not shown" in cost.get_xlabel()


def test_names_of_points_at_the_same_place_do_not_cover_each_other(figures: list[Figure], tmp_path: Path) -> None:
    results = [
        RunResult(label, "", "equal_steps", seed, {"all": 0.5 + 0.001 * k}, training_flops=1e12)
        for k, label in enumerate(["full", "random", "oracle", "ost"])
        for seed in (0, 1)
    ]
    plot_rows(summarise(results), tmp_path / "plot.png", "title")
    boxes = [text.get_window_extent() for text in figures[0].axes[1].texts]
    assert [box.count_overlaps(boxes) for box in boxes] == [1] * len(boxes), "each covers itself alone"

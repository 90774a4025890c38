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

"""Draws accuracy against how far up the ranking the kept samples stand, from a run of `configs/benchmark/depth.yaml`.

python benchmarks/plot_depth.py runs/depth docs/assets/depth.png
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLOURS = ("#2e6f95", "#c97b2a", "#5b8c5a", "#8a5a83")
REFERENCE_COLOUR = "#9aa0a6"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Writes a PNG: a line for each pool, with 95% intervals over the seeds; the oracle's accuracy is dashed."""
    by_pool: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_pool[row["variant"]].append(row)
    figure = Figure(figsize=(0.6 + 2.6 * len(by_pool), 2.9), layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(1, len(by_pool), sharey=True, squeeze=False)[0]
    for axes, colour, (pool, of_pool) in zip(all_axes, cycle(COLOURS), by_pool.items(), strict=False):
        accuracy = {row["selector"]: 100 * row["accuracy"]["all"] for row in of_pool}
        error = {row["selector"]: 100 * (row["accuracy_half_width"]["all"] or 0) for row in of_pool}
        depths = sorted((label for label in accuracy if label.endswith("%")), key=lambda label: float(label[:-1]))
        at = [float(label[:-1]) for label in depths]
        means, errors = [accuracy[d] for d in depths], [error[d] for d in depths]
        axes.errorbar(at, means, errors, color=colour, marker="o", capsize=3)
        axes.axhline(accuracy["oracle"], color=REFERENCE_COLOUR, linestyle="--")
        axes.set_title(pool, fontsize=10)
        axes.set_xlabel("drawn from the best ... % of the ranking", fontsize=8)
        axes.grid(color="#e3e3e3")
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[0].set_ylabel("accuracy (%)")
    all_axes[0].annotate("oracle", (100, accuracy_of(by_pool, 0)), ha="right", va="bottom", fontsize=8, color="#444444")
    figure.savefig(path, dpi=120, metadata={"Software": None})


def accuracy_of(by_pool: dict[str, list[dict[str, Any]]], place: int) -> float:
    """The oracle's accuracy on one of the pools, in percent."""
    rows = list(by_pool.values())[place]
    return next(100 * row["accuracy"]["all"] for row in rows if row["selector"] == "oracle")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the benchmark's folder")
    parser.add_argument("image", type=Path, help="the PNG to write")
    options = parser.parse_args()
    lines = (options.run / "table.jsonl").read_text().splitlines()
    draw([json.loads(line) for line in lines], options.image)


if __name__ == "__main__":
    main()

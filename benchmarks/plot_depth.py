"""Plots accuracy against how far up the ranking the kept samples stand, by summaries of `depth.yaml`.

    python benchmarks/plot_depth.py benchmarks/results/depth*.jsonl docs/assets/depth.png

`python benchmarks/summarize.py runs/depth` makes one of a run.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLOURS = ("#2e6f95", "#c97b2a", "#5b8c5a", "#8a5a83")
REFERENCE_COLOUR = "#9aa0a6"


def accuracies(lines: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Mapping[str, Any]]]:
    """The accuracy over all of the test set: by pool, in order of names, and by selector."""
    found: dict[str, dict[str, Mapping[str, Any]]] = defaultdict(dict)
    for line in lines:
        case = dict(part.split("=", 1) for part in line["case"].split())
        if line["metric"] == "accuracy" and "group" not in case:
            found[case["variant"].replace("_", " ")][case["selector"]] = line
    return dict(sorted(found.items(), key=_number))


def _number(item: tuple[str, Any]) -> int:
    """Of a pool; the demo's has none."""
    return next((int(word) for word in item[0].replace(",", " ").split() if word.isdigit()), 0)


def draw(by_pool: Mapping[str, Mapping[str, Mapping[str, Any]]], path: Path) -> None:
    """Writes a PNG: a line for each pool with bars from the 20th to the 80th percentile of the seeds; oracle dashed."""
    figure = Figure(figsize=(0.6 + 2.6 * len(by_pool), 2.9), layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(1, len(by_pool), sharey=True, squeeze=False)[0]
    for axes, colour, (pool, by_selector) in zip(all_axes, cycle(COLOURS), by_pool.items(), strict=False):
        lines = sorted((float(label[:-1]), line) for label, line in by_selector.items() if label.endswith("%"))
        means = [100 * line["value"] for _, line in lines]
        below = [100 * (line["value"] - line["p20"]) for _, line in lines]
        above = [100 * (line["p80"] - line["value"]) for _, line in lines]
        axes.errorbar([at for at, _ in lines], means, [below, above], color=colour, marker="o", capsize=3)
        oracle = 100 * by_selector["oracle"]["value"]
        axes.axhline(oracle, color=REFERENCE_COLOUR, linestyle="--")
        axes.set_title(pool, fontsize=10)
        axes.set_xlabel("drawn from the best ... % of the ranking", fontsize=8)
        axes.grid(color="#e3e3e3")
        axes.spines[["top", "right"]].set_visible(False)
        if axes is all_axes[0]:
            axes.set_ylabel("accuracy (%)")
            axes.annotate("oracle", (100, oracle), ha="right", va="bottom", fontsize=8, color="#444444")
    figure.savefig(path, dpi=120, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("summaries", type=Path, nargs="+", help="of one run each")
    parser.add_argument("image", type=Path, help="the PNG to write")
    options = parser.parse_args()
    lines = [json.loads(line) for summary in options.summaries for line in summary.read_text().splitlines()]
    draw(accuracies(lines), options.image)


if __name__ == "__main__":
    main()

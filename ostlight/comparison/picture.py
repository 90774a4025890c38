"""The comparison as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from ostlight.comparison.cells import BASE, ORACLE
from ostlight.comparison.results import Line
from ostlight.evaluation.evaluate import ALL

FRAME, OURS, RIVAL = "#9aa0a6", "#d1495b", "#2e6f95"


def draw(lines: Sequence[Line], path: Path, title: str) -> None:
    """Accuracy with its interval, a bar for each line; the share of defective samples kept stands on the bar."""
    shown = list(reversed(lines))
    names = [" ".join(filter(None, [line.label, line.budget, line.protocol.replace("_", " ")])) for line in shown]
    means = [100 * line.accuracy[ALL].mean for line in shown]
    halves = [0 if (h := line.accuracy[ALL].half) != h else 100 * h for line in shown]
    colours = [
        FRAME if line.label in (BASE, ORACLE) else OURS if line.label.startswith("ost") else RIVAL for line in shown
    ]
    figure, axes = plt.subplots(figsize=(8, 0.55 * len(shown) + 1.4), layout="constrained")
    axes.barh(names, means, xerr=halves, color=colours, height=0.62, error_kw={"ecolor": "#333333", "capsize": 3})
    for y, (line, mean, half) in enumerate(zip(shown, means, halves, strict=True)):
        share = "" if line.defect_share is None else f", {100 * line.defect_share:.0f}% defective"
        axes.text(mean + half + 1, y, f"{mean:.1f}{share}", va="center", fontsize=9)
    furthest = max(m + h for m, h in zip(means, halves, strict=True))
    axes.set_xlim(0, max(1.0, 1.25 * furthest))
    axes.set_xlabel("accuracy on the test set, % (95% interval over seeds)")
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)

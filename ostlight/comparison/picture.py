"""The comparison as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from ostlight.comparison.cells import BASE, ORACLE
from ostlight.comparison.names import short_names
from ostlight.comparison.results import Line
from ostlight.evaluation.evaluate import ALL

FRAME, BUDGETED, WHOLE = "#9aa0a6", "#2e6f95", "#c97b2a"


def draw(lines: Sequence[Line], path: Path, title: str) -> None:
    """Accuracy with its interval, a bar for each line; behind it the share of the kept samples that is defective."""
    shown = list(reversed(lines))
    names, common = short_names(shown)
    means = [100 * line.accuracy[ALL].mean for line in shown]
    halves = [0 if (h := line.accuracy[ALL].half) != h else 100 * h for line in shown]
    colours = [FRAME if x.label in (BASE, ORACLE) else BUDGETED if x.budget else WHOLE for x in shown]
    figure, axes = plt.subplots(figsize=(8, 0.5 * len(shown) + 1.5), layout="constrained")
    axes.barh(range(len(shown)), means, xerr=halves, color=colours, height=0.62, error_kw={"capsize": 3})
    axes.set_yticks(range(len(shown)), names)
    for y, (line, mean, half) in enumerate(zip(shown, means, halves, strict=True)):
        share = "" if line.defect_share is None else f"   {100 * line.defect_share:.0f}% defective"
        axes.text(mean + half + 1, y, f"{mean:.1f}{share}", va="center", fontsize=9)
    axes.set_xlim(0, 125)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("accuracy on the test set, % (95% interval over seeds)")
    axes.set_title(f"{title}{', ' if common else ''}{', '.join(common)}", loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)

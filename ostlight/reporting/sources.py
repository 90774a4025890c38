"""Which source, prompt or other tag hurts which anchor group, as a table in a terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ostlight.data.sanitize import printable
from ostlight.errors import DataError
from ostlight.reporting.finished_run import open_scored
from ostlight.reporting.matrix import NOT_CORRECTED, Matrix, MeanUtility, compute_matrices
from ostlight.reporting.number_format import clipped, plain
from ostlight.reporting.score_columns import ScoreColumns

WIDE = 320
STYLES = {"help": "green", "hurt": "red", "unclear": "dim"}


def sources(path: str | Path, tag: str | None = None, console: Console | None = None) -> Matrix:
    """Prints and returns, for each value of a tag, the mean utility of its samples for each anchor group.

    A mean whose 95% interval (Student's t) holds 0, or of fewer than five samples, is printed as ``unclear``, not as
    help or hurt. The intervals are not corrected for their number. Of a selector whose scores are no
    utilities the mean score is printed, in no unit, and nothing of help, hurt or toxic.

    Args:
        path: a run folder with scores; of a benchmark's selectors the one with the most extra columns is shown.
        tag: how to group the samples, by ``source`` say; ``None`` takes the tag that explains most of the utilities.

    Returns:
        What was printed, the most frequent value first.

    Raises:
        DataError: no scores; no such tag, or one whose values do not group the samples.
    """
    scores = ScoreColumns.read(open_scored(path))
    matrices = {matrix.tag: matrix for matrix in compute_matrices(scores)}
    if not matrices or (tag is not None and tag not in matrices):
        problem = f"tag {tag!r} does not group the samples" if tag else "no tag groups the samples"
        raise DataError(f"{path}: {problem}; tags that do: {', '.join(matrices) or 'none'}")
    matrix = matrices[tag] if tag is not None else next(iter(matrices.values()))
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, WIDE)  # nothing is cut in a file or a pipe
    console.print(_table(matrix, scores))
    return matrix


def _table(matrix: Matrix, scores: ScoreColumns) -> Table:
    is_utility, kept = scores.is_utility, [f"kept{selection.suffix}" for selection in scores.selections]
    what = "utility" if is_utility else "score"
    unit = ", millinats" if is_utility else ""
    table = Table(
        title=Text(f"mean {what} by {_short(matrix.tag)}{unit}; ± standard error"),
        title_justify="left",
        caption=Text(NOT_CORRECTED) if is_utility else None,
        caption_justify="left",
    )
    table.add_column(Text(_short(matrix.tag)))
    for name in ("samples", *(["toxic"] if is_utility else []), *kept, *matrix.columns):
        table.add_column(Text(_short(name)), justify="right")
    for row in matrix.rows:
        toxic = [f"{row.toxic:.0%}"] if is_utility else []
        means = [_utility(mean) if is_utility else _score(mean) for mean in row.utilities]
        table.add_row(Text(_short(row.value)), f"{row.count:,}", *toxic, *(f"{s:.0%}" for s in row.kept), *means)
    return table


def _utility(mean: MeanUtility) -> Text:
    return Text(f"{1e3 * mean.mean:+.2f} ± {1e3 * mean.error:.2f} {mean.effect}", style=STYLES[mean.effect])


def _score(mean: MeanUtility) -> Text:
    return Text(f"{plain(mean.mean, 4)} ± {plain(mean.error, 2)}")


def _short(text: str) -> str:
    return clipped(printable(text), 40)

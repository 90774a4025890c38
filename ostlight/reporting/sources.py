"""Which generator, prompt or tag hurts which skill, as a table in a terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ostlight.data.sanitize import harmless
from ostlight.errors import DataError
from ostlight.reporting.contents import Scored
from ostlight.reporting.figures import clipped
from ostlight.reporting.matrix import Matrix, matrices
from ostlight.reporting.run import Run

WIDE = 320
STYLES = {"help": "green", "hurt": "red", "even": "dim"}


def sources(path: str | Path, tag: str | None = None, console: Console | None = None) -> Matrix:
    """Prints, for each value of a tag, the mean utility of its samples for all anchors and for each anchor group.

    A mean that lies within its standard error is told as ``even``, not as help or hurt.

    Args:
        path: a run folder with scores; of a benchmark's selectors the one with the most evidence.
        tag: what sorts the pool, ``source`` say; ``None`` takes the tag that tells most about the utilities.

    Returns:
        What was printed, the samples' most frequent value first.

    Raises:
        DataError: no scores; no such tag, or one whose values do not sort the samples into kinds.
    """
    run = Run.open(path)
    if not run.scored:
        raise DataError(f"{path} holds no scores; run `ostlight select` first")
    evidence = Scored.read(run.scored[0]).evidence
    found = {matrix.tag: matrix for matrix in matrices(evidence)}
    if not found or (tag is not None and tag not in found):
        named = f"tag {tag!r} is none that sorts the pool into kinds" if tag else "no tag sorts the pool into kinds"
        raise DataError(f"{path}: {named}; those that do: {', '.join(found) or 'none'}")
    matrix = found[tag] if tag is not None else next(iter(found.values()))
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, WIDE)  # nothing is cut in a file or a pipe
    console.print(_table(matrix, [f"kept{pick.suffix}" for pick in evidence.picks]))
    return matrix


def _table(matrix: Matrix, picks: list[str]) -> Table:
    title = Text(f"mean utility by {_said(matrix.tag)}, in thousandths of a nat; ± its standard error")
    table = Table(title=title, title_justify="left")
    table.add_column(Text(_said(matrix.tag)))
    for name in ("samples", "toxic", *picks, *matrix.columns):
        table.add_column(Text(_said(name)), justify="right")
    for row in matrix.rows:
        cells = [Text(f"{1e3 * c.mean:+.2f} ± {1e3 * c.error:.2f} {c.told}", style=STYLES[c.told]) for c in row.cells]
        kept = [f"{share:.0%}" for share in row.kept]
        table.add_row(Text(_said(row.value)), f"{row.count:,}", f"{row.toxic:.0%}", *kept, *cells)
    return table


def _said(text: str) -> str:
    return clipped(harmless(text), 40)

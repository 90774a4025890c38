"""One sample of a run in a terminal: `ostlight explain`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ostlight.data.sanitize import printable
from ostlight.errors import BadRecord, DataError
from ostlight.reporting.finished_run import FinishedRun, open_scored
from ostlight.reporting.images import image_source
from ostlight.reporting.number_format import UnitScale, clipped, plain, signed
from ostlight.reporting.sample_cards import BudgetOutcome, SampleSummary, summarise_sample, turn_text
from ostlight.reporting.score_columns import ScoreColumns
from ostlight.selection.scores import REJECTED, read_score_table

if TYPE_CHECKING:
    from ostlight.reporting.layers import LayerUtility

TEXT = 600
"""Characters of a turn that are printed."""
POSITION = re.compile(r"#(\d+)")
NEAREST = 5
SIMILARITY = 0.8
"""Similarity of two ids (difflib's ratio) from which one is suggested for the other."""
SEARCHED = 20_000
"""Ids that are compared, which takes a second."""
BAR = 24
"""Width of the longest bar, in characters."""


def explain(path: str | Path, sample_id: str, layers: bool = False, console: Console | None = None) -> None:
    """Prints what a run knows of one sample: its utility for each anchor group, rank and record.

    Args:
        path: a run folder; of a benchmark's selectors the one with the most extra columns is shown.
        sample_id: as in the pool, or the record's position in it, as ``#12`` (from 0).
        layers: loads the proxy again and prints the first-order utility layer by layer, which costs a pass over the
            anchors.

    Raises:
        DataError: no scores, or no such sample; the message names the nearest ids.
    """
    run = open_scored(path)
    console = console or Console(highlight=False)
    if run.path != Path(path):
        console.print(Text(f"as scored in {run.path}", style="dim"))
    table = read_score_table(run.folder.scores).select(["position", "id", "state", "reason", "field", "detail"])
    row = find_record(table, sample_id)
    if row["state"] == REJECTED:
        console.print(_rejected(row))
        return
    scores = ScoreColumns.read(run)
    summary = summarise_sample(scores, int(np.searchsorted(scores.position, row["position"])))
    console.print(Group(*_summary(scores, summary), *_record(run, summary)))
    if layers:
        from ostlight.reporting.layers import layer_utilities  # imports the training frameworks, which takes seconds

        console.print(_layers(layer_utilities(run, summary.position), scores.scale))
    else:
        console.print(Text("--layers loads the proxy and prints the utility layer by layer", style="dim"))


def _rejected(row: dict[str, Any]) -> RenderableType:
    """Why there is no score for it."""
    where = f" (field {row['field']})" if row["field"] else ""
    name = printable(row["id"] or f"#{row['position']}")
    return Group(Text(name, style="bold"), Text(printable(f"rejected: {row['reason']}{where}: {row['detail']}")))


def _summary(scores: ScoreColumns, summary: SampleSummary) -> list[RenderableType]:
    """What the scores say of a sample."""
    scale, numbers = scores.scale, summary.numbers
    name = "utility" if scores.is_utility else "score"
    lines: list[RenderableType] = [
        Text.assemble((printable(summary.id), "bold"), ("  toxic" if summary.toxic else "", "bold red")),
        Text(f"{name} {scale.show(numbers['score'])} {scale.unit}"),
        Text(f"rank {summary.place + 1:,} of {summary.scored:,} by {name}"),
    ]
    lines += [Text(_outcome(outcome, scale)) for outcome in summary.outcomes]
    if "cosine" in numbers:
        direction = "along" if numbers["cosine"] > 0 else "against"
        lines.append(Text(f"its gradient points {direction} the anchors' (cosine {numbers['cosine']:+.3f})"))
    if "curvature_cost" in numbers:
        first_order, curvature = scale.show(numbers["first_order_utility"]), scale.show(-numbers["curvature_cost"])
        lines.append(Text(f"first-order utility {first_order} {scale.unit}; curvature adds {curvature}"))
    if summary.groups:
        lines.append(_groups(summary, scores))
    if "loss" in numbers:
        lines.append(Text(f"loss of the proxy on it {plain(numbers['loss'])}"))
    if summary.tags:
        tags = [f"{printable(tag)}={printable(clipped(value, 60))}" for tag, value in summary.tags.items()]
        lines.append(Text(f"tags  {', '.join(tags)}"))
    return lines


def _outcome(outcome: BudgetOutcome, scale: UnitScale) -> str:
    """Whether a budget kept it, and how far its score is from the cutoff."""
    text = f"budget {outcome.selection.budget}: {outcome.state}"
    if outcome.rank is not None:
        text += f", rank {outcome.rank + 1:,} of {outcome.selection.size:,}"
    return text if outcome.margin is None else f"{text}, {scale.show(outcome.margin)} {scale.unit} from the cutoff"


def _groups(summary: SampleSummary, scores: ScoreColumns) -> Table:
    """Utility by anchor group, with bars."""
    largest = max(abs(u) for u in summary.groups.values())
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, utility in sorted(summary.groups.items(), key=lambda item: -item[1]):
        value = Text(scores.scale.show(utility), justify="right")
        table.add_row(Text(printable(name)), value, _bar(utility, largest))
    return table


def _bar(value: float, largest: float) -> Text:
    return Text("█" * max(1, round(BAR * abs(value) / (largest or 1.0))), style="green" if value > 0 else "red")


def _record(run: FinishedRun, summary: SampleSummary) -> list[RenderableType]:
    """File, images and text of the record."""
    try:
        sample = run.record(summary.position, summary.id)
    except BadRecord as error:
        return [Text(printable(line), style="dim") for line in (*run.missing, f"the record cannot be shown: {error}")]
    assert run.pool is not None, "it holds the record"
    file, number = run.pool.locate(summary.position)
    lines: list[RenderableType] = [Text(f"record  {file}:{number}")]
    lines += [Text(f"image  {printable(image_source(image))}") for image in sample.images]
    lines += [Text.assemble((f"{turn.role}  ", "dim"), printable(turn_text(turn.text, TEXT))) for turn in sample.turns]
    return lines


def find_record(table: pa.Table, wanted: str) -> dict[str, Any]:
    """Returns the row of the record with this id, or at this position (``#12``, from 0).

    Records that could not be read have no id in the scores; they are found by position.

    Args:
        table: all rows of the scores, by position.

    Raises:
        DataError: there is no such record; names the nearest ids.
    """
    position = POSITION.fullmatch(wanted)
    rows = table.filter(pc.equal(table["id"], pa.scalar(wanted))).to_pylist()
    if not rows and position:
        rows = table.filter(pc.equal(table["position"], int(position.group(1)))).to_pylist()
        if not rows:
            raise DataError(f"no record {wanted}; the {len(table):,} of this run begin at #0")
    if rows:
        return dict(rows[0])
    unnamed = table.filter(pc.is_null(table["id"])).to_pylist()
    ids = [i for i in table["id"].to_pylist() if i is not None]
    near = nearest_ids(ids, wanted)
    hint = f"the nearest ids: {', '.join(near)}" if near else f"no id is similar; ids look like {', '.join(ids[:1])}"
    if unnamed:
        hint += f"; name the {len(unnamed):,} records without an id by position, as #{unnamed[0]['position']}"
    raise DataError(f"no sample {clipped(wanted, 100)!r} among the {len(ids):,} of this run; {hint}")


def nearest_ids(ids: Sequence[str], wanted: str) -> list[str]:
    """The few ids that contain it, else the few that are most like it."""
    containing = [i for i in ids if wanted.lower() in i.lower()][:NEAREST]
    return containing or difflib.get_close_matches(wanted, ids[:SEARCHED], n=NEAREST, cutoff=SIMILARITY)


def _layers(layers: list[LayerUtility], scale: UnitScale) -> RenderableType:
    """First-order utility layer by layer."""
    largest = max(abs(layer.utility) for layer in layers)
    title = f"first-order utility by layer, {scale.unit}, and cosine with the anchors' gradient"
    table = Table(title=title, title_justify="left", box=None)
    for name in ("layer", "utility", "cosine", ""):
        table.add_column(name, justify="right" if name in ("utility", "cosine") else "left")
    for layer in layers:
        row = Text(layer.layer), scale.show(layer.utility), signed(layer.cosine, 3), _bar(layer.utility, largest)
        table.add_row(*row)
    return table

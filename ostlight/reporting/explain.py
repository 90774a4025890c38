"""One sample of a run, told in a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ostlight.data.sample import IMAGE_PLACEHOLDER
from ostlight.data.sanitize import harmless
from ostlight.errors import BadRecord, DataError
from ostlight.reporting.contents import Scored
from ostlight.reporting.figures import clipped, plain, signed
from ostlight.reporting.find import find
from ostlight.reporting.noise import CERTAIN
from ostlight.reporting.pictures import described
from ostlight.reporting.run import Run
from ostlight.reporting.samples import Part, Story, story, why
from ostlight.selection.scores import REJECTED, read_score_table

if TYPE_CHECKING:
    from ostlight.reporting.layers import LayerSlope

TEXT = 600
"""Characters of a turn that are printed."""
ALIKE = 8
"""Near-duplicates that are named."""
BAR = 24
"""Width of the longest bar, in characters."""


def explain(path: str | Path, sample_id: str, layers: bool = False, console: Console | None = None) -> None:
    """Prints what a run knows of one sample: its utility and why, whom it helps and hurts, its rank, its likes.

    Args:
        path: a run folder; of a benchmark's selectors the one with the most evidence.
        sample_id: as in the pool, or the record's place in it, as ``#12`` (from 0).
        layers: loads the proxy again and says in which layers the gain lies, at the price of a pass over the anchors.

    Raises:
        DataError: no scores, or no such sample; the message names the nearest ids.
    """
    run = Run.open(path)
    if not run.scored:
        raise DataError(f"{path} holds no scores; run `ostlight select` first")
    console = console or Console(highlight=False)
    if run.is_benchmark:
        console.print(Text(f"as scored in {run.scored[0].path}", style="dim"))
    run = run.scored[0]
    table = read_score_table(run.folder.scores).select(["position", "id", "state", "reason", "field", "detail"])
    row = find(table, sample_id, run.pool)
    if row["state"] == REJECTED:
        console.print(_rejected(row))
        return
    scored = Scored.read(run)
    place = int(np.searchsorted(scored.evidence.position, row["position"]))
    told = story(scored.evidence, place, scored.families, scored.margins)
    console.print(Group(*_told(scored, told)))
    if layers:
        from ostlight.reporting.layers import layer_slopes  # and the training frameworks, which take seconds

        console.print(_layers(layer_slopes(run, told.position, scored.evidence.step_size), scored))
    else:
        console.print(Text("--layers loads the proxy and says in which layers", style="dim"))


def _rejected(row: dict[str, Any]) -> RenderableType:
    """Why there is no score for it."""
    where = f" (field {row['field']})" if row["field"] else ""
    name = harmless(row["id"] or f"#{row['position']}")
    return Group(Text(name, style="bold"), Text(harmless(f"set aside: {row['reason']}{where}: {row['detail']}")))


def _told(scored: Scored, told: Story) -> list[RenderableType]:
    scale = scored.scale
    head = Text.assemble((harmless(told.id), "bold"), "  ", _state(told))
    if told.toxic:
        head.append("  toxic", "bold red")
    noise = f" ± {plain(CERTAIN * told.noise * scale.factor, 2)} (95%, sketch)" if told.noise is not None else ""
    name = "utility" if scored.evidence.is_utility else "score"
    lines: list[RenderableType] = [head, Text(f"{name} {scale.show(told.score)} {scale.unit}{noise}")]
    lines.append(Text(f"place {told.place + 1:,} of {told.of:,} by {name}"))
    if len(told.parts) > 1:
        lines += [Text(f"budget {part.pick.budget}: {_became(part)}") for part in told.parts]
    for part in told.parts:
        if part.margin is not None:
            whose = part.pick.suffix or " of its budget"
            lines.append(Text(f"{scale.show(part.margin)} {scale.unit} from the line{whose}"))
    lines += [Text(harmless(sentence)) for sentence in why(told, scale)]
    if told.groups:
        lines.append(_groups(told, scored))
    if told.loss is not None:
        lines.append(Text(f"loss of the proxy on it {plain(told.loss)}"))
    if told.tags:
        lines.append(
            Text(
                "tags  "
                + ", ".join(f"{harmless(tag)}={harmless(clipped(value, 60))}" for tag, value in told.tags.items())
            )
        )
    if told.family is not None and scored.families is not None:
        rows = scored.families.members(told.family[0])
        others = [scored.evidence.ids[r] for r in rows.tolist() if r != told.row]
        more = f" and {len(others) - ALIKE:,} more" if len(others) > ALIKE else ""
        lines.append(Text(f"near-duplicates  {', '.join(map(harmless, others[:ALIKE]))}{more}"))
    return lines + _record(scored.run, told)


def _state(told: Story) -> Text:
    """What became of it, where one line can say so."""
    if not told.parts:
        return Text("scored", style="dim")
    if len(told.parts) > 1:
        return Text()
    (part,) = told.parts
    return Text(f"{_became(part)} (budget {part.pick.budget})", style="green" if part.state == "kept" else "dim")


def _became(part: Part) -> str:
    return part.state if part.rank is None else f"kept, rank {part.rank + 1:,} of {part.pick.size:,}"


def _groups(told: Story, scored: Scored) -> Table:
    most = max(abs(u) for u in told.groups.values()) or 1.0
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, utility in sorted(told.groups.items(), key=lambda item: -item[1]):
        bar = "█" * max(1, round(BAR * abs(utility) / most))
        colour = "green" if utility > 0 else "red"
        table.add_row(Text(harmless(name)), Text(scored.scale.show(utility), justify="right"), Text(bar, style=colour))
    return table


def _record(run: Run, told: Story) -> list[RenderableType]:
    """Where the record stands, its pictures and its text."""
    if run.pool is None:
        return [Text(line, style="dim") for line in run.missing]
    try:
        sample = run.pool[told.position]
    except (BadRecord, IndexError, OSError) as error:
        return [Text(f"the record cannot be read any more: {error}", style="dim")]
    if sample.id != told.id:
        return [Text(f"the pool was changed: at this place there is now {sample.id!r}", style="dim")]
    file, number = run.pool.locate(told.position)
    lines: list[RenderableType] = [Text(f"record  {file}:{number}")]
    lines += [Text(f"picture  {harmless(described(image))}") for image in sample.images]
    for turn in sample.turns:
        text = clipped(turn.text.replace(IMAGE_PLACEHOLDER, "").strip(), TEXT)
        lines.append(Text.assemble((f"{turn.role}  ", "dim"), harmless(text)))
    return lines


def _layers(slopes: list[LayerSlope], scored: Scored) -> RenderableType:
    """Where the slope of the utility comes from, layer by layer."""
    scale = scored.scale
    most = max(abs(s.gain) for s in slopes) or 1.0
    table = Table(title=f"slope by layer, {scale.unit}, and the cosine in it", title_justify="left", box=None)
    for name in ("layer", "gain", "cosine", ""):
        table.add_column(name, justify="right" if name in ("gain", "cosine") else "left")
    for s in slopes:
        bar = Text("█" * max(1, round(BAR * abs(s.gain) / most)), style="green" if s.gain > 0 else "red")
        table.add_row(Text(s.layer), scale.show(s.gain), signed(s.cosine, 3), bar)
    return table

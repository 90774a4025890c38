"""Writes a DigitMath pool, its anchors and its development and test sets as LLaVA-style Parquet."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pyarrow as pa

from ostlight.config.bind import bind
from ostlight.config.digitmath import TASKS, DigitMath
from ostlight.data.checked_parquet import write_parquet
from ostlight.data.sample import IMAGE_PLACEHOLDER
from ostlight.digitmath.defects import Record, corrupt
from ostlight.digitmath.digits import GRID, add_noise, png, render, split
from ostlight.digitmath.tasks import ask, solve

SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        "conversations": pa.list_(pa.struct({"from": pa.string(), "value": pa.string()})),
        "task": pa.string(),
    }
)
SOURCE_FIELD = pa.field("source", pa.string())
DEFECT_LABELS_SCHEMA = pa.schema({"id": pa.string(), "defect": pa.string()})


@dataclass(frozen=True, slots=True)
class Files:
    """Where the parts of one DigitMath set lie. ``defect_labels`` names each pool record's defect, for reports only."""

    pool: Path
    anchors: Path
    dev: Path
    test: Path
    defect_labels: Path

    @classmethod
    def in_folder(cls, folder: Path) -> Files:
        """The paths ``build`` writes in ``folder``."""
        return cls(*(folder / f"{name}.parquet" for name in ("pool", "anchors", "dev", "test", "defect_labels")))


def build(config: DigitMath, folder: Path) -> Files:
    """Writes the five Parquet files into ``folder``; the same configuration gives the same bytes.

    Columns: ``id``, ``image`` (PNG bytes), ``conversations`` (LLaVA's ``from`` and ``value``), ``task``, and, in a pool
    with ``sources``, ``source``; the defect labels have ``id`` and ``defect``. No digit image occurs in two of pool,
    anchors, dev and test.

    Raises:
        ConfigError: sizes or rates that cannot be met; all of them at once.
    """
    bind(DigitMath, asdict(config), "digitmath")
    files = Files.in_folder(Path(folder))
    files.pool.parent.mkdir(parents=True, exist_ok=True)

    pool, defects = corrupt(
        clean_records("pool", config.pool, config.seed), config.counts(), _rng(config.seed, "defects")
    )
    if config.unlabelled:
        pool = [replace(record, answer="") for record in pool]
    _write(files.pool, "pool", pool, config.seed, sources_of(defects, config))
    defect_labels = {"id": [_id("pool", place) for place in range(config.pool)], "defect": defects}
    write_parquet(pa.table(defect_labels, DEFECT_LABELS_SCHEMA), files.defect_labels)
    anchors = clean_records("anchors", config.anchors, config.seed)
    anchors, _ = corrupt(anchors, config.anchor_counts(), _rng(config.seed, "anchor defects"))
    _write(files.anchors, "anchors", anchors, config.seed)
    for part, size, path in (("dev", config.dev, files.dev), ("test", config.test, files.test)):
        _write(path, part, clean_records(part, size, config.seed), config.seed)
    return files


def clean_records(part: str, size: int, seed: int) -> list[Record]:
    """Correctly answered records on the digit images of ``part``, shuffled, equally many of each task (up to one)."""
    rng = _rng(seed, part)
    tasks = [TASKS[place % len(TASKS)] for place in range(size)]
    rng.shuffle(tasks)
    records = []
    for task in tasks:
        record = Record(tuple(rng.sample(split()[part], GRID * GRID)), ask(task, rng), answer="")
        records.append(replace(record, answer=solve(task, record.asked_digits)))
    return records


def sources_of(defects: Sequence[str], config: DigitMath) -> list[str]:
    """The generator of each pool record; empty where the configuration names none."""
    if not config.sources:
        return []
    rng = _rng(config.seed, "sources")
    names = list(config.sources)
    with_defect = {defect: [s for s in names if defect in config.sources[s]] or names for defect in {*defects}}
    return [rng.choice(with_defect[defect]) for defect in defects]


def _write(path: Path, part: str, records: list[Record], seed: int, sources: Sequence[str] = ()) -> None:
    rows = [_row(_id(part, place), record, seed) for place, record in enumerate(records)]
    table = pa.Table.from_pylist(rows, SCHEMA)
    write_parquet(table.append_column(SOURCE_FIELD, [list(sources)]) if sources else table, path)


def _row(name: str, record: Record, seed: int) -> dict[str, object]:
    pixels = render(record.cells)
    if record.copy:
        pixels = add_noise(pixels, _rng(seed, f"copy {record.copy}"))
    turns = [{"from": "human", "value": f"{IMAGE_PLACEHOLDER}\n{record.question.text}"}]
    return {
        "id": name,
        "image": {"bytes": png(pixels), "path": f"{name}.png"},
        "conversations": [*turns, {"from": "gpt", "value": record.answer}] if record.answer else turns,
        "task": record.question.task,
    }


def _id(part: str, place: int) -> str:
    return f"{part}-{place:05d}"


def _rng(seed: int, purpose: str) -> random.Random:
    return random.Random(f"digitmath {seed} {purpose}")

"""Configurations and data for other trainers, written beside the data set."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

from ostlight.errors import DataError
from ostlight.reporting.finished_run import FinishedRun
from ostlight.sharing.llama_factory import LlamaFactory
from ostlight.sharing.ms_swift import MsSwift
from ostlight.sharing.records import Kept, KeptRecords, Overview
from ostlight.sharing.trainers import RECORDS, ImageFiles, Recipe, Trainer, TrainingPlan, UnsuitableError
from ostlight.sharing.trl import Trl

TOOLS: dict[str, type[Trainer]] = {tool.name: tool for tool in (LlamaFactory, MsSwift, Trl)}
"""The trainers that recipes are written for, by name."""


def write_recipes(
    names: Sequence[str], run: FinishedRun, kept: KeptRecords, overview: Overview, folder: Path
) -> list[Recipe]:
    """Writes a folder for each of the trainers below ``folder``, and the image files that their records name.

    A record that a trainer cannot take as it is, or would train on in another way, is left out and counted.

    Raises:
        DataError: a trainer can take none of the records.
    """
    plan = TrainingPlan(run.config, overview.records, bool(overview.images))
    tools = [TOOLS[name](plan) for name in names]
    left_out = [Counter[str]() for _ in tools]
    images = ImageFiles(folder)
    with ExitStack() as stack:
        files: list[TextIO | None] = []
        for tool in tools:
            (folder / tool.name).mkdir()
            path = folder / tool.name / RECORDS
            files.append(stack.enter_context(path.open("w", encoding="utf-8")) if tool.reads_files else None)
        for record in kept if tools else ():
            _write_record(record, tools, files, left_out, images, plan.has_images)
    recipes = []
    for tool, reasons in zip(tools, left_out, strict=True):
        if reasons.total() == overview.records:
            (reason, _), *_ = reasons.most_common(1)
            raise DataError(f"--for {tool.name}: it can take none of the {overview.records:,} records ({reason})")
        for name, text in tool.files().items():
            (folder / tool.name / name).write_text(text, encoding="utf-8")
        recipes.append(_recipe(tool, plan, reasons, images.converted))
    return recipes


def _write_record(
    record: Kept,
    tools: Sequence[Trainer],
    files: Sequence[TextIO | None],
    left_out: Sequence[Counter[str]],
    images: ImageFiles,
    has_images: bool,
) -> None:
    named: list[str] | None = None
    for tool, file, reasons in zip(tools, files, left_out, strict=True):
        try:
            row = tool.record(record.sample)
            if file is not None and named is None:
                named = images.write(record.sample)
        except UnsuitableError as error:
            reasons[str(error)] += 1
            continue
        if file is not None:
            row |= {"images": named} if has_images else {}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _recipe(tool: Trainer, plan: TrainingPlan, left_out: Counter[str], converted: int) -> Recipe:
    records = plan.records - left_out.total()
    command = [*tool.command, *([f"{tool.model_argument}{plan.model_here}"] if plan.model_here else [])]
    shown = shlex.join(command)
    note = f"{tool.name}: {records:,} records"
    if left_out:
        reasons = "; ".join(f"{count:,} with {reason}" for reason, count in left_out.most_common())
        note += f", {left_out.total():,} left out that it cannot take as they are ({reasons})"
    if converted and tool.reads_files:
        note += f", {converted:,} images as PNG files of what the run saw (turned, transparent or of more than 8 bits)"
    return Recipe(tool.name, records, shown, note, left_out)

"""Writes what a run has selected as a data set that others can load, read about and train on."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from ostlight.errors import ConfigError, DataError
from ostlight.pipeline.lock import RUN, locked
from ostlight.pipeline.selection_file import changed_settings
from ostlight.reporting.finished_run import FinishedRun
from ostlight.sharing.card import card_text
from ostlight.sharing.dataset import write_dataset
from ostlight.sharing.folder import refuse_foreign, replaced_folder, size_of
from ostlight.sharing.push import Hub
from ostlight.sharing.recipes import TOOLS, write_recipes
from ostlight.sharing.records import KeptRecords
from ostlight.sharing.trainers import Recipe
from ostlight.suggest import did_you_mean

log = logging.getLogger(__name__)

NAME = "export"
"""The folder in a run folder that an export goes to."""


@dataclass(frozen=True)
class Export:
    """What was exported.

    Attributes:
        folder: holds ``README.md``, ``data/`` and, for other trainers, a folder each.
        records: in it.
        images: in it.
        bytes: of the folder.
        left_out: selected records that are not in it, by reason.
        recipes: what was written for each of the other trainers.
        address: on the Hub; ``None`` where it was not uploaded.
    """

    folder: Path
    records: int
    images: int
    bytes: int
    left_out: Counter[str]
    recipes: list[Recipe]
    address: str | None = None


def export(
    path: str | Path,
    out: str | Path | None = None,
    *,
    tools: Sequence[str] = (),
    license: Sequence[str] = (),
    push: str | None = None,
    public: bool = False,
) -> Export:
    """Writes the selected records with their images and a card, and uploads them if asked to.

    The folder is replaced as a whole; one that holds anything else is refused.

    Args:
        path: a folder of `ostlight select`.
        out: the folder to write; ``export`` in the run folder if left out.
        tools: other trainers to write configurations and data for: ``llama-factory``, ``ms-swift``, ``trl``.
        license: of the data, as the Hub names it; by default ``pool.license``, or what the records' own field
            ``license`` states.
        push: ``OWNER/NAME`` of a data set on the Hugging Face Hub to upload to.
        public: whether everybody may see the upload.

    Raises:
        DataError: no run folder, nothing selected, another pool than it was selected from, a folder that no export
            wrote, or a Hub that refuses.
        ConfigError: an unknown trainer; no token for the Hub, or a name that it does not take.
        RunInUseError: another process selects there.
    """
    wanted = _known(tools)
    hub = Hub(push, public) if push is not None else None
    run = FinishedRun.open(path)
    target = Path(out) if out is not None else run.path / NAME
    refuse_foreign(target)
    with _nobody_selects(run.path):
        exported = _written(run, target, wanted, license)
    if hub is None:
        return exported
    address = hub.push(target)
    log.info(f"uploaded to {address} ({'public' if public else 'private'})")
    return replace(exported, address=address)


def _nobody_selects(folder: Path) -> AbstractContextManager[None]:
    """Inside, no other process changes what is selected; a folder that cannot be written in needs no lock."""
    if not os.access(folder, os.W_OK):
        return nullcontext()
    return locked(folder, RUN, "`ostlight export`", "export later", shared=True)


def _written(run: FinishedRun, target: Path, tools: Sequence[str], license: Sequence[str]) -> Export:
    kept = KeptRecords(run)
    # The budget is that of the selection itself: a later one may have been refused.
    changed = [name for name in changed_settings(run.config, kept.pool, run.folder.selection) if name != "budget"]
    if changed:
        raise DataError(
            f"{run.folder.selection} was selected with other settings than {run.path / 'config.yaml'} says now: "
            f"{', '.join(changed)}; run `ostlight select` with it first, or the card would say what is not so"
        )
    overview = kept.overview()
    if not overview.records:
        raise DataError(f"{run.path}: none of the {len(kept):,} selected records can be read as a conversation")
    licences = list(license) or run.config.pool.licenses
    with replaced_folder(target) as folder:
        files = write_dataset(kept, overview, folder)
        recipes = write_recipes(tools, run, kept, overview, folder)
        notes = [recipe.note for recipe in recipes if recipe.left_out]
        (folder / "README.md").write_text(card_text(run, kept, overview, files, licences, notes), encoding="utf-8")
    exported = Export(target, overview.records, overview.images, size_of(target), overview.left_out, recipes)
    _log(exported, bool(licences or overview.licences))
    return exported


def _known(tools: Sequence[str]) -> list[str]:
    """The names of the trainers, each once, however they are listed (``a,b``)."""
    named = [name.strip().lower() for listed in tools for name in listed.split(",") if name.strip()]
    problems = [
        f"--for: {name!r} is unknown; {did_you_mean(name, TOOLS)}known: {', '.join(TOOLS)}"
        for name in named
        if name not in TOOLS
    ]
    if problems:
        raise ConfigError(problems, "export")
    return list(dict.fromkeys(named))


def _log(exported: Export, has_licence: bool) -> None:
    log.info(
        f"export: {exported.folder} ({exported.records:,} records, {exported.images:,} images, "
        f"{exported.bytes / 1e6:,.1f} MB)"
    )
    if exported.left_out:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in exported.left_out.most_common())
        log.warning(f"{exported.left_out.total():,} selected records are no conversations and left out ({reasons})")
    if not has_licence:
        log.info("the card names no licence; add --license NAME, or set pool.license")
    for recipe in exported.recipes:
        log.info(f"{recipe.note}; in the folder: {recipe.command}")

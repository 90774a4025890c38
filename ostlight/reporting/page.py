"""The report page: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ostlight.benchmarking.table import pairs_note
from ostlight.data.atomic import atomic_write_text
from ostlight.reporting import charts, matrix, number_format
from ostlight.reporting.contents import page_contents
from ostlight.reporting.finished_run import FinishedRun

log = logging.getLogger(__name__)

NAME = "report.html"
TEMPLATES = Path(__file__).parent / "templates"


def write_report(path: str | Path, out: str | Path | None = None) -> Path:
    """Writes the report of a run folder and returns its path.

    The file carries its images, its style and its script. Its content security policy forbids it to fetch anything, and
    to run any other script, whatever the data contain.

    Args:
        path: the folder of `ostlight select` or `ostlight benchmark`.
        out: the file to write, ``report.html`` in the folder if left out.

    Raises:
        DataError: no run folder, or one of its files cannot be read.
    """
    run = FinishedRun.open(path)
    target = Path(out) if out is not None else run.path / NAME
    contents = page_contents(run)
    atomic_write_text(target, render(contents))
    for sentence in contents["missing"]:
        log.info(f"the report lacks {sentence[0].lower()}{sentence[1:]}")
    return target


def render(contents: dict[str, Any]) -> str:
    """Returns the page as text. Everything in ``contents`` is escaped."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    formats = ("signed", "plain", "flops", "duration", "percent", "clipped")
    environment.filters |= {name: getattr(number_format, name) for name in formats}
    environment.filters["thousands"] = "{:,}".format
    environment.filters["pairs_note"] = pairs_note
    sizes = ("WIDTH", "HEIGHT", "LEFT", "RIGHT", "TOP", "BOTTOM")
    environment.globals |= {name: getattr(charts, name) for name in sizes}
    environment.globals |= {"FEWEST": matrix.FEWEST, "NOT_CORRECTED": matrix.NOT_CORRECTED}
    style, script = (Markup((TEMPLATES / name).read_text()) for name in ("style.css", "script.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    written = datetime.now(UTC).strftime("%-d %B %Y, %H:%M UTC")
    page = environment.get_template("page.html")
    return page.render(**contents, style=style, script=script, script_hash=f"sha256-{digest}", written=written)

"""The page: one file that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ostlight.data.atomic import atomic_write_text
from ostlight.reporting import figures
from ostlight.reporting.contents import contents
from ostlight.reporting.run import Run

NAME = "report.html"


def write_report(path: str | Path, out: str | Path | None = None) -> Path:
    """Writes the report of a run folder, ``report.html`` in it unless ``out`` says otherwise.

    The file carries its pictures, its style and its script; its own content policy forbids it to fetch anything, or to
    run any script but that one, whatever the data say.

    Raises:
        DataError: no run folder, or one of its files cannot be read.
    """
    run = Run.open(path)
    target = Path(out) if out is not None else run.path / NAME
    atomic_write_text(target, render(contents(run)))
    return target


def render(shown: dict[str, Any]) -> str:
    """The page as text. Everything in ``shown`` is escaped."""
    environment = Environment(
        loader=PackageLoader("ostlight.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    formats = ("signed", "plain", "prefixed", "duration", "percent", "clipped")
    environment.filters |= {name: getattr(figures, name) for name in formats}
    environment.filters["thousands"] = "{:,}".format
    style, script = (_own(environment, name) for name in ("style.css", "script.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    made = datetime.now(UTC).strftime("%-d %B %Y, %H:%M UTC")
    page = environment.get_template("page.html")
    return page.render(**shown, style=style, script=script, script_hash=f"sha256-{digest}", made=made)


def _own(environment: Environment, name: str) -> Markup:
    """Text of the package's own, which needs no escaping."""
    assert environment.loader is not None, "made with one"
    return Markup(environment.loader.get_source(environment, name)[0])

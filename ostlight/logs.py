"""Logging: all stages report through ``logging.getLogger("ostlight")`` and its children.

Importing ostlight configures nothing. The command line calls ``configure_logging``; programs and notebooks may too, or
attach handlers of their own.
"""

from __future__ import annotations

import logging
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler
from rich.text import Text

from ostlight.data.sanitize import harmless
from ostlight.ranks import is_first_rank

ROOT = "ostlight"
TIMESTAMPED = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def configure_logging(verbosity: int = 0, console: Console | None = None) -> None:
    """Shows what the stages log on the console, from the first rank alone; a second call replaces the first.

    Args:
        verbosity: 0 shows what a stage does and what it came to, 1 and above debugging messages too, below 0 warnings
            and errors alone.
        console: Rich console to write to; by default standard error.
    """
    logger = logging.getLogger(ROOT)
    for handler in [h for h in logger.handlers if isinstance(h, _ConsoleHandler)]:
        logger.removeHandler(handler)
    logger.addHandler(_prepared(_ConsoleHandler(console or Console(stderr=True, highlight=False))))
    logger.setLevel(logging.DEBUG if verbosity > 0 else logging.WARNING if verbosity < 0 else logging.INFO)


def log_to_file(path: Path) -> logging.Handler:
    """Appends what is logged to a file, with timestamps and levels; returns the handler, to be removed in the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter(TIMESTAMPED))
    logging.getLogger(ROOT).addHandler(_prepared(handler))
    return handler


def _prepared(handler: logging.Handler) -> logging.Handler:
    handler.addFilter(lambda record: is_first_rank())
    return handler


class _ConsoleHandler(RichHandler):
    """One line a record, as it is: square brackets in data are no markup, and long lines are not broken."""

    def __init__(self, console: Console) -> None:
        super().__init__(console=console)

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        style = "" if record.levelno < logging.WARNING else "yellow" if record.levelno < logging.ERROR else "red"
        self.console.print(Text(prefix + harmless(self.format(record)), style=style), soft_wrap=True)

    def format(self, record: logging.LogRecord) -> str:
        return logging.Formatter("%(message)s").format(record)

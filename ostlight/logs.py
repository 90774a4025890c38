"""Logging: all stages report through ``logging.getLogger("ostlight")`` and its children.

Importing ostlight configures nothing. The command line calls ``configure_logging``; programs and notebooks may too, or
attach handlers of their own.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path

from rich.console import Console
from rich.text import Text

from ostlight.data.sanitize import printable
from ostlight.ranks import is_first_rank
from ostlight.redact import redact

ROOT = "ostlight"
PROGRESS = "ostlight.progress"
"""Logger of lines that say how far the work is."""

TIMESTAMPED = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def configure_logging(verbosity: int = 0, console: Console | None = None) -> None:
    """Shows what the stages log on the console, from the first rank alone. A second call replaces the first.

    Args:
        verbosity: 0 shows what a stage does and its results; 1 and above also debugging messages; below 0 only
            warnings and errors.
        console: Rich console to write to; by default standard error.
    """
    logger = logging.getLogger(ROOT)
    for handler in [h for h in logger.handlers if isinstance(h, _ConsoleHandler)]:
        logger.removeHandler(handler)
    logger.addHandler(_prepared(_ConsoleHandler(console or Console(stderr=True, highlight=False))))
    logger.setLevel(logging.DEBUG if verbosity > 0 else logging.WARNING if verbosity < 0 else logging.INFO)


def console_in_use() -> Console | None:
    """Returns the console that ``configure_logging`` shows messages on, or standard error where nothing was configured;
    ``None`` where only warnings are shown."""
    for handler in logging.getLogger(ROOT).handlers:
        if isinstance(handler, _ConsoleHandler):
            return handler.console if logging.getLogger(ROOT).isEnabledFor(logging.INFO) else None
    return Console(stderr=True, highlight=False)


def draws_bars(console: Console) -> bool:
    """Whether it shows progress in place."""
    return console.is_terminal or console.is_jupyter


@contextmanager
def log_to_file(path: Path) -> Iterator[logging.Handler]:
    """Appends what is logged inside the block to a file, with timestamps and levels, from the first rank alone.

    The file and its folder appear with the first message.
    """
    handler = _prepared(_LazyFileHandler(path, encoding="utf-8", delay=True))
    handler.setFormatter(_RedactingFormatter(TIMESTAMPED))
    logger = logging.getLogger(ROOT)
    logger.addHandler(handler)
    try:
        yield handler
    finally:
        logger.removeHandler(handler)
        with suppress(OSError):  # a full disk was named already
            handler.close()


def _prepared(handler: logging.Handler) -> logging.Handler:
    """Returns the handler, silent on all ranks but the first."""
    handler.addFilter(lambda record: is_first_rank())
    return handler


class _RedactingFormatter(logging.Formatter):
    """Lines, tracebacks among them, without keys and without control characters."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(redact(super().format(record)))


class _LazyFileHandler(logging.FileHandler):
    """Makes the folder when it opens the file: a refused run leaves nothing behind."""

    def _open(self) -> TextIOWrapper:
        Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
        return super()._open()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:  # of opening it
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """A log that cannot be written (a full disk) ends no run, and is said once; the console has the messages."""
        logging.getLogger(ROOT).removeHandler(self)
        error = sys.exc_info()[1]
        reason = error.strerror if isinstance(error, OSError) else error
        logging.getLogger(__name__).warning(f"{self.baseFilename} cannot be written: {reason}")


class _ConsoleHandler(logging.Handler):
    """One line a record, as it is: square brackets in data are no markup, and long lines are not broken.

    How far the work is stands in bars where the console can draw them, and in no lines.
    """

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == PROGRESS and draws_bars(self.console):
            return
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        style = "" if record.levelno < logging.WARNING else "yellow" if record.levelno < logging.ERROR else "red"
        self.console.print(Text(prefix + printable(redact(self.format(record))), style=style), soft_wrap=True)

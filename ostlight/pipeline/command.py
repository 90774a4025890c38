"""What the stages share as commands: configuration, log file, and what to run next."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ostlight.config import Config, load_config
from ostlight.errors import UNKNOWN_FILE, ConfigError
from ostlight.interrupts import Interrupted
from ostlight.logs import log_to_file
from ostlight.pipeline.run_folder import RunFolder
from ostlight.progress_display import show_progress

log = logging.getLogger(__name__)

Source = str | Path | Mapping[str, Any] | Config


@contextmanager
def command(source: Source, overrides: Sequence[str], next_verb: Callable[[Config], str]) -> Iterator[Config]:
    """Loads the configuration for a stage, appends its log to ``RUN/logs/ostlight.log``, shows its progress, logs
    what to run next.

    Args:
        source: YAML file, nested data or a ``Config``.
        overrides: ``key=value``.
        next_verb: the verb that usually follows this stage.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    config = load_config(source, *overrides)
    folder = RunFolder.path_of(config)
    with log_to_file(folder / "logs" / "ostlight.log") as handler, show_progress(config.compute.progress):
        try:
            with _naming_the_file(source):
                _log_precision(config)
                yield config
        except Interrupted as interruption:
            if folder.is_dir():
                message = f"interrupted by {interruption}"
                handler.handle(log.makeRecord(log.name, logging.WARNING, "", 0, message, (), None))
            raise
        except Exception as error:
            if folder.is_dir():  # a refused run makes no folder
                message = f"{type(error).__name__}: {error}"
                handler.handle(log.makeRecord(log.name, logging.ERROR, "", 0, message, (), sys.exc_info()))
            raise
        log.info(f"next: {_next_command(next_verb(config), source, overrides, folder)}")


def _log_precision(config: Config) -> None:
    from ostlight.training.precision import precision_line  # torch, which takes a while, after the configuration

    line = precision_line(config.compute)
    if line is not None:
        log.info(line)


@contextmanager
def _naming_the_file(source: Source) -> Iterator[None]:
    """Problems that a stage finds in the settings are those of the file, which the stage does not know."""
    try:
        yield
    except ConfigError as error:
        if error.source != UNKNOWN_FILE or not isinstance(source, str | Path):
            raise
        raise ConfigError(error.problems, str(source)) from error


def after_select(config: Config) -> str:
    """Returns ``train`` where a target is named, else ``report``."""
    return "train" if config.target.path is not None or config.digitmath is not None else "report"


def after_train(config: Config) -> str:
    """Returns ``evaluate`` where there is a test set, else ``report``."""
    return "evaluate" if config.test.path is not None or config.digitmath is not None else "report"


def _next_command(verb: str, source: Source, overrides: Sequence[str], folder: Path) -> str:
    if verb == "report":
        arguments = [str(folder)]
    elif isinstance(source, str | Path):
        arguments = [str(source), *overrides]
    else:
        arguments = [str(folder / "config.yaml")]
    return shlex.join(["ostlight", verb, *arguments])

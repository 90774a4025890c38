"""What the stages share as commands: configuration, log file, and what to run next."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from ostlight.config import Config, load_config
from ostlight.config.load import Source
from ostlight.config.overrides import Override, blamed, override_texts
from ostlight.errors import UNKNOWN_FILE, ConfigError
from ostlight.interrupts import Interrupted
from ostlight.logs import log_to_file
from ostlight.pipeline.given_records import Given, paths_given, records_in
from ostlight.pipeline.run_folder import RunFolder
from ostlight.progress_display import show_progress
from ostlight.ranks import SEPARATE_STORES, shares_store_between_restarts

log = logging.getLogger(__name__)


@contextmanager
def command(
    source: Source,
    overrides: Sequence[Override],
    next_verb: Callable[[Config], str],
    given: Given | None = None,
) -> Iterator[Config]:
    """Loads the configuration for a stage, appends its log to ``RUN/logs/ostlight.log``, shows its progress, logs
    what to run next.

    Args:
        source: YAML file, nested data or a ``Config``.
        overrides: as ``load_config`` takes them.
        next_verb: the verb that usually follows this stage.
        given: records from memory, by the section that they are for; written to ``RUN/records``.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    texts, in_memory = paths_given(override_texts(overrides), given or Given())
    config = load_config(source, *texts)
    folder = RunFolder.path_of(config)
    with log_to_file(folder / "logs" / "ostlight.log") as handler, show_progress(config.compute.progress):
        try:
            with _naming_the_file(source, texts), records_in(folder / "records", config, in_memory) as config:
                _log_precision(config)
                if shares_store_between_restarts():
                    log.warning(
                        f"ranks that torchrun restarts may not find each other: start it with {SEPARATE_STORES}=1 and "
                        f"--standalone, or --rdzv-backend c10d on several nodes"
                    )
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
        next_source = folder / "config.yaml" if in_memory else source
        log.info(f"next: {_next_command(next_verb(config), next_source, () if in_memory else texts, folder)}")


@contextmanager
def inspection(source: Source, overrides: Sequence[Override], given: Given) -> Iterator[Config]:
    """Loads the configuration for a command that keeps nothing: records from memory lie in a temporary folder.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    texts, in_memory = paths_given(override_texts(overrides), given)
    config = load_config(source, *texts)
    with ExitStack() as stack:
        stack.enter_context(show_progress(config.compute.progress))
        stack.enter_context(_naming_the_file(source, texts))
        if in_memory:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="ostlight-")))
            config = stack.enter_context(records_in(folder, config, in_memory))
        yield config


def _log_precision(config: Config) -> None:
    from ostlight.training.precision import precision_line  # torch, which takes a while, after the configuration

    line = precision_line(config.compute)
    if line is not None:
        log.info(line)


@contextmanager
def _naming_the_file(source: Source, overrides: Sequence[str]) -> Iterator[None]:
    """Problems that a stage finds in the settings are those of the file or of an override, which it does not know."""
    try:
        yield
    except ConfigError as error:
        if error.source != UNKNOWN_FILE:
            raise
        name = str(source) if isinstance(source, str | Path) else UNKNOWN_FILE
        raise blamed(error.problems, name, overrides) from error


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

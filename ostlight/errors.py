"""Every error a user can cause. A message says what was found, where, and how to fix it."""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from ostlight.redact import redact

log = logging.getLogger(__name__)

T = TypeVar("T")


class OstlightError(Exception):
    """The base of all errors this project raises on purpose; the command line prints it without a traceback."""


UNKNOWN_FILE = "config"
"""Source of a ``ConfigError`` that does not know which file the settings came from."""


class ConfigError(OstlightError):
    """The configuration cannot be used. Holds every problem found, not the first one.

    Args:
        problems: one sentence each.
        source: the file that holds them.
    """

    def __init__(self, problems: list[str], source: str = UNKNOWN_FILE) -> None:
        self.problems, self.source = problems, source
        lines = "\n".join(f"  - {p}" for p in problems)
        super().__init__(f"{source}: {len(problems)} problem{'s' if len(problems) != 1 else ''}\n{lines}")

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (self.problems, self.source)


class DataError(OstlightError):
    """A file or folder of data cannot be used at all: missing, of an unknown format, empty.

    Args:
        path: the file or folder; ``None`` where the error is about no single one.
    """

    def __init__(self, message: str, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        super().__init__(message)


class UnknownLayoutError(DataError):
    """A file whose records hold no conversation under a known name.

    Args:
        columns: a mapping of its columns that may fit (settings of ``pool.columns``), ``None`` where none suggests
            itself.
    """

    def __init__(self, message: str, path: str | Path | None, columns: dict[str, str] | None) -> None:
        self.columns = columns
        super().__init__(message, path)

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (str(self), self.path, self.columns)


class DivergedError(DataError):
    """A training whose loss is no number any more."""


class ModelError(OstlightError):
    """A model or its processor cannot be loaded.

    Args:
        setting: the setting that names it, such as ``proxy.path``.
    """

    def __init__(self, message: str, setting: str | None = None) -> None:
        self.setting = setting
        super().__init__(message)


class SelectorError(OstlightError):
    """A selector class, or what it returned, breaks the contract."""


class PendingError(SelectorError):
    """Something outside this program has to be done first, such as a batch API's replies; nothing has failed. The same
    command goes on afterwards."""


class InfluenceError(OstlightError):
    """``ostlight.influence`` cannot score with this model, these anchors or these arguments."""


class RankFailedError(OstlightError):
    """A rank of a run whose ranks compute together has failed, which ends the others."""


class RunChangedError(OstlightError):
    """A run folder holds work that was done with other inputs than those of the configuration.

    Args:
        changed: names of the inputs that differ.
    """

    def __init__(self, message: str, changed: Sequence[str] = ()) -> None:
        self.changed = list(changed)
        super().__init__(message)


class RunInUseError(OstlightError):
    """Another process works in the run folder.

    Args:
        owners: what each of them does, with host and process id.
    """

    def __init__(self, message: str, owners: Sequence[str] = ()) -> None:
        self.owners = list(owners)
        super().__init__(message)

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (str(self), self.owners)


class ClusterError(OstlightError):
    """A node of a Ray cluster cannot do its work, or processes on it were lost again and again."""


class BenchmarkError(OstlightError):
    """Parts of a benchmark failed; the rest is finished and written."""


class BadRecord(OstlightError):
    """One record cannot be used; it is rejected, and the run goes on with the rest.

    Args:
        reason: short code, the same for all records with this defect; the summary counts by it
            (``missing_image``, ``no_answer``, ...).
        detail: what was found and how to fix it, in one sentence.
        field: the field of the record that is at fault, ``None`` where it is the record as a whole.
    """

    def __init__(self, reason: str, detail: str, field: str | None = None) -> None:
        self.reason, self.detail = reason, redact(_ADDRESS.sub("", _encodable(detail)))
        self.field = field if field is None else _encodable(field)
        super().__init__(f"{reason}: {self.detail}" + (f" (field {self.field!r})" if field else ""))

    @classmethod
    def wrong_type(cls, field: str, wanted: str, value: object) -> BadRecord:
        """The error for a field of the wrong type."""
        return cls("bad_field", f"{field!r} must be {wanted}, got {type(value).__name__} {str(value)[:60]!r}", field)

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        # Worker processes hand these over pickled.
        return type(self), (self.reason, self.detail, self.field)


_ADDRESS = re.compile(r"(?<=\w) at 0x[0-9a-f]{6,}")
"""Where Python's form of an object says that it lies in memory: another place in every run."""


def _encodable(text: str) -> str:
    """The text with half characters, which names of files and JSON may hold and no table does, as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


@contextmanager
def rejecting(reason: str, what: str, field: str | None = None) -> Iterator[None]:
    """The boundary of one record: inside, whatever a library raises becomes a ``BadRecord`` with the library's words.

    It goes around calls of libraries on the data of one record (image decoders, Arrow, chat templates, processors),
    and around no more: what passes through it is an interrupt, memory that ran out, a failing disk, and every error of
    this project.

    Args:
        reason: of the ``BadRecord``.
        what: begins its detail: what could not be done.
        field: of the record.

    Raises:
        BadRecord: the block raised.
    """
    try:
        yield
    except (OstlightError, MemoryError):
        raise
    except Exception as error:
        words = " ".join(str(error).split())
        # Arrow and image decoders raise OSError without a number for bad data.
        of_machine = isinstance(error, OSError) and error.errno is not None
        if of_machine or _says_out_of_memory(words):
            raise
        raise BadRecord(reason, f"{what}: {type(error).__name__}: {words[:WORDS]}", field) from error
    except BaseException as error:
        # tokenizers is written in Rust; its panics are no Exception.
        if type(error).__name__ != "PanicException":
            raise
        raise BadRecord(reason, f"{what}: {' '.join(str(error).split())[:WORDS]}", field) from error


@contextmanager
def reading_back(path: str | Path, cure: str) -> Iterator[None]:
    """Around reading a file that this project wrote: whatever is wrong with it is one line with the cure.

    Args:
        path: the file.
        cure: what to remove, and what is then computed again.

    Raises:
        DataError: the block raised because of what the file holds.
    """
    try:
        yield
    except (OstlightError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(f"{path} cannot be read: {error.strerror}", path) from error
        words = " ".join(str(error).split())
        if _says_out_of_memory(words):
            raise
        found = f"{type(error).__name__}: {words[:WORDS]}" if words else type(error).__name__
        raise DataError(f"{path} is damaged ({found}); {cure}", path) from error


def read_if_whole(path: str | Path, read: Callable[[], T], then: str) -> T | None:
    """Returns what ``read`` makes of a file that this project wrote and can make again; ``None`` where the file is
    damaged, which a warning says.

    Args:
        path: the file.
        read: raises whatever it likes about what the file holds.
        then: what becomes of a damaged file, for the warning.

    Raises:
        DataError: the file cannot be read for a reason that does not lie in what it holds, such as its permissions.
    """
    try:
        with reading_back(path, then):
            return read()
    except DataError as error:
        cause = error.__cause__
        if cause is None or (isinstance(cause, OSError) and cause.errno is not None):
            raise
        log.warning(str(error))
        return None


def machine_problem(error: BaseException) -> str | None:
    """Returns one line where an error, or one that it came from, is of the machine: no space, no permission, a failing
    disk. ``None`` for any other.

    Libraries raise errors of their own for these, in which only the words are left.
    """
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        words = " ".join(str(one).split())
        number = one.errno if isinstance(one, OSError) else None
        found = next((n for n in CURES_OF_MACHINE if n == number or os.strerror(n) in words), None)
        if found is not None:
            file = getattr(one, "filename", None)
            what = f"{file}: {os.strerror(found)}" if file else words[:WORDS]
            return f"{what}; {CURES_OF_MACHINE[found]}"
        one = one.__cause__ or one.__context__
    return None


CURES_OF_MACHINE = {
    errno.ENOSPC: "free space on that disk and run the same command again, which goes on from what is written",
    errno.EDQUOT: "free space in your quota and run the same command again, which goes on from what is written",
    errno.EACCES: "change the permissions, or name another folder (folder=...)",
    errno.EPERM: "change the permissions, or name another folder (folder=...)",
    errno.EROFS: "name a folder that can be written (folder=...)",
    errno.EMFILE: "raise the limit (`ulimit -n`), or lower compute.workers",
    errno.EIO: "the disk or the network file system fails; look at the system's log",
    errno.ESTALE: "the network file system has lost the file; run the same command again",
}
"""Errors of the machine, by number, and what to do."""


def _says_out_of_memory(words: str) -> bool:
    return "can't allocate memory" in words or "out of memory" in words.lower()


WORDS = 300
"""Characters kept of what a library says."""


FIRST_RECORDS = 64
"""Records after which a run stops if the model can use none of them."""

OF_MODEL = frozenset(
    {
        "template_refused",
        "processor_refused",
        "labels_unproved",
        "no_vision",
        "image_size",
        "too_long",
        "unknown_token",
    }
)
"""Reasons that lie in the model as much as in the record: what all of the first records have, the rest has too."""


def stop_if_useless(stage: str, rejected: Collection[BadRecord], usable: int) -> None:
    """Checks that not all of the first records were rejected for a reason that lies in the model.

    Args:
        stage: for the message.
        rejected: of the records read so far.
        usable: number of the others.

    Raises:
        DataError: they were; holds the first reason.
    """
    if usable or len(rejected) < FIRST_RECORDS or any(error.reason not in OF_MODEL for error in rejected):
        return
    raise DataError(f"{stage}: none of the first {len(rejected)} records can be used; {next(iter(rejected))}")

"""Who works in a run folder: an exclusive stage alone, others side by side.

The locks are those of the operating system (``flock``): a process that ends in whatever way, SIGKILL too, has none any
more, and no clock is asked. They lie in ``.locks`` of the run folder, each with a file per owner, which is for messages
alone.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ostlight.errors import ConfigError, RunInUseError

log = logging.getLogger(__name__)

FOLDER = ".locks"

RUN = "run"
"""The lock of a whole run folder."""

SWEEPING_S = 3.0
"""How long a stage that may run beside others waits for one that looks for leftovers."""

NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL})
"""What a file system without locks answers."""

_held: set[int] = set()
"""File descriptors of the locks that this process has."""


@contextmanager
def locked(
    folder: Path,
    name: str,
    owner: str,
    way_out: str,
    shared: bool = False,
    while_alone: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Keeps others out of what ``name`` stands for inside the block.

    Where the file system has no locks, a warning says so.

    Args:
        folder: the run folder, which exists.
        owner: what this process does, for the messages that others get.
        way_out: what they can do besides waiting.
        shared: others that share may be there too.
        while_alone: called at the beginning if nobody else is there.

    Raises:
        ConfigError: the folder cannot be written in.
        RunInUseError: another process has it; the message names its host and process id.
    """
    file = folder / FOLDER / name
    note = file.with_name(f"{name}@{socket.gethostname()}@{os.getpid()}@{uuid.uuid4().hex[:6]}")
    with _opened(file) as descriptor:
        kind = _acquire(descriptor, shared)
        if kind is None:
            found = owners(folder, name)
            raise RunInUseError(
                f"{folder} is in use by {', '.join(found) or 'another process'}; wait for it, stop it, or {way_out}",
                found,
            )
        if kind == fcntl.LOCK_EX:
            for stale in _notes(folder, name):
                stale.unlink(missing_ok=True)
            while_alone()
        try:
            note.write_text(f"{owner} (pid {os.getpid()} on {socket.gethostname()})")
            if shared and kind == fcntl.LOCK_EX:
                fcntl.flock(descriptor, fcntl.LOCK_SH)
            yield
        finally:
            note.unlink(missing_ok=True)


@contextmanager
def updating(folder: Path) -> Iterator[None]:
    """Lets one process at a time read and rewrite what stages that run side by side share; the others wait."""
    with _opened(folder / FOLDER / "update") as descriptor:
        with suppress(OSError):  # no locks there: said when the run folder was locked
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


@contextmanager
def _opened(file: Path) -> Iterator[int]:
    """A file descriptor for locks on a file, which is made; closed, and its locks released, in every fork too."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        problem = f"folder: cannot write {file}: {error.strerror}; name another with folder=... or name=..."
        raise ConfigError([problem]) from error
    _held.add(descriptor)
    try:
        yield descriptor
    finally:
        if descriptor in _held:  # not so in a fork
            _held.remove(descriptor)
            with suppress(OSError):  # a fork that has just begun may have a copy of the descriptor
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


def owners(folder: Path, name: str = RUN) -> list[str]:
    """Returns who has a lock, as far as they have said so and are not known to be dead."""
    texts = []
    for note in _notes(folder, name):
        _, host, pid, _ = note.name.rsplit("@", 3)
        with suppress(OSError):
            if host != socket.gethostname() or _is_alive(int(pid)):
                texts.append(note.read_text())
    return texts


def in_use_by(folder: Path) -> list[str]:
    """Returns who works alone in a run folder now; nobody where it is free, or in shared use."""
    try:
        descriptor = os.open(folder / FOLDER / RUN, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        return [] if _acquire(descriptor, True, 0) is not None else owners(folder) or ["another process"]
    finally:
        os.close(descriptor)


def _notes(folder: Path, name: str) -> list[Path]:
    return [note for note in sorted((folder / FOLDER).glob("*@*@*@*")) if note.name.rsplit("@", 3)[0] == name]


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _acquire(descriptor: int, shared: bool, patience_s: float = SWEEPING_S) -> int | None:
    """Returns the kind of lock that was had; ``LOCK_UN`` where the file system has none, ``None`` where another process
    has it."""
    kinds = [fcntl.LOCK_EX, fcntl.LOCK_SH] if shared else [fcntl.LOCK_EX]
    deadline = time.monotonic() + (patience_s if shared else 0)
    while True:
        for kind in kinds:
            try:
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
                return kind
            except OSError as error:
                if error.errno in NO_LOCKS:
                    log.warning("the run folder's file system has no locks: let no other process work in it")
                    return fcntl.LOCK_UN
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.1)


def _forget() -> None:
    """In a fork, such as a worker that reads ahead: it must not hold the lock of a process that is gone."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget)

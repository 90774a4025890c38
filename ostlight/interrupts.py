"""Signals end a run: at once, or, while a training steps, as soon as its state is saved.

Only the command line listens (``listening``). Elsewhere signals do what the program around has them do, and the other
functions here do nothing.

The handler of a signal runs in the main thread between two Python instructions, which may be minutes away while that
thread waits for a device or for another rank. So a second thread is told of signals too: it ends the process when the
grace period is over, or when a second signal comes.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol

GRACE_S = 8.0
"""Seconds after a signal until the process ends, whatever it does."""

REQUEUE_GRACE_S = 60.0
"""After SLURM's announcement that the time is up; ``--signal=SIGUSR1@90`` sends it 90 seconds before."""

BURST_S = 1.0
"""Ranks get one interrupt several times, from the terminal and from what has started them: not a second one."""

REQUEUE = int(signal.SIGUSR1)
"""SLURM's announcement, where the job asks for it."""

NAMES = {int(number): number.name for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}


class Interrupted(BaseException):
    """A signal ends the run.

    No ``KeyboardInterrupt``: Lightning would turn that into the exit status 1.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(NAMES.get(number, str(number)))
        self.number = number


class Process(Protocol):
    """A process that this one has started."""

    def send_signal(self, number: int, /) -> None: ...


@dataclass
class _Listener:
    """What has been received.

    Attributes:
        at_end: is called with the number before the process ends because the grace period is over.
        number: of the first signal; ``None`` before.
        is_held: whether the state is not whole, and the first signal is only noted.
        is_raised: whether ``Interrupted`` was raised.
        children: get the same signal.
    """

    at_end: Callable[[int], None]
    number: int | None = None
    is_held: bool = False
    is_raised: bool = False
    children: list[Process] = field(default_factory=list)

    def handle(self, number: int, frame: object) -> None:
        """In the main thread."""
        if self.number is None:
            self.number = number
        if not self.is_held and not self.is_raised:
            self.is_raised = True
            raise Interrupted(self.number)

    def watch(self, pipe: int) -> None:
        """In the second thread: reads the numbers of signals; a 0 ends it."""
        first = self._next(pipe, None)
        if not first:
            return
        self.number, began = self.number or first, time.monotonic()
        for child in self.children:
            with suppress(OSError):
                child.send_signal(first)
        grace = REQUEUE_GRACE_S if first == REQUEUE else GRACE_S
        while (left := began + grace - time.monotonic()) > 0:
            again = self._next(pipe, left)
            if again == 0:
                return
            if again is not None and (not is_rank() or time.monotonic() - began > BURST_S):
                break
        self.at_end(first)
        os._exit(128 + first)

    @staticmethod
    def _next(pipe: int, timeout: float | None) -> int | None:
        """Returns the number of the next signal of ours; ``None`` when the time is over."""
        while select.select([pipe], [], [], timeout)[0]:
            number = os.read(pipe, 1)[0]
            if number == 0 or number in NAMES:
                return number
        return None


_listener: _Listener | None = None


@contextmanager
def listening(at_end: Callable[[int], None]) -> Iterator[None]:
    """Inside, SIGINT and SIGTERM, and SIGUSR1 in a job of SLURM, raise ``Interrupted`` in the main thread.

    An interrupt that is ignored, as in the background of a shell script, stays ignored. Once there was a signal the
    process is bound to end: leaving the block does not end the watch.

    Args:
        at_end: is called with the number of the signal, in another thread, before the process ends unfinished.
    """
    global _listener
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [signal.SIGTERM, *([signal.SIGUSR1] if "SLURM_JOB_ID" in os.environ else [])]
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        numbers.append(signal.SIGINT)
    listener = _listener = _Listener(at_end)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    threading.Thread(target=listener.watch, args=(reading,), daemon=True, name="signals").start()
    woken_before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    before = {number: signal.signal(number, listener.handle) for number in numbers}
    try:
        yield
    finally:
        if listener.number is None:
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(woken_before)
            _listener = None
            os.write(writing, b"\0")


def _leave_to_parent() -> None:
    """In a fork: the parent is told, and ends its children."""
    global _listener
    if _listener is not None:
        _listener = None
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


os.register_at_fork(after_in_child=_leave_to_parent)


def is_rank() -> bool:
    """Whether this process is one of several that compute together."""
    return "LOCAL_RANK" in os.environ or "SLURM_PROCID" in os.environ


def received() -> int | None:
    """Returns the number of the signal that ends this process; ``None`` where there was none."""
    return None if _listener is None else _listener.number


def hold() -> None:
    """From here on a signal is only noted: whoever holds asks ``received`` wherever the state is whole."""
    if _listener is not None:
        _listener.is_held = True


def release() -> None:
    """Ends ``hold``.

    Raises:
        Interrupted: there was a signal in the meantime.
    """
    if _listener is not None and _listener.is_held:
        _listener.is_held = False
        if _listener.number is not None and not _listener.is_raised:
            raise_interrupted(_listener.number)


def raise_interrupted(number: int) -> None:
    """Raises:
    Interrupted: always; also where the signal came to another rank.
    """
    if _listener is not None:
        _listener.is_raised = True
        _listener.number = _listener.number or number
    raise Interrupted(number)


def pass_on_to(children: Sequence[Process]) -> None:
    """These processes get the signal too."""
    if _listener is not None:
        _listener.children += children


def listen_again() -> None:
    """Takes the signals back from a library that has set handlers of its own."""
    if _listener is not None:
        signal.signal(signal.SIGTERM, _listener.handle)

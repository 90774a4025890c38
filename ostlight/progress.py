"""How far the work is: phases that a display may show while they last.

Any package may open phases, `ostlight.influence` too: there is nothing here but the standard library. Without a
display, which is how a program finds it, a phase is a counter. ``ostlight.progress_display`` has displays.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

log = logging.getLogger("ostlight.display")

SHOWN_AFTER = 2.0
"""Seconds that a phase lasts before it is shown."""

SETTLED_AFTER, SETTLED_SHARE = 10.0, 0.01
"""Seconds, and share of the whole, after which the rate so far says how long the rest will take."""

Item = TypeVar("Item")


@dataclass(eq=False)
class Phase:
    """A part of the work.

    Attributes:
        what: is being done, in a few words.
        total: how much there is to do; ``None`` where nobody knows.
        unit: what is counted, in the plural.
        done: so much of it is done.
        first: how much of it was done when the phase began.
        started: by ``time.monotonic``.
        estimate: seconds left at a time of ``time.monotonic``, ``None`` where it is not known; by default the rate so
            far says it, which needs items that take about as long.
    """

    what: str
    total: float | None = None
    unit: str = ""
    done: float = 0
    first: float = 0
    started: float = field(default_factory=time.monotonic)
    estimate: Callable[[float], float | None] | None = None

    def advance(self, count: float = 1) -> None:
        """So much more is done."""
        self.done += count

    def left(self, now: float) -> float | None:
        """Seconds that it will take at the rate so far; ``None`` where that is not known, or known from too little:
        what is done first (loading, compiling, the first batch of a size) is slower than the rest."""
        if self.estimate is not None:
            return self.estimate(now)
        here = self.done - self.first
        if self.total is None or here <= 0:
            return None
        if now - self.started < SETTLED_AFTER or here < SETTLED_SHARE * self.total:
            return None
        return (now - self.started) * max(0.0, self.total - self.done) / here


class Display(Protocol):
    """Shows phases. It is called from a thread of its own, never twice at once."""

    interval: float
    """Seconds between two calls of ``show``."""

    def show(self, phases: Sequence[Phase], now: float) -> None:
        """Called again and again with all phases that have lasted long enough, the outermost first; maybe none."""

    def close(self) -> None:
        """Called once, at the end."""


@contextmanager
def phase(what: str, total: float | None = None, unit: str = "", done: float = 0) -> Iterator[Phase]:
    """The block is a phase of the work; it calls ``advance`` on what it is given.

    Args:
        what, total, unit: as in ``Phase``.
        done: how much was done before, where the work resumes.
    """
    opened = Phase(what, total, unit, done, done)
    if _watch is None:
        yield opened
        return
    _open.append(opened)
    try:
        yield opened
    finally:
        if opened in _open:  # a fork begins without any
            _open.remove(opened)


def track(items: Iterable[Item], what: str, total: float | None = None, unit: str = "") -> Iterator[Item]:
    """The items, each counted once the caller has done with it: ``for batch in track(batches, "k-means", 10):``.

    Args:
        total: how many they are; by default their length, where they have one.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with phase(what, total, unit) as opened:
        for item in items:
            yield item
            opened.done += 1


@contextmanager
def shown_by(display: Display) -> Iterator[None]:
    """Inside, phases are shown by ``display``; where another one shows them already, that one goes on."""
    global _watch
    if _watch is not None:
        yield
        return
    _watch = _Watch(display)
    _watch.start()
    try:
        yield
    finally:
        watch, _watch = _watch, None
        if watch is not None:  # a fork has none
            watch.end()
        _open.clear()


class _Watch(threading.Thread):
    """Calls the display. The work itself only counts: it is not slowed down by what looks at it."""

    def __init__(self, display: Display) -> None:
        super().__init__(name="ostlight-progress", daemon=True)
        self._display, self._ended = display, threading.Event()

    def run(self) -> None:
        while not self._ended.wait(self._display.interval):
            now = time.monotonic()
            with _showing:
                try:
                    self._display.show([p for p in tuple(_open) if now - p.started >= SHOWN_AFTER], now)
                except Exception as error:  # a terminal that was closed, say: the work goes on
                    log.warning(f"progress is no longer shown: {type(error).__name__}: {error}")
                    return

    def end(self) -> None:
        self._ended.set()
        self.join()
        self._display.close()


_open: list[Phase] = []
_watch: _Watch | None = None
_showing = threading.Lock()
"""Held while a display writes, and while the process forks: a child must not begin inside of a display's locks."""


def _in_child() -> None:
    global _watch
    _watch = None
    _open.clear()
    _showing.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_showing.acquire, after_in_parent=_showing.release, after_in_child=_in_child)

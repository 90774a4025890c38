"""Shows phases of the work: as bars in a terminal, as text in a notebook, and as lines of the log."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from ostlight.logs import PROGRESS, console_in_use
from ostlight.progress import Display, Phase, shown_by
from ostlight.ranks import is_first_rank

log = logging.getLogger(PROGRESS)

LINE_EVERY = 10.0
"""Seconds between two lines of the log about the same phases."""


@contextmanager
def show_progress(on: bool = True) -> Iterator[None]:
    """Inside, the first rank shows every phase longer than two seconds: what it does, how far it is, and how long it
    will take. In a terminal as bars, in a notebook as text, and as lines of the log, which go to its file and, where
    standard error is no terminal, there.

    Args:
        on: off, nothing is shown.
    """
    if not on or not is_first_rank():
        yield
        return
    with shown_by(_Displays(_displays())):
        yield


def text(phase: Phase, now: float) -> str:
    """How far a phase is: ``12 of 33 vectors, 0:41 so far, about 1:12 left``."""
    unit = f" {phase.unit}" if phase.unit else ""
    parts = []
    if phase.total is not None:
        parts.append(f"{phase.done:,.0f} of {phase.total:,.0f}{unit}")
    elif phase.done:
        parts.append(f"{phase.done:,.0f}{unit}")
    parts.append(f"{_clock(now - phase.started)} so far")
    left = phase.left(now)
    return ", ".join(parts + ([] if left is None else [f"about {_clock(left)} left"]))


def line(phases: Sequence[Phase], now: float) -> str:
    """All phases, the outermost first."""
    return "; ".join(f"{phase.what}: {text(phase, now)}" for phase in phases)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _displays() -> list[Display]:
    console = console_in_use()
    if console is None:
        return [LogLines()]
    if console.is_jupyter:
        return [LogLines(), NotebookText()]
    return [LogLines(), TerminalBars(console)] if console.is_terminal else [LogLines()]


class LogLines:
    """A line when a phase has lasted long enough, and one every ten seconds from then on."""

    interval = 0.5

    def __init__(self) -> None:
        self._shown: dict[str, float] = {}

    def show(self, phases: Sequence[Phase], now: float) -> None:
        # By name: a phase that comes again and again is not new each time.
        if phases and now - self._shown.get(phases[-1].what, float("-inf")) >= LINE_EVERY:
            self._shown |= {phase.what: now for phase in phases}
            log.info(line(phases, now))

    def close(self) -> None:
        pass


class TerminalBars:
    """A bar for each phase below what is logged; gone once the phase is over."""

    interval = 0.25

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: Progress | None = None
        self._tasks: dict[Phase, TaskID] = {}

    def show(self, phases: Sequence[Phase], now: float) -> None:
        if not phases:
            self.close()
            return
        if self._bars is None:
            name, far = (TextColumn(part, markup=False) for part in ("{task.description}", "{task.fields[text]}"))
            columns = (name, BarColumn(bar_width=20), far)
            self._bars = Progress(*columns, console=self._console, auto_refresh=False, transient=True)
            self._bars.start()
        for phase in [phase for phase in self._tasks if phase not in phases]:
            self._bars.remove_task(self._tasks.pop(phase))
        for phase in phases:
            if phase not in self._tasks:
                self._tasks[phase] = self._bars.add_task("", total=phase.total, text="")
            self._bars.update(self._tasks[phase], description=phase.what, completed=phase.done, text=text(phase, now))
        self._bars.refresh()

    def close(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
            self._tasks.clear()


class NotebookText:
    """One output that changes, without widgets, which not every notebook has."""

    interval = 1.0

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, phases: Sequence[Phase], now: float) -> None:
        if phases or self._handle is not None:
            self._write("\n".join(line([phase], now) for phase in phases))

    def close(self) -> None:
        if self._handle is not None:
            self._write("")

    def _write(self, content: str) -> None:
        from IPython.display import display

        data = {"text/plain": content}
        if self._handle is None:
            self._handle = display(data, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._handle.update(data, raw=True)


class _Displays:
    """Several at once."""

    def __init__(self, displays: Sequence[Display]) -> None:
        self._displays = displays
        self.interval = min(display.interval for display in displays)

    def show(self, phases: Sequence[Phase], now: float) -> None:
        for display in self._displays:
            display.show(phases, now)

    def close(self) -> None:
        for display in self._displays:
            display.close()

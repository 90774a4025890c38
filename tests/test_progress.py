"""What phases count, when they are shown, and how: in a terminal, in a notebook, in the log."""

from __future__ import annotations

import io
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence

import pytest
from rich.console import Console

from ostlight import progress
from ostlight.logs import configure_logging
from ostlight.progress import Phase, phase, shown_by, track
from ostlight.progress_display import LogLines, TerminalBars, show_progress, text


class Seen:
    """A display that remembers what it was shown."""

    interval = 0.01

    def __init__(self) -> None:
        self.shown: list[list[tuple[str, float]]] = []
        self.closed = False

    def show(self, phases: Sequence[Phase], now: float) -> None:
        self.shown.append([(p.what, p.done) for p in phases])

    def close(self) -> None:
        self.closed = True

    def names(self) -> set[str]:
        return {what for phases in self.shown for what, _ in phases}


def until(condition: object, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.005)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SHOWN_AFTER", 0.0)


@pytest.fixture
def configured() -> Iterator[io.StringIO]:
    """A pipe that what is logged goes to."""
    stream = io.StringIO()
    configure_logging(console=Console(file=stream, width=200))
    yield stream
    logging.getLogger("ostlight").handlers.clear()


def test_phases_within_phases_are_shown_the_outermost_first_and_are_gone_afterwards(soon: None) -> None:
    seen = Seen()
    with shown_by(seen):
        with phase("trials", 2) as outer, phase("training", 5, "steps") as inner:
            inner.advance(3)
            until(lambda: [("trials", 0), ("training", 3)] in seen.shown)
            outer.advance()
        seen.shown.clear()
        until(lambda: seen.shown)
    assert seen.shown[-1] == []
    assert seen.closed


def test_a_short_phase_is_not_shown() -> None:
    seen = Seen()
    with shown_by(seen), phase("short"):
        until(lambda: len(seen.shown) > 3)
    assert seen.names() == set()


def test_track_counts_what_the_caller_has_done_with(soon: None) -> None:
    seen = Seen()
    with shown_by(seen):
        for k in track("abc", "letters"):
            seen.shown.clear()
            until(lambda: seen.shown)
            assert seen.shown[-1] == [("letters", "abc".index(k))]


def test_without_a_display_nothing_is_kept_and_items_come_through() -> None:
    assert list(track(iter([1, 2]), "numbers")) == [1, 2]
    with phase("alone", 3) as alone:
        alone.advance(2)
    assert alone.done == 2
    assert progress._open == []


def test_a_phase_that_fails_or_is_broken_off_is_over(soon: None) -> None:
    with shown_by(Seen()):
        with pytest.raises(ValueError, match="no"), phase("failing"):
            raise ValueError("no")
        for _ in track([1, 2, 3], "broken off"):
            break
        assert progress._open == []


def test_the_outer_display_goes_on_within_another(soon: None) -> None:
    outer, inner = Seen(), Seen()
    with shown_by(outer):
        with shown_by(inner), phase("inside"):
            until(lambda: "inside" in outer.names())
        assert not outer.closed
    assert inner.shown == []


def test_a_display_that_fails_does_not_stop_the_work(soon: None, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Seen):
        def show(self, phases: Sequence[Phase], now: float) -> None:
            raise OSError("closed")

    with caplog.at_level(logging.WARNING, "ostlight"), shown_by(Broken()), phase("work"):
        until(lambda: caplog.records)
    assert "closed" in caplog.text


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_a_fork_while_a_display_writes_has_its_locks_free() -> None:
    class Locked(Seen):
        def __init__(self) -> None:
            super().__init__()
            self.lock = threading.Lock()

        def show(self, phases: Sequence[Phase], now: float) -> None:
            with self.lock:
                time.sleep(0.02)

    display = Locked()
    with shown_by(display), phase("forking"):
        for _ in range(5):
            child = os.fork()
            if not child:
                free = display.lock.acquire(timeout=5)
                with phase("in the child"):
                    os._exit(0 if free and not progress._open else 1)
            assert os.waitpid(child, 0)[1] == 0


def test_how_far_and_how_long() -> None:
    assert text(Phase("made", 33, "vectors", 11, started=0.0), 60.0) == "11 of 33 vectors, 1:00 so far, about 2:00 left"
    assert text(Phase("clusters", started=0.0), 4000.0) == "1:06:40 so far"
    assert text(Phase("train", 100, "steps", started=0.0), 3.0) == "0 of 100 steps, 0:03 so far"


def test_a_resumed_phase_is_timed_by_what_it_did_itself() -> None:
    resumed = Phase("train", 100, "steps", done=60, first=50, started=0.0)
    assert resumed.left(20.0) == 80.0


def test_the_first_steps_do_not_say_how_long_the_rest_takes() -> None:
    assert Phase("train", 1000, "steps", done=100, started=0.0).left(9.0) is None, "too soon"
    assert Phase("train", 1000, "steps", done=9, started=0.0).left(60.0) is None, "too few"
    assert Phase("train", 1000, "steps", done=10, started=0.0).left(10.0) == 990.0


def test_lines_are_ten_seconds_apart_and_a_new_phase_has_its_own(caplog: pytest.LogCaptureFixture) -> None:
    lines, outer = LogLines(), Phase("trials", 12, started=0.0)
    with caplog.at_level(logging.INFO, "ostlight"):
        for tick in range(300):
            now = tick / 10
            # A training of five seconds in each trial comes six times.
            lines.show([outer, Phase("training", started=now - now % 5)], now)
    assert [record.getMessage().split("; ")[0] for record in caplog.records] == [
        "trials: 0 of 12, 0:00 so far",
        "trials: 0 of 12, 0:10 so far",
        "trials: 0 of 12, 0:20 so far",
    ]
    with caplog.at_level(logging.INFO, "ostlight"):
        lines.show([Phase("writing", started=25.0)], 27.0)
    assert caplog.records[-1].getMessage() == "writing: 0:02 so far"


def test_into_a_pipe_go_plain_lines(soon: None, configured: io.StringIO) -> None:
    with show_progress(), phase("gradient vectors", 33, "vectors") as made:
        made.advance(3)
        until(lambda: "gradient vectors" in configured.getvalue())
    shown = configured.getvalue()
    assert shown.startswith("gradient vectors: 3 of 33 vectors, 0:0")
    assert "\x1b" not in shown
    assert len(shown.splitlines()) == 1


def test_a_terminal_has_bars_and_no_lines(soon: None) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120, legacy_windows=False)
    configure_logging(console=console)
    try:
        with show_progress():
            with phase("[trials]", 12) as trials, phase("training", 4, "steps"):
                trials.advance()
                until(lambda: "━" in stream.getvalue())
                logging.getLogger("ostlight").info("a line of the log")
            until(lambda: "a line of the log" in stream.getvalue())
        shown = stream.getvalue()
    finally:
        logging.getLogger("ostlight").handlers.clear()
    assert "[trials]" in shown
    assert "1 of 12" in shown
    assert "trials]: " not in shown, "no line beside the bar"
    assert shown.rstrip().endswith("\x1b[2K"), "the bars are gone"


def test_bars_of_phases_that_are_over_are_removed() -> None:
    bars = TerminalBars(Console(file=io.StringIO(), force_terminal=True, width=100))
    first, second = Phase("first", 2, started=0.0), Phase("second", started=0.0)
    bars.show([first, second], 3.0)
    bars.show([second], 4.0)
    assert bars._bars is not None
    assert [task.description for task in bars._bars.tasks] == ["second"]
    bars.show([], 5.0)
    assert bars._bars is None


@pytest.mark.parametrize("silenced", ["off", "quiet", "another rank"])
def test_nothing_is_shown(silenced: str, soon: None, configured: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    if silenced == "another rank":
        monkeypatch.setenv("RANK", "1")
    if silenced == "quiet":
        configure_logging(-1, Console(file=configured, width=200))
    with show_progress(silenced != "off"), phase("work"):
        time.sleep(0.7)
    assert configured.getvalue() == ""


def test_in_a_notebook_one_output_changes() -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    code = """
import time
from ostlight import progress
from ostlight.progress_display import show_progress
progress.SHOWN_AFTER = 0.0
with show_progress():
    for _ in progress.track(range(3), "encoding", unit="samples"):
        time.sleep(1.2)
"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    seen: list[str] = []

    class Client(nbclient.NotebookClient):
        def process_message(self, message, cell, index):  # type: ignore[no-untyped-def]
            content = message.get("content", {})
            if message["msg_type"] in ("display_data", "update_display_data"):
                seen.append(content["data"]["text/plain"])
            return super().process_message(message, cell, index)

    Client(notebook, timeout=120, kernel_name="python3").execute()
    assert any(shown.startswith("encoding: 1 of 3 samples, 0:0") for shown in seen)
    assert seen[-1] == ""
    assert len(notebook.cells[0].outputs) == 1


def test_counting_costs_less_than_a_microsecond() -> None:
    items = range(200_000)
    with shown_by(Seen()):
        start = time.perf_counter()
        for _ in track(items, "numbers"):
            pass
        taken = time.perf_counter() - start
    assert taken / len(items) < 5e-6, "five times what it takes, for a busy machine"

"""Workers that die: what they held has failed; one that held nothing is not started for ever."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from ostlight.errors import BenchmarkError
from ostlight.run.tasks import Room
from ostlight.stages import workers


def test_a_worker_that_dies_without_a_task_ends_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    started = []

    def start(*_: object) -> subprocess.Popen[bytes]:
        code = "raise SystemExit(3)" if not started else "import time; time.sleep(60)"
        started.append(subprocess.Popen([sys.executable, "-c", code]))
        return started[-1]

    monkeypatch.setattr(workers, "_start", start)
    with pytest.raises(BenchmarkError, match="a worker process ended with code 3 before it took a task"):
        workers.share(tmp_path, Room(tmp_path / "work", time.time()), [{}, {}], lambda: 2)
    assert len(started) == 2
    assert started[1].returncode is not None, "the others are stopped"

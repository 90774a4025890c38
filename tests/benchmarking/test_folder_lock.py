"""One benchmark a folder at a time."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ostlight.benchmarking.folder_lock import lock_folder
from ostlight.errors import BenchmarkError

HOLD = (
    "import sys; from pathlib import Path; from ostlight.benchmarking.folder_lock import lock_folder\n"
    "with lock_folder(Path(sys.argv[1])): print('locked', flush=True); sys.stdin.read()"
)


def test_a_folder_in_use_is_refused_with_the_host_and_process_of_its_owner(tmp_path: Path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        for _ in range(2):  # a refused attempt must not lose the owner
            with pytest.raises(BenchmarkError) as refused, lock_folder(tmp_path):
                pass
            assert f"pid {other.pid} on {socket.gethostname()}" in str(refused.value)
        other.kill()
    with lock_folder(tmp_path), pytest.raises(BenchmarkError, match=f"pid {os.getpid()} "), lock_folder(tmp_path):
        pass


def test_a_folder_is_free_afterwards_even_if_the_benchmark_failed(tmp_path: Path):
    with pytest.raises(ZeroDivisionError), lock_folder(tmp_path):
        _ = 1 / 0
    with lock_folder(tmp_path):
        pass

"""One benchmark a folder at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from ostlight.benchmarking.folder_lock import lock_folder
from ostlight.errors import BenchmarkError


def test_a_folder_in_use_is_refused(tmp_path: Path):
    with (
        lock_folder(tmp_path),
        pytest.raises(BenchmarkError, match="is in use by another"),
        lock_folder(tmp_path),
    ):
        pass


def test_a_folder_is_free_afterwards_even_if_the_benchmark_failed(tmp_path: Path):
    with pytest.raises(ZeroDivisionError), lock_folder(tmp_path):
        _ = 1 / 0
    with lock_folder(tmp_path):
        pass

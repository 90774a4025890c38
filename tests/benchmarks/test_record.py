"""What stands beside every figure of a benchmark."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from _record import Recorder


def recorded(out: Path, device: str) -> dict[str, object]:
    Recorder("bench", out, device).add(case="c", metric="m", value=1.0, unit="s", n=1)
    return json.loads(out.read_text())


def test_the_environment_is_whole(tmp_path: Path) -> None:
    versions = recorded(tmp_path / "out.jsonl", "cpu")["versions"]
    assert isinstance(versions, dict)
    assert versions["os"] == platform.platform()
    assert versions["numpy"] == np.__version__
    assert {"python", "torch"} <= set(versions)
    assert "driver" not in versions


@pytest.mark.parametrize(
    ("told", "driver"),
    [
        ("550.54.15\n550.54.15\n", "550.54.15"),
        (FileNotFoundError("nvidia-smi"), "unknown"),
        (subprocess.CalledProcessError(9, "nvidia-smi"), "unknown"),
    ],
)
def test_a_gpu_is_named_with_its_memory_and_driver(
    told: str | Exception, driver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = subprocess.run

    def run(command: list[str], **options: object) -> object:
        if command[0] != "nvidia-smi":
            return plain(command, **options)  # type: ignore[call-overload]
        if isinstance(told, Exception):
            raise told
        return SimpleNamespace(stdout=told)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: SimpleNamespace(total_memory=139.8 * 2**30))
    record = recorded(tmp_path / "out.jsonl", "cuda")
    assert record["device"] == "NVIDIA H200, 139.8 GiB"
    assert record["versions"]["driver"] == driver  # type: ignore[index]


def test_without_history_the_environment_tells_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "no_git"))
    monkeypatch.setenv("OSTLIGHT_COMMIT", "0123456789ab")
    assert recorded(tmp_path / "told.jsonl", "cpu")["commit"] == "0123456789ab"
    monkeypatch.delenv("OSTLIGHT_COMMIT")
    assert recorded(tmp_path / "untold.jsonl", "cpu")["commit"] == "unknown"

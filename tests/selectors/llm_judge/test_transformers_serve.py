"""`transformers serve`, a server we did not write, with a tiny model that answers in JSON."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from tiny_judge import RUBRIC, taught

from ostlight_selectors.llm_judge.rubric import Rubric

pytestmark = pytest.mark.slow
LESSONS = 6
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def rubric(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("rubric") / "good_bad.yaml"
    file.write_text(RUBRIC)
    return file


@pytest.fixture(scope="module")
def tiny(samples, rubric: Path, tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """The model's folder, and the reply it gives to each sample."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("judge")
    return folder, taught(samples("pool")[:LESSONS], Rubric.read(str(rubric)), folder)


@pytest.fixture(scope="module")
def served(tiny, tmp_path_factory):
    """Address of `transformers serve` with the model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    log = tmp_path_factory.mktemp("serve") / "log.txt"
    command = ["transformers", "serve", str(tiny[0]), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=_with_scripts(environment))
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(30)


def _with_scripts(environment: dict[str, str]) -> dict[str, str]:
    import sys

    return environment | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"}


def _wait_for(address: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"transformers serve did not start: {log.read_text()[-2000:]}")


def test_the_replies_of_a_real_server(samples, tiny, rubric: Path, served: str, judge):
    folder, replies = tiny
    pool = samples("pool")[:LESSONS]
    asked = judge(served, rubric=str(rubric), max_tokens=40, timeout_s=120)
    asked.options.model = str(folder)
    outcomes = asked.judge(pool, CPU)
    assert [o.text for o in outcomes] == [replies[s.id] for s in pool]
    assert [o.score for o in outcomes] == [1.0, 0.0] * (LESSONS // 2)
    assert [o.reason for o in outcomes] == ["right", "wrong"] * (LESSONS // 2)
    # This server passes over `logprobs` in silence: the score is the one written, and says so.
    assert {o.mode for o in outcomes} == {"reply"}
    usage = asked.server._usage
    assert usage.calls == LESSONS
    assert usage.tokens_in > 10 * LESSONS
    assert usage.tokens_out > 5 * LESSONS
    one_word = judge(served, rubric=str(rubric), mode="logprobs")
    one_word.options.model = str(folder)
    assert {o.reason for o in one_word.judge(pool, CPU)} == {"no_logprobs"}

"""Signals end every stage of the command line: state is kept, a line says how to go on, the exit status tells."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from forks import run_script
from safetensors.torch import load_file

from ostlight.interrupts import GRACE_S
from ostlight.pipeline.cost_log import CostLog

pytestmark = pytest.mark.slow

SCRIPT = '''
import ctypes
import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from forks import forked
from ostlight import cli, interrupts

job = json.loads(Path(sys.argv[1]).read_text())
reached, told = Path(job["folder"]) / "reached", Path(job["folder"]) / "told"


def wait_for_signal():
    """What a stage does in the middle of something."""
    if int(os.environ.get("LOCAL_RANK", 0)) != job["signalled"]:
        return
    reached.touch()
    while interrupts.received() is None:  # the signal may raise here
        time.sleep(0.01)


def wait_in_native_code():
    """Nothing written in Python runs in this thread any more."""
    interrupts.pass_on_to([Told()])
    lock = ctypes.create_string_buffer(64)
    mutex = ctypes.CDLL(None).pthread_mutex_lock
    mutex(lock)
    reached.touch()
    mutex(lock)


class Told:
    def send_signal(self, number):
        told.touch()


def patched(place, wait, calls):
    """Waits in the given call of a function, before it does anything."""
    module, *names = place.split(":")
    owner = importlib.import_module(module)
    for name in names[:-1]:
        owner = getattr(owner, name)
    function, seen = getattr(owner, names[-1]), []

    def waiting(*arguments, **named):
        seen.append(1)
        if len(seen) == calls:
            wait()
        return function(*arguments, **named)

    setattr(owner, names[-1], waiting)


def command():
    signal.signal(signal.SIGINT, signal.SIG_IGN if job["background"] else signal.default_int_handler)
    interrupts.GRACE_S = job["grace"]
    if job["place"]:
        patched(job["place"], wait_in_native_code if job["native"] else wait_for_signal, job["calls"])
    sys.argv[:] = ["ostlight", *job["arguments"]]
    try:
        cli.main()
    except SystemExit as ended:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended.code)


def until(condition, children):
    while not condition():
        for child in children:
            if os.waitpid(child, os.WNOHANG)[0]:
                sys.exit("ended before it was interrupted")
        time.sleep(0.01)


ranks = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(job["port"]), "WORLD_SIZE": "2", "NODE_RANK": "0"}
each = [ranks | {"LOCAL_RANK": str(rank)} for rank in range(2)] if job["port"] else [{}]
children = [forked(command, **environment) for environment in each]
if job["place"]:
    until(reached.exists, children)
    os.kill(children[job["signalled"]], job["number"])
    began = time.monotonic()
    if job["again"]:
        until(told.exists, children)
        os.kill(children[0], job["again"])
statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
seconds = time.monotonic() - began if job["place"] else 0
Path(job["folder"], "ended.json").write_text(json.dumps({"statuses": statuses, "seconds": seconds}))
'''


@pytest.fixture
def interrupted(settings, digits, tmp_path: Path):
    """Runs a command until it is at ``place``, sends it a signal, and returns statuses, seconds and what it said."""

    def run(
        *arguments: str, place: str = "", number: int = signal.SIGTERM, environment: dict[str, str] | None = None,
        **changed: Any,
    ) -> tuple[list[int], float, str]:  # fmt: skip
        for old in ("reached", "told"):
            (tmp_path / old).unlink(missing_ok=True)
        job = {
            "arguments": arguments, "place": place, "calls": 1, "number": int(number), "again": None, "port": 0,
            "grace": 100.0, "native": False, "background": False, "folder": str(tmp_path), "signalled": 0,
        }  # fmt: skip
        (tmp_path / "job.json").write_text(json.dumps(job | changed))
        (tmp_path / "script.py").write_text(SCRIPT)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in (environment or {}).items():
                patch.setenv(name, value)
            ended = run_script(tmp_path / "script.py", tmp_path / "job.json")
        assert ended.returncode == 0, ended.stdout
        found = json.loads((tmp_path / "ended.json").read_text())
        assert "Traceback" not in ended.stdout
        return found["statuses"], found["seconds"], ended.stdout

    return run


@pytest.fixture
def config(settings, digits, tmp_path: Path) -> Callable[..., str]:
    def write(**sections: Any) -> str:
        file = tmp_path / "mine.yaml"
        file.write_text(yaml.safe_dump(settings(dev={"path": str(digits.dev)}, **sections)))
        return str(file)

    return write


STEP = "ostlight.models.module:MultimodalModel:training_step"
WARMUP = {"fraction": 0.5, "training": {"steps": 6, "batch_size": 4, "lr": 1e-4}}


def with_warmup(settings: Callable[..., dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"proxy": settings()["proxy"] | {"warmup": WARMUP}, "selector": {"name": "loss"}, **more}


def test_a_warm_up_is_saved_and_goes_on(settings, config, interrupted, tmp_path: Path):
    file = config(**with_warmup(settings))
    run, whole = tmp_path / "runs" / "run", tmp_path / "runs" / "whole"
    assert interrupted("select", file, "name=whole")[0] == [0]
    statuses, seconds, said = interrupted("select", file, place=STEP, calls=3)
    assert statuses == [143]
    assert seconds < GRACE_S
    assert f"go on with: ostlight select {file}" in said.splitlines()[-1]
    assert len(list(run.glob("warmup-*.ckpt"))) == 1
    assert "interrupted by SIGTERM" in (run / "logs" / "ostlight.log").read_text()
    statuses, _, said = interrupted("select", file)
    assert statuses == [0]
    assert "warm-up: resumes from step 3" in said
    assert not list(run.glob("warmup-*"))
    for name in ("model.safetensors", "second_moments.safetensors"):
        one, other = load_file(whole / "proxy" / name), load_file(run / "proxy" / name)
        assert all(torch.equal(one[key], other[key]) for key in one), name
    costs = [entry for entry in CostLog(run / "cost_log.jsonl").read() if entry.stage == "warm-up"]
    assert [(entry.more.get("failed"), entry.resumed) for entry in costs] == [("Interrupted", False), (None, True)]
    assert [entry.samples for entry in costs] == [12, 12]


def test_a_warm_up_with_other_settings_does_not_go_on_from_the_checkpoint(
    settings, config, interrupted, tmp_path: Path
):
    file = config(**with_warmup(settings))
    assert interrupted("select", file, place=STEP, calls=3)[0] == [143]
    statuses, _, said = interrupted("select", file, "seed=5")
    assert statuses == [0]
    assert "resumes" not in said
    assert not list((tmp_path / "runs" / "run").glob("warmup-*"))


def test_scoring_keeps_its_shards_and_goes_on(config, interrupted, tmp_path: Path):
    file = config(selector={"name": "loss"})
    writer = "ostlight.pipeline.scoring.writer:ShardWriter:write_on_batch_end"
    statuses, seconds, said = interrupted("select", file, place=writer, calls=2, number=signal.SIGINT)
    assert statuses == [130]
    assert seconds < GRACE_S
    assert "interrupted by SIGINT: finished shards" in said.splitlines()[-1]
    parts = {part: part.stat().st_mtime_ns for part in (tmp_path / "runs" / "run" / "scores").glob("part-*")}
    assert len(parts) == 1
    assert interrupted("select", file)[0] == [0]
    assert all(part.stat().st_mtime_ns == time for part, time in parts.items())


def test_a_training_is_saved_and_goes_on_on_one_rank_and_on_two(config, interrupted, tmp_path: Path):
    file, run = config(), tmp_path / "runs" / "run"
    assert interrupted("select", file)[0] == [0]
    statuses, seconds, said = interrupted("train", file, place=STEP, calls=2)
    assert statuses == [143]
    assert seconds < GRACE_S
    assert f"the last checkpoint is kept; go on with: ostlight train {file}" in said.splitlines()[-1]
    port = 20000 + os.getpid() % 20000
    two = {"port": port, "place": STEP, "signalled": 1, "number": signal.SIGINT}
    statuses, _, said = interrupted("train", file, "compute.devices=2", "compute.strategy=ddp", **two)
    assert "resumes from step 2" in said
    assert statuses == [0, 130], "after the last step the target is saved; the rank that was interrupted says so"
    assert (run / "target" / "config.json").exists(), "by its link"


def test_ranks_stop_at_the_same_step_when_one_is_interrupted(config, interrupted, tmp_path: Path):
    file = config()
    assert interrupted("select", file)[0] == [0]
    two = {"port": 20001 + os.getpid() % 20000, "place": STEP, "signalled": 1}
    statuses, _, said = interrupted("train", file, "compute.devices=2", "compute.strategy=fsdp", **two)
    assert statuses == [143, 143]
    assert said.count("interrupted by SIGTERM: the last checkpoint is kept") == 1
    statuses, _, said = interrupted("train", file)
    assert statuses == [0]
    assert "resumes from step 1" in said


STAGES = {
    "evaluate": "ostlight.evaluation.evaluate:generate_answers",
    "rescore": "ostlight.pipeline.rescore:create",
    "report": "ostlight.reporting.page:write_report",
}


@pytest.mark.parametrize("verb", STAGES)
def test_other_stages_start_over(config, interrupted, tmp_path: Path, verb: str):
    file = config()
    if verb != "rescore":
        assert interrupted("select", file)[0] == [0]
    if verb == "evaluate":
        assert interrupted("train", file)[0] == [0]
    argument = str(tmp_path / "runs" / "run") if verb == "report" else file
    statuses, seconds, said = interrupted(verb, argument, place=STAGES[verb])
    assert statuses == [143]
    assert seconds < GRACE_S
    assert said.splitlines()[-1] == f"interrupted by SIGTERM: start again with: ostlight {verb} {argument}"


def test_a_benchmark_keeps_its_tasks(settings, config, interrupted, tmp_path: Path):
    sections = {"selectors": [{"name": "random"}], "budgets": [{"fraction": 0.2}], "seeds": [0, 1], "workers": 1}
    file = config(benchmark=sections)
    statuses, seconds, said = interrupted("benchmark", file, place=STEP, calls=5)
    assert statuses == [143]
    assert seconds < GRACE_S
    assert f"finished tasks are kept; go on with: ostlight benchmark {file}" in said.splitlines()[-1]
    assert len(list((tmp_path / "runs" / "run" / "trained").glob("random-*.json"))) == 1
    assert interrupted("benchmark", file)[0] == [0]


def test_what_hangs_is_ended_when_the_grace_period_is_over(config, interrupted):
    file = config()
    native = {"place": "ostlight.pipeline.select:score_pool", "native": True}
    statuses, seconds, said = interrupted("select", file, grace=0.2, **native)
    assert statuses == [143]
    assert seconds < GRACE_S
    assert f"go on with: ostlight select {file}" in said.splitlines()[-1]


def test_a_second_signal_ends_at_once(config, interrupted):
    native = {"place": "ostlight.pipeline.select:score_pool", "native": True}
    statuses, _, said = interrupted("select", config(), number=signal.SIGINT, again=int(signal.SIGTERM), **native)
    assert statuses == [130], "by the first; the grace period is longer than this test"
    assert "interrupted by SIGINT" in said.splitlines()[-1]


def test_slurm_gets_the_job_back(config, interrupted, tmp_path: Path, monkeypatch):
    file = config()
    assert interrupted("select", file)[0] == [0]
    tool = tmp_path / "bin" / "scontrol"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\\necho "$@" > {tmp_path}/scontrol.said\\n'.replace("\\n", "\n"))
    tool.chmod(0o755)
    environment = {"SLURM_JOB_ID": "77", "PATH": f"{tool.parent}{os.pathsep}{os.environ['PATH']}"}
    job = {"place": STEP, "calls": 2, "number": signal.SIGUSR1, "environment": environment}
    statuses, _, said = interrupted("train", file, **job)
    assert statuses == [138]
    assert (tmp_path / "scontrol.said").read_text() == "requeue 77\n"
    assert said.splitlines()[-1] == "requeued job 77"
    statuses, _, said = interrupted("train", file)
    assert "resumes from step 2" in said


def test_an_interrupt_that_is_ignored_in_the_background_stays_ignored(config, interrupted):
    ignoring = {"number": signal.SIGINT, "background": True, "again": None}
    assert sys.platform != "win32"
    statuses, _, _ = interrupted("select", config(), **ignoring)
    assert statuses == [0]

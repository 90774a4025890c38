"""One run in processes of its own: killed half-way, then resumed on two ranks."""

from __future__ import annotations

import importlib
import importlib.util
import json
import multiprocessing
import operator
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing.connection import wait
from pathlib import Path

from ostlight.errors import SelectorError
from ostlight.models.batch import Batch
from ostlight.selection.selector import Selector
from ostlight.testing.pools import PoolFiles
from ostlight.testing.runner import SelectorRunner

TIMEOUT_S = 600


def kill_and_resume(runner: SelectorRunner, name: str) -> str | None:
    """Runs ``name`` until it is killed with SIGKILL after two shards, then resumes it on two ranks (gloo, CPU).

    Returns:
        What went wrong, with the last line that the processes printed; ``None`` if nothing did.

    Raises:
        SelectorError: another process could not import the selector's class.
    """
    arguments, result = runner.folder / f"{name}.json", runner.folder / f"{name}.result.txt"
    fields = {"options": dict(runner.options), "folder": str(runner.folder), "pools": str(runner.pools.pool.parent)}
    arguments.write_text(json.dumps(fields | {"location": class_location(runner.cls), "name": name}))
    done = run_script(Path(__file__), arguments, result)
    problem = "a new process could not run it" if done.returncode else result.read_text()
    printed = [line for line in done.stdout.splitlines() if line.strip()]
    return f"{problem}: {printed[-1] if printed else 'it printed nothing'}" if problem else None


def run_script(script: Path, *arguments: Path) -> subprocess.CompletedProcess[str]:
    """Runs ``python script arguments``; both streams come back as ``stdout``."""
    # A new process, because a fork of this one would inherit the threads torch and pyarrow have started in it.
    path = os.pathsep.join(folder or "." for folder in sys.path)
    return subprocess.run(
        [sys.executable, script, *arguments],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def class_location(cls: type[Selector]) -> dict[str, str]:
    """Module, file and name of a class, for ``import_class`` in another process.

    Raises:
        SelectorError: the class is defined inside a function, or not in a file.
    """
    file = getattr(sys.modules[cls.__module__], "__file__", None)
    if "<locals>" in cls.__qualname__ or file is None:
        raise SelectorError(
            f"{cls.__qualname__} is not defined at the top level of a file, so no other process can import it; "
            "move it there, or pass processes=False"
        )
    return {"module": cls.__module__, "file": file, "qualname": cls.__qualname__}


def import_class(location: Mapping[str, str]) -> type[Selector]:
    """The class ``class_location`` described; read from its file if its module cannot be imported by name."""
    try:
        module = importlib.import_module(location["module"])
        if module.__file__ != location["file"]:
            raise ImportError(location["module"])
    except ImportError:
        spec = importlib.util.spec_from_file_location("ostlight_selector_under_test", location["file"])
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    cls: type[Selector] = operator.attrgetter(location["qualname"])(module)
    return cls


def _main(arguments: Path, result: Path) -> None:
    fields = json.loads(arguments.read_text())
    pools = PoolFiles.create(Path(fields["pools"]))
    runner = SelectorRunner(import_class(fields["location"]), fields["options"], Path(fields["folder"]), pools)
    result.write_text(_problem(runner, fields["name"]))


def _problem(runner: SelectorRunner, name: str) -> str:
    """Kills and resumes the run, and says what went wrong; the empty text if nothing did."""
    context = multiprocessing.get_context("fork")
    first = context.Process(target=_run_until_killed, args=(runner, name))
    first.start()
    first.join()
    if first.exitcode != -signal.SIGKILL:
        return "a new process could not run it"
    before = runner.parts(name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [context.Process(target=_run_rank, args=(runner, name, rank, port)) for rank in range(2)]
    for process in ranks:
        process.start()
    alive = ranks
    while alive:
        wait([process.sentinel for process in alive])
        alive = [process for process in alive if process.is_alive()]
        if any(process.exitcode for process in ranks):  # the other rank would wait for the failed one forever
            for process in alive:
                process.kill()
    if any(process.exitcode for process in ranks):
        return "two ranks could not resume it"
    after = runner.parts(name)
    return "finished shards were scored again" if any(after.get(p) != time for p, time in before.items()) else ""


def _run_until_killed(runner: SelectorRunner, name: str) -> None:
    def kill_after_two_shards(batch: Batch) -> Batch:
        if len(runner.parts(name)) >= 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return batch

    runner.run(name, before_score=kill_after_two_shards)


def _run_rank(runner: SelectorRunner, name: str, rank: int, port: int) -> None:
    # With these variables set, Lightning starts no ranks of its own.
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "NODE_RANK": "0"}
    os.environ["LOCAL_RANK"] = str(rank)
    runner.run(name, {"compute.devices": 2, "compute.strategy": "ddp"})


if __name__ == "__main__":
    _main(*map(Path, sys.argv[1:]))

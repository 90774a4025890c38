"""Runs scripts in forks of one server process that has already imported torch and Lightning.

Importing both takes 5 to 9 seconds of processor time per process, which is longer than most of the runs tested here.
"""

from __future__ import annotations

import atexit
import faulthandler
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path

TIMEOUT_S = 280


def run_script(script: Path, *arguments: Path | str, timeout_s: float = TIMEOUT_S) -> subprocess.CompletedProcess[str]:
    """Runs ``python script arguments`` with one thread; ``stdout`` of the result holds both streams."""
    command = [str(script), *map(str, arguments)]
    order = {"command": command, "path": [folder or "." for folder in sys.path]}
    order["environment"] = os.environ | {"OMP_NUM_THREADS": "1"}
    server = _server()
    with tempfile.NamedTemporaryFile("r") as output:
        print(json.dumps(order | {"output": output.name}), file=server.stdin, flush=True)
        finished = select.select([server.stdout], [], [], timeout_s)[0]
        status = server.stdout.readline() if finished else ""
        text = output.read()
    if not status:
        _stop(server)
        _server.cache_clear()
        status, text = "1", f"the script took longer than {timeout_s} seconds, or its process died\n{text}"
    return subprocess.CompletedProcess(command, int(status), text)


@cache
def _server() -> subprocess.Popen[str]:
    server = subprocess.Popen(
        [sys.executable, __file__],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p or "." for p in sys.path), "OMP_NUM_THREADS": "1"},
        text=True,
        start_new_session=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    atexit.register(_stop, server)
    return server


def _stop(server: subprocess.Popen[str]) -> None:
    """Kills the server and every process it still runs."""
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGKILL)
    server.communicate()


def serve() -> None:
    """Main loop of the server: reads one order per line, answers with the exit status of its script."""
    for module in ("ostlight.pipeline.select", "ostlight.pipeline.train"):
        importlib.import_module(module)
    from ostlight.config.schema import Model
    from ostlight.digitmath.model import checkpoint
    from ostlight.models.module import MultimodalModel

    MultimodalModel.load(Model(path=str(checkpoint("proxy"))), "proxy")  # transformers imports the rest only now
    for line in sys.stdin:
        order = json.loads(line)
        print(status_of(forked(lambda: _run(**order))), flush=True)  # noqa: B023


def _run(command: list[str], path: list[str], environment: dict[str, str], output: str) -> None:
    stream = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    sys.path[:], sys.argv[:] = path, command
    os.environ.clear()
    os.environ.update(environment)
    runpy.run_path(command[0], run_name="__main__")


def forked(work: Callable[[], object], **environment: str) -> int:
    """Calls ``work`` in a fork of this process and returns the fork's process id; ``status_of`` waits for it."""
    sys.stdout.flush()  # otherwise both processes would write what is in the buffer
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        faulthandler.enable()  # a fork that dies by a signal says where
        os.environ.update(environment)
        work()
        status = 0
    except SystemExit as ended:
        status = int(bool(ended.code))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def status_of(child: int) -> int:
    """Waits for a fork and returns its exit status, or the negative signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def on_ranks(work: Callable[[], object], ranks: int = 2, until: Callable[[], bool] = lambda: False) -> bool:
    """Calls ``work`` in forks that Lightning takes for the ranks of one run (``compute.devices`` must agree).

    Args:
        until: as soon as it returns true, all ranks are killed with SIGKILL.

    Returns:
        Whether all ranks finished. If one fails, the others are killed, since they would wait for it forever.
    """
    running = {child: rank for rank, child in enumerate(_started(work, ranks))}
    while running:
        child, status = os.waitpid(-1, os.WNOHANG)
        ended = running.pop(child, None)
        if status or until():
            if status:
                print(f"rank {ended} ended with {os.waitstatus_to_exitcode(status)}", file=sys.stderr, flush=True)
            for other in running:
                os.kill(other, signal.SIGKILL)
                os.waitpid(other, 0)
            return False
        if not child:
            time.sleep(0.002)
    return True


def ends_of_ranks(work: Callable[[], object], ranks: int = 2) -> list[tuple[int, float]]:
    """As ``on_ranks``, but a rank that fails leaves the others alone.

    Returns:
        The exit status of each rank, and after how many seconds it ended.
    """
    began, running = time.monotonic(), _started(work, ranks)
    ends: dict[int, tuple[int, float]] = {}
    while len(ends) < ranks:
        child, status = os.waitpid(-1, 0)
        ends[child] = os.waitstatus_to_exitcode(status), time.monotonic() - began
    return [ends[child] for child in running]


def _started(work: Callable[[], object], ranks: int) -> list[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    # With these variables set, Lightning starts no ranks of its own.
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(ranks), "NODE_RANK": "0"}
    return [forked(work, LOCAL_RANK=str(rank), **common) for rank in range(ranks)]


if __name__ == "__main__":
    serve()

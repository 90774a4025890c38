"""Scripts in forks of one process that has imported torch and lightning, which takes longer than a small run."""

from __future__ import annotations

import atexit
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
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from ostlight.config.schema import Model
from ostlight.digitmath.model import checkpoint
from ostlight.models.module import MultimodalModel

TIMEOUT_S = 280
IMPORTED_BEFORE = ("ostlight.pipeline.select", "ostlight.pipeline.train")


@dataclass(frozen=True)
class Ended:
    """What became of a script.

    Attributes:
        well: it came to its end, in time and without an exception.
        said: on both of its streams; where it did not come to an end, that first.
    """

    well: bool
    said: str


def run_script(script: Path, *arguments: Path | str) -> Ended:
    """Runs a Python file as ``python script arguments`` would, with one thread and without what importing takes."""
    return _server().carries_out(script, list(map(str, arguments)))


class _Server:
    """The process whose forks run the scripts, one after the other."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "ostlight.testing.forks"]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(_path()), "OMP_NUM_THREADS": "1"}
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, env=environment, text=True, start_new_session=True, **pipes)
        atexit.register(self.close)

    def carries_out(self, script: Path, arguments: list[str]) -> Ended:
        """One that does not end in time, or takes the server along, makes the server useless."""
        assert self._process.stdin is not None, "a pipe"
        assert self._process.stdout is not None, "a pipe"
        order: dict[str, Any] = {"arguments": [str(script), *arguments], "path": _path()}
        order["environment"] = os.environ | {"OMP_NUM_THREADS": "1"}
        answer = ""
        with tempfile.NamedTemporaryFile("r") as said:
            try:
                print(json.dumps(order | {"said": said.name}), file=self._process.stdin, flush=True)
                if select.select([self._process.stdout], [], [], TIMEOUT_S)[0]:
                    answer = self._process.stdout.readline()
            except BrokenPipeError:
                pass  # told as any other that died
            told = said.read()
        if not answer:
            self.close()
            _server.cache_clear()
            told = f"it took longer than {TIMEOUT_S} seconds, or the process that ran it died\n{told}"
        return Ended(answer == "0\n", told)

    def close(self) -> None:
        """Ends it, and whatever it still runs."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()


@cache
def _server() -> _Server:
    return _Server()


def _path() -> list[str]:
    return [place or "." for place in sys.path]


def serve() -> None:
    """What the server's process does: one order a line, answered by the script's status when it has come to its end."""
    for module in IMPORTED_BEFORE:
        importlib.import_module(module)
    MultimodalModel.load(Model(path=str(checkpoint("proxy"))), "proxy")  # and what transformers imports only then
    for line in sys.stdin:
        print(status_of(forked(partial(_carry_out, **json.loads(line)))), flush=True)


def _carry_out(arguments: list[str], path: list[str], environment: dict[str, str], said: str) -> None:
    stream = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    sys.path[:], sys.argv[:] = path, arguments
    os.environ.clear()
    os.environ.update(environment)
    runpy.run_path(arguments[0], run_name="__main__")


def forked(work: Callable[[], None], **environment: str) -> int:
    """Does the work in a fork of this process, and returns its number; ``status_of`` waits for it."""
    sys.stdout.flush()  # else both would write what stands in the buffer
    child = os.fork()
    if child:
        return child
    status = 1
    try:
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
    """Its exit status, once it has ended; the negative of the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def on_ranks(work: Callable[[], None], ranks: int = 2, until: Callable[[], bool] = lambda: False) -> bool:
    """Forks processes that Lightning takes for the ranks of one run.

    Args:
        work: of each.
        ranks: how many; each has its share of what the work reads only where its ``compute.devices`` says so too.
        until: all are killed, as ``kill -9`` does, as soon as this is so.

    Returns:
        Whether all came to their end; a rank that fails takes the others, which would wait for it, along.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    # Lightning starts no ranks of its own where these say that somebody else did.
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(ranks), "NODE_RANK": "0"}
    running = {forked(work, LOCAL_RANK=str(rank), **common) for rank in range(ranks)}
    while running:
        child, status = os.waitpid(-1, os.WNOHANG)
        running.discard(child)
        if status or until():
            for other in running:
                os.kill(other, signal.SIGKILL)
                os.waitpid(other, 0)
            return False
        if not child:
            time.sleep(0.002)
    return True


if __name__ == "__main__":
    serve()

"""A check's run in processes of its own: killed in the middle, then taken up by two ranks."""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from ostlight.config.schema import Model
from ostlight.digitmath.model import checkpoint
from ostlight.model.batch import Batch
from ostlight.model.module import MultimodalModel
from ostlight.run.folder import RunFolder
from ostlight.selection.selector import Selector
from ostlight.testing.pools import Pools
from ostlight.testing.runs import Runs, home_of, load_from, run

TIMEOUT_S = 240


@dataclass(frozen=True)
class Outcome:
    """What became of the two runs.

    Attributes:
        killed: the first ended itself in the middle, as ``kill -9`` does.
        resumed: both ranks of the second came to their end.
        scored_again: a shard of the first was written anew by the second.
        said: on stderr.
    """

    killed: bool
    resumed: bool
    scored_again: bool
    said: str


def kill_and_resume(runs: Runs, name: str) -> Outcome:
    """The run ``name`` twice in processes of their own: killed in the middle, then with two ranks (gloo)."""
    order = {
        "home": home_of(runs.cls),
        "options": dict(runs.options),
        "folder": str(runs.folder),
        "pools": str(runs.pools.pool.parent),
        "name": name,
        "path": [p or "." for p in sys.path],
        "environment": os.environ | {"OMP_NUM_THREADS": "1"},
    }
    file = runs.folder / f"{name}.json"
    file.write_text(json.dumps(order))
    ended = _server().carries_out(file)
    told = "" if ended else f"it took longer than {TIMEOUT_S} seconds, or the process that ran it died\n"
    outcome, said = file.with_suffix(".outcome"), file.with_suffix(".said")
    told += said.read_text() if said.exists() else ""
    if not outcome.exists():
        return Outcome(False, False, False, told)
    return Outcome(**json.loads(outcome.read_text()), said=told)


class _Server:
    """A process that carries orders out in forks of itself: importing torch and lightning takes longer than a run."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "ostlight.testing.processes"]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(p or "." for p in sys.path), "OMP_NUM_THREADS": "1"}
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, env=environment, text=True, start_new_session=True, **pipes)
        atexit.register(self.close)

    def carries_out(self, order: Path) -> bool:
        """Whether it came to an end in time; else the server is of no use any more."""
        assert self._process.stdin is not None, "a pipe"
        assert self._process.stdout is not None, "a pipe"
        try:
            print(order, file=self._process.stdin, flush=True)
            ready, _, _ = select.select([self._process.stdout], [], [], TIMEOUT_S)
            ended = bool(ready) and bool(self._process.stdout.readline())
        except BrokenPipeError:
            ended = False
        if not ended:
            self.close()
            _server.cache_clear()
        return ended

    def close(self) -> None:
        """Ends it, and whatever it still runs."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()


@cache
def _server() -> _Server:
    return _Server()


def kill_in_the_middle(selector: Selector, scores: Path) -> None:
    """Makes the selector end its own process once two shards are written."""
    score = selector.score

    def deadly(batch: Batch) -> Mapping[str, Any]:
        if len(list(scores.glob("part-*.parquet"))) >= 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return score(batch)

    selector.score = deadly  # type: ignore[method-assign]


def serve() -> None:
    """What the server's process does: one order a line, answered by a line when it has come to its end."""
    MultimodalModel.load(Model(path=str(checkpoint("proxy"))), "proxy")  # imports what every run would
    for line in sys.stdin:
        order = Path(line.rstrip("\n"))
        print(_status(_forked(partial(_carry_out, order))), flush=True)


def _carry_out(file: Path) -> None:
    said = os.open(file.with_suffix(".said"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    order = json.loads(file.read_text())
    sys.path[:] = order["path"]
    os.environ.clear()
    os.environ.update(order["environment"])
    runs = Runs(load_from(order["home"]), order["options"], Path(order["folder"]), Pools.make(Path(order["pools"])))
    scores = RunFolder.of(runs.config(order["name"])).scores

    def killed() -> None:
        selector = runs.make()
        kill_in_the_middle(selector, scores)
        run(runs.config(order["name"]), selector)

    def resumed() -> None:
        run(runs.config(order["name"], {"compute.devices": 2, "compute.strategy": "ddp"}), runs.make())

    found = {"killed": _status(_forked(killed)) == -signal.SIGKILL, "resumed": False, "scored_again": False}
    if found["killed"]:
        written = {p: p.stat().st_mtime_ns for p in scores.glob("part-*.parquet")}
        found["resumed"] = on_two_ranks(resumed)
        found["scored_again"] = any(p.stat().st_mtime_ns != before for p, before in written.items())
    file.with_suffix(".outcome").write_text(json.dumps(found))


def _forked(work: Callable[[], None], **environment: str) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.environ.update(environment)
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _status(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def on_two_ranks(work: Callable[[], None], until: Callable[[], bool] = lambda: False) -> bool:
    """Forks two processes that Lightning takes for the ranks of one run.

    Args:
        work: of each.
        until: both are killed, as ``kill -9`` does, as soon as this is so.

    Returns:
        Whether both came to their end; a rank that fails takes the other, which would wait for it, along.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    # Lightning starts no ranks of its own where these say that somebody else did.
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "NODE_RANK": "0"}
    ranks = {_forked(work, LOCAL_RANK=str(rank), **common) for rank in range(2)}
    while ranks:
        child, status = os.waitpid(-1, os.WNOHANG)
        ranks.discard(child)
        if status or until():
            for other in ranks:
                os.kill(other, signal.SIGKILL)
                os.waitpid(other, 0)
            return False
        if not child:
            time.sleep(0.002)
    return True


if __name__ == "__main__":
    serve()

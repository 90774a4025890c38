"""A check's run in processes of its own: killed in the middle, then taken up by two ranks."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ostlight.model.batch import Batch
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
    """The run ``name`` twice from a new Python process: killed in the middle, then with two ranks (gloo)."""
    order = {
        "home": home_of(runs.cls),
        "options": dict(runs.options),
        "folder": str(runs.folder),
        "pools": str(runs.pools.pool.parent),
        "name": name,
    }
    file, outcome = runs.folder / f"{name}.json", runs.folder / f"{name}-outcome.json"
    file.write_text(json.dumps(order))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p or "." for p in sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "ostlight.testing.processes", str(file), str(outcome)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if not outcome.exists():
        return Outcome(False, False, False, done.stderr)
    return Outcome(**json.loads(outcome.read_text()), said=done.stderr)


def kill_in_the_middle(selector: Selector, scores: Path) -> None:
    """Makes the selector end its own process once two shards are written."""
    score = selector.score

    def deadly(batch: Batch) -> Mapping[str, Any]:
        if len(list(scores.glob("part-*.parquet"))) >= 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return score(batch)

    selector.score = deadly  # type: ignore[method-assign]


def main() -> None:
    """What the new process does. It forks, because to import torch and lightning takes longer than the runs."""
    order = json.loads(Path(sys.argv[1]).read_text())
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
    Path(sys.argv[2]).write_text(json.dumps(found))


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
    main()

"""A check's run in processes of its own: killed in the middle, then taken up by two ranks."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ostlight.models.batch import Batch
from ostlight.pipeline.run_folder import RunFolder
from ostlight.selection.selector import Selector
from ostlight.testing.forks import forked, on_ranks, run_script, status_of
from ostlight.testing.pools import Pools
from ostlight.testing.runs import Runs, home_of, load_from, run


@dataclass(frozen=True)
class Outcome:
    """What became of the two runs.

    Attributes:
        killed: the first ended itself in the middle, as ``kill -9`` does.
        resumed: both ranks of the second came to their end.
        scored_again: a shard of the first was written anew by the second.
        said: on both streams.
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
    }
    file, outcome = runs.folder / f"{name}.json", runs.folder / f"{name}.outcome"
    file.write_text(json.dumps(order))
    ended = run_script(Path(__file__), file, outcome)
    found = (
        json.loads(outcome.read_text()) if ended.well else dict.fromkeys(("killed", "resumed", "scored_again"), False)
    )
    return Outcome(**found, said=ended.said)


def kill_in_the_middle(selector: Selector, scores: Path) -> None:
    """Makes the selector end its own process once two shards are written."""
    score = selector.score

    def deadly(batch: Batch) -> Mapping[str, Any]:
        if len(list(scores.glob("part-*.parquet"))) >= 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return score(batch)

    selector.score = deadly  # type: ignore[method-assign]


def _carry_out(file: Path, outcome: Path) -> None:
    order = json.loads(file.read_text())
    runs = Runs(load_from(order["home"]), order["options"], Path(order["folder"]), Pools.make(Path(order["pools"])))
    scores = RunFolder.of(runs.config(order["name"])).scores

    def killed() -> None:
        selector = runs.make()
        kill_in_the_middle(selector, scores)
        run(runs.config(order["name"]), selector)

    def resumed() -> None:
        run(runs.config(order["name"], {"compute.devices": 2, "compute.strategy": "ddp"}), runs.make())

    found = {"killed": status_of(forked(killed)) == -signal.SIGKILL, "resumed": False, "scored_again": False}
    if found["killed"]:
        written = {p: p.stat().st_mtime_ns for p in scores.glob("part-*.parquet")}
        found["resumed"] = on_ranks(resumed)
        found["scored_again"] = any(p.stat().st_mtime_ns != before for p, before in written.items())
    outcome.write_text(json.dumps(found))


if __name__ == "__main__":
    _carry_out(*map(Path, sys.argv[1:]))

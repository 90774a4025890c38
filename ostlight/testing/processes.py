"""A check's run in processes of its own: killed in the middle, then taken up by two ranks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ostlight.model.batch import Batch
from ostlight.run.folder import RunFolder
from ostlight.selection.selector import Selector
from ostlight.testing.pools import Pools
from ostlight.testing.runs import Runs, home_of, load_from, run

TIMEOUT_S = 240


def start(runs: Runs, name: str, changes: Mapping[str, Any], kill: bool) -> subprocess.CompletedProcess[str]:
    """The same run as ``runs.select(name, changes)``, from a new process; ``kill`` ends it as ``kill -9`` does."""
    order = {
        "home": home_of(runs.cls),
        "options": dict(runs.options),
        "folder": str(runs.folder),
        "pools": str(runs.pools.pool.parent),
        "name": name,
        "changes": dict(changes),
        "kill": kill,
    }
    file = runs.folder / f"{name}.json"
    file.write_text(json.dumps(order))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p or "." for p in sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "ostlight.testing.processes", str(file)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def kill_in_the_middle(selector: Selector, scores: Path) -> None:
    """Makes the selector end its own process once two shards are written."""
    score = selector.score

    def deadly(batch: Batch) -> Mapping[str, Any]:
        if len(list(scores.glob("part-*.parquet"))) >= 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return score(batch)

    selector.score = deadly  # type: ignore[method-assign]


def main() -> None:
    """What the new process does."""
    order = json.loads(Path(sys.argv[1]).read_text())
    runs = Runs(load_from(order["home"]), order["options"], Path(order["folder"]), Pools.make(Path(order["pools"])))
    config, selector = runs.config(order["name"], order["changes"]), runs.make()
    if order["kill"]:
        kill_in_the_middle(selector, RunFolder.of(config).scores)
    run(config, selector)


if __name__ == "__main__":
    main()

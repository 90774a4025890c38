"""What a selector pays reaches the ledger: from every rank, and from a run that was killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import ostlight
from ostlight.run.ledger import Ledger, total

PAYING = '''
import os, sys, time
import ostlight

@ostlight.register("paying")
class Paying(ostlight.Selector):
    """Pays for every sample."""

    def score(self, batch):
        for _ in batch.samples:
            time.sleep(float(os.environ.get("PAUSE_S", 0)))
            self.spent.add(calls=1, tokens_in=10, tokens_out=2, price=0.5)
        return {"score": [0.0] * len(batch)}

if __name__ == "__main__":
    ostlight.select(sys.argv[1])
'''


def script(folder: Path, settings: dict[str, Any], **compute: Any) -> list[str]:
    config = settings | {"selector": {"name": "paying"}, "compute": settings["compute"] | compute}
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    (folder / "paying.py").write_text(PAYING)
    return [sys.executable, str(folder / "paying.py"), str(folder / "run.yaml")]


def test_a_selectors_spending_is_in_the_benchmarks_results(settings, tmp_path: Path, monkeypatch):
    script(tmp_path, settings())
    monkeypatch.syspath_prepend(tmp_path)
    __import__("paying")
    contest = {"selectors": [{"name": "paying"}, {"name": "random"}], "budgets": [{"count": 6}], "seeds": [0]}
    ostlight.benchmark(settings(benchmark=contest, evaluation={"max_new_tokens": 1}))
    lines = [json.loads(x) for x in (tmp_path / "runs/run/results.jsonl").read_text().splitlines()]
    paid = {
        (x["selector"], x["metric"]): x["value"] for x in lines if x["metric"] in ("selection_calls", "selection_price")
    }
    free = {(name, metric): 0 for name in ("base", "random") for metric in ("selection_calls", "selection_price")}
    assert paid == free | {("paying", "selection_calls"): 48, ("paying", "selection_price"): 24.0}
    assert "| 48 | 24.00 |" in (tmp_path / "runs/run/costs.md").read_text()


@pytest.mark.slow
def test_the_ranks_spending_is_summed(settings, tmp_path: Path):
    arguments = script(tmp_path, settings(), devices=2, strategy="ddp", shard_size=5)
    subprocess.run(arguments, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=240)
    score = total(Ledger(tmp_path / "runs/run/ledger.jsonl").read(), ("score",))
    assert (score.samples, score.calls, score.tokens_in, score.tokens_out, score.price) == (48, 48, 480, 96, 24.0)


@pytest.mark.slow
def test_what_was_paid_before_a_kill_is_in_the_total(settings, tmp_path: Path):
    arguments = script(tmp_path, settings(), shard_size=5)
    slow = os.environ | {"PAUSE_S": "0.2"}
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=slow)
    scores = tmp_path / "runs/run/scores"
    deadline = time.monotonic() + 200
    while len(list(scores.glob("part-*.parquet"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = 5 * len(list(scores.glob("part-*.parquet")))
    assert 15 <= done < 48, "the run was killed in the middle"
    subprocess.run(arguments, check=True, timeout=240)
    killed, resumed = (e for e in Ledger(tmp_path / "runs/run/ledger.jsonl").read() if e.stage == "score")
    assert killed.more == {"failed": "killed"}
    # All that was paid, but for the last second (five samples): the finished shards, and the one in the making.
    assert done - 5 <= killed.calls <= done + 5
    assert resumed.calls == 48 - done
    assert killed.wall_s > 0.2 * killed.calls

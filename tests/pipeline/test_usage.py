"""What a selector pays reaches the cost log: from every rank, and from a run that was killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import ostlight
from ostlight.pipeline.cost_log import CostLog, total
from ostlight.testing.forks import run_script

PAYING = '''
import os, sys, time
import ostlight

@ostlight.register("paying")
class Paying(ostlight.Selector):
    """Pays for every sample."""

    def score(self, batch):
        for _ in batch.samples:
            time.sleep(float(os.environ.get("PAUSE_S", 0)))
            self.usage.add(calls=1, tokens_in=10, tokens_out=2, price=0.5)
        return {"score": [0.0] * len(batch)}

if __name__ == "__main__":
    from pathlib import Path
    from ostlight.testing.forks import on_ranks
    ranks, shards = map(int, sys.argv[2:])
    scores = Path(sys.argv[1]).parent / "runs/run/scores"
    enough = lambda: shards and len(list(scores.glob("part-*.parquet"))) >= shards
    assert on_ranks(lambda: ostlight.select(sys.argv[1]), ranks, enough) is not bool(shards)
'''


def write(folder: Path, settings: dict[str, Any], **compute: Any) -> None:
    config = settings | {"selector": {"name": "paying"}, "compute": settings["compute"] | compute}
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    (folder / "paying.py").write_text(PAYING)


def run_apart(folder: Path, ranks: int, killed_after: int = 0) -> None:
    """Killed once so many shards are written; to the end without such a number."""
    ended = run_script(folder / "paying.py", folder / "run.yaml", str(ranks), str(killed_after))
    assert ended.well, ended.said


def test_a_selectors_spending_is_in_the_benchmarks_results(settings, tmp_path: Path, monkeypatch):
    write(tmp_path, settings())
    monkeypatch.syspath_prepend(tmp_path)
    __import__("paying")
    experiment = {"selectors": [{"name": "paying"}, {"name": "random"}], "budgets": [{"count": 6}], "seeds": [0]}
    ostlight.benchmark(settings(benchmark=experiment, evaluation={"max_new_tokens": 1}))
    lines = [json.loads(x) for x in (tmp_path / "runs/run/results.jsonl").read_text().splitlines()]
    paid = {
        (x["selector"], x["metric"]): x["value"] for x in lines if x["metric"] in ("selection_calls", "selection_price")
    }
    free = {(name, metric): 0 for name in ("base", "random") for metric in ("selection_calls", "selection_price")}
    assert paid == free | {("paying", "selection_calls"): 48, ("paying", "selection_price"): 24.0}
    assert "| 48 | 24.00 |" in (tmp_path / "runs/run/costs.md").read_text()


@pytest.mark.slow
def test_the_ranks_spending_is_summed(settings, tmp_path: Path):
    write(tmp_path, settings(), devices=2, strategy="ddp", shard_size=5)
    run_apart(tmp_path, ranks=2)
    score = total(CostLog(tmp_path / "runs/run/cost_log.jsonl").read(), ("score",))
    assert (score.samples, score.calls, score.tokens_in, score.tokens_out, score.price) == (48, 48, 480, 96, 24.0)


@pytest.mark.slow
def test_what_was_paid_before_a_kill_is_in_the_total(settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path, settings(), shard_size=5)
    with monkeypatch.context() as patch:
        patch.setenv("PAUSE_S", "0.2")
        run_apart(tmp_path, ranks=1, killed_after=3)
    done = 5 * len(list((tmp_path / "runs/run/scores").glob("part-*.parquet")))
    assert 15 <= done < 48, "the run was killed in the middle"
    run_apart(tmp_path, ranks=1)
    killed, resumed = (e for e in CostLog(tmp_path / "runs/run/cost_log.jsonl").read() if e.stage == "score")
    assert killed.more == {"failed": "killed"}
    # All that was paid, but for the last second (five samples): the finished shards, and the one in the making.
    assert done - 5 <= killed.calls <= done + 5
    assert resumed.calls == 48 - done
    assert killed.wall_s > 0.2 * killed.calls

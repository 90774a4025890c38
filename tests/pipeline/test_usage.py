"""What a selector pays reaches the cost log, from every rank."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from forks import run_script

import ostlight
from ostlight.pipeline.cost_log import CostLog, total

PAYING = '''
import sys
import ostlight

@ostlight.register("paying")
class Paying(ostlight.Selector):
    """Pays for every sample."""

    def score(self, batch):
        for _ in batch.samples:
            self.usage.add(calls=1, tokens_in=10, tokens_out=2, price=0.5)
        return {"score": [0.0] * len(batch)}

if __name__ == "__main__":
    from forks import on_ranks
    assert on_ranks(lambda: ostlight.select(sys.argv[1]), int(sys.argv[2]))
'''


def write(folder: Path, settings: dict[str, Any], **compute: Any) -> None:
    config = settings | {"selector": {"name": "paying"}, "compute": settings["compute"] | compute}
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    (folder / "paying.py").write_text(PAYING)


def run_apart(folder: Path, ranks: int) -> None:
    ended = run_script(folder / "paying.py", folder / "run.yaml", str(ranks))
    assert ended.returncode == 0, ended.stdout


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

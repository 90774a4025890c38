"""Two ranks (gloo, CPU) share the questions of a test set, and find what one finds."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from forks import run_script

import ostlight

EVALUATE = """
import sys

import ostlight
from forks import on_ranks
from ostlight.evaluation import evaluate

generated = evaluate.generate_answers

def counted(model, samples, settings, prompts, share):
    batches = list(share.of(range(10)))
    assert share.ranks == 2 and batches == list(range(share.rank, 10, 2)), share
    return generated(model, samples, settings, prompts, share)

evaluate.generate_answers = counted
sys.exit(not on_ranks(lambda: ostlight.evaluate(sys.argv[1])))
"""


@pytest.mark.slow
def test_two_ranks_answer_as_one_does_each_question_once(settings, tmp_path: Path):
    config = settings()
    config["evaluation"] |= {"batch_size": 4}
    config["compute"] |= {"tokens_per_batch": 256}
    ostlight.select(config)
    ostlight.train(config)
    alone = ostlight.evaluate(config)
    folder = tmp_path / "runs" / "run"
    predictions = (folder / "predictions.parquet").read_bytes()
    accuracy = (folder / "accuracy.jsonl").read_bytes()
    (folder / "predictions.parquet").unlink()
    config["compute"] |= {"devices": 2}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "script.py").write_text(EVALUATE)
    ended = run_script(tmp_path / "script.py", tmp_path / "two.yaml")
    assert ended.returncode == 0, ended.stdout
    assert (folder / "predictions.parquet").read_bytes() == predictions
    assert (folder / "accuracy.jsonl").read_bytes() == accuracy
    ids = pq.read_table(folder / "predictions.parquet")["id"].to_pylist()
    assert len(ids) == len(set(ids)) == alone.counts["all"]

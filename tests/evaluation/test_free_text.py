"""Loss of the expected answers, ROUGE-L and token F1."""

from __future__ import annotations

import json
import math

import pyarrow.parquet as pq
import pytest
import torch

import ostlight
from ostlight.config import load_config
from ostlight.evaluation.free_text import expected_answer_losses, rouge_l, token_f1
from ostlight.models.module import MultimodalModel


@pytest.mark.parametrize(
    ("given", "expected", "f1", "rouge"),
    [
        ("a red circle on the left", "a red circle on the left", 1, 1),
        ("", "a red circle", 0, 0),
        ("red circle", "a red circle", 1, 0.8),  # F1 leaves articles out; 2 of 2 and 2 of 3 words in order
        ("circle red", "red circle", 1, 0.5),
        ("a dog", "two cats", 0, 0),
        ("the cat sat", "the cat lay down", 0.4, 4 / 7),
        ("красный шар", "Красный шар.", 1, 1),
        ("赤い風船", "赤い風車", 0, 0.75),
        ("café noir", "caf noir", 0.5, 0.5),
    ],
)
def test_values_by_hand(given: str, expected: str, f1: float, rouge: float):
    assert token_f1(given, expected) == pytest.approx(f1, abs=1e-6)
    assert rouge_l(given, expected) == pytest.approx(rouge, abs=1e-6)


def test_the_loss_is_that_of_each_sample_alone(settings, samples):
    config = load_config(settings())
    model = MultimodalModel.load(config.target, "target").eval()
    some = samples("test")[:9]
    together = expected_answer_losses(model, some, 400)
    with torch.no_grad():
        alone = [float(model.losses(model.batches([sample], 10_000)[0])) for sample in some]
    assert together == pytest.approx(alone, rel=1e-4)


def test_a_run_writes_and_logs_them(settings, logged):
    ostlight.select(settings())
    target = ostlight.train(settings())
    result = ostlight.evaluate(settings())
    table = pq.read_table(target / "predictions.parquet")
    losses = table["loss"].to_pylist()
    assert len(losses) == table.num_rows
    assert result.means["all"]["loss"] == pytest.approx(sum(losses) / len(losses))
    assert result.means["all"]["answer_perplexity"] == pytest.approx(math.exp(result.means["all"]["loss"]))
    rows = [json.loads(line) for line in (target / "accuracy.jsonl").read_text().splitlines()]
    stored = {row["metric"]: row["value"] for row in rows if row["group"] == "all"}
    assert stored["loss"] == result.means["all"]["loss"]
    assert 0 <= stored["rouge_l"] <= 1
    assert 0 <= stored["token_f1"] <= 1
    assert "expected answers all: loss " in logged()

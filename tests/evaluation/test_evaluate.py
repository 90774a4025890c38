"""Accuracy by group and question type."""

from __future__ import annotations

from typing import Any

import pytest

from ostlight.config.schema import Evaluation
from ostlight.data.sample import Sample, Turn
from ostlight.evaluation import evaluate
from ostlight.evaluation.evaluate import Questions, evaluate_model


def test_accuracy_is_the_share_of_correct_answers_by_group_and_question_type(monkeypatch: pytest.MonkeyPatch):
    asked = [
        ("Which? (A) 7 (B) 8", "B", "read", "(B)"),
        ("How many?", "7", "read", "7.0"),
        ("How many?", "9", "sum", "8"),
        ("What?", "a horse", "sum", "A horse."),
        ("What?", "a cow", "sum", "answer"),
    ]
    samples = [
        Sample(
            str(k), (Turn("user", question), Turn("assistant", f"answer {expected}", trained=True)), (), {"task": task}
        )
        for k, (question, expected, task, _) in enumerate(asked)
    ]
    texts = [f"so the answer {given}" for *_, given in asked]
    monkeypatch.setattr(evaluate, "generate_answers", lambda *_: texts)
    model: Any = None
    result = evaluate_model(model, Questions(samples, []), Evaluation(by="task", marker="answer"))
    assert result.counts == {"all": 5, "read": 2, "sum": 3}
    assert result.accuracy == pytest.approx({"all": 3 / 5, "read": 1.0, "sum": 1 / 3})
    assert result.accuracy_by_type == {
        "all": {"exact": 0.5, "numeric": 0.5, "choice": 1.0},
        "read": {"numeric": 1.0, "choice": 1.0},
        "sum": {"exact": 0.5, "numeric": 0.0},
    }
    assert result.predictions["correct"].to_pylist() == [True, True, False, True, False]
    assert result.predictions["answer"].to_pylist()[-1] is None

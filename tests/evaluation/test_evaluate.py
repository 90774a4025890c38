"""Accuracy by group and question type."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
import torch

import ostlight
from ostlight.config import load_config
from ostlight.config.schema import Evaluation
from ostlight.data.sample import Sample, Turn
from ostlight.errors import ConfigError, DataError
from ostlight.evaluation import evaluate
from ostlight.evaluation.evaluate import Questions, answer_losses, evaluate_model, read_questions
from ostlight.models.module import MultimodalModel
from ostlight.pipeline.inputs import open_pool


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


def test_a_marker_that_no_expected_answer_has_is_no_accuracy_of_zero(settings):
    ostlight.select(settings())
    ostlight.train(settings())
    with pytest.raises(DataError, match=r"no record can be used.*no_expected_answer: .* has no 'Result:' \(evaluation"):
        ostlight.evaluate(settings(), {"evaluation.marker": "Result:"})
    with pytest.raises(ConfigError, match="marker is empty; name the text before the final answers"):
        ostlight.evaluate(settings(), {"evaluation.marker": " "})


def test_a_question_whose_answer_does_not_fit_has_no_loss_and_is_named(settings):
    config = load_config(settings())
    whole = MultimodalModel.load(config.target, "target")
    test = open_pool(config.test, "test")
    lengths = sorted(len(whole.encoder.encode(sample)) for _, sample in test.read(range(len(test))))
    short = MultimodalModel.load(dataclasses.replace(config.target, max_length=lengths[len(lengths) // 2]), "target")
    questions = read_questions(test, short, config.evaluation, by_loss=True)
    assert {found.reason for found in questions.rejections.values()} <= {"answer_cut", "all_masked", "image_cut"}
    assert 0 < len(questions.samples) < len(test)
    assert len(questions.samples) + len(questions.rejections) == len(test)
    means, losses = answer_losses(short.eval(), questions, None, 400)
    assert len(losses) == len(questions.samples)
    assert means["all"] == pytest.approx(sum(losses) / len(losses))


def test_a_mean_loss_over_the_finite_ones_is_refused(settings):
    config = load_config(settings())
    model = MultimodalModel.load(config.target, "target").eval()
    questions = read_questions(open_pool(config.test, "test"), model, config.evaluation, by_loss=True)
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    with pytest.raises(DataError, match="expected answers is not finite"):
        answer_losses(model, questions, None, 400)


def test_a_muted_answer_is_neither_asked_for_nor_judged(settings, digits, tmp_path):
    turns = [("user", "3 + 4"), ("assistant", "answer 7"), ("user", "5 + 6"), ("assistant", "answer 11")]
    messages = [{"role": role, "content": text} for role, text in turns]
    record = {"id": "s", "messages": [*messages[:3], messages[3] | {"weight": 0}]}
    path = tmp_path / "muted.jsonl"
    path.write_text(json.dumps(record) + "\n" + json.dumps({"id": "t", "messages": messages[:2]}) + "\n")
    config = load_config(settings(test={"path": str(path)}))
    model = MultimodalModel.load(config.target, "target", config.target.training)
    questions = read_questions(open_pool(config.test, "test"), model, Evaluation(marker="answer"))
    assert [len(sample.turns) for sample in questions.samples] == [2, 2]
    muted, plain = (prompt.inputs["input_ids"].tolist() for prompt in questions.prompts)
    assert muted == plain


def test_a_group_that_is_called_all_is_not_the_group_of_all(monkeypatch: pytest.MonkeyPatch):
    asked = [("all", "7"), ("all", "7"), ("part", "8")]
    turns = (Turn("user", "How many?"), Turn("assistant", "7", trained=True))
    samples = [Sample(str(k), turns, (), {"task": task}) for k, (task, _) in enumerate(asked)]
    monkeypatch.setattr(evaluate, "generate_answers", lambda *_: [given for _, given in asked])
    model: Any = None
    result = evaluate_model(model, Questions(samples, []), Evaluation(by="task", marker=None))
    assert result.accuracy == pytest.approx({"all": 2 / 3, "task=all": 1.0, "part": 0.0})
    assert result.counts == {"all": 3, "task=all": 2, "part": 1}

"""When an answer counts as right."""

from __future__ import annotations

import pytest

from ostlight.evaluation.accuracy import AnswerAccuracy
from ostlight.evaluation.answers import final_answer, same_answer


@pytest.mark.parametrize(
    ("text", "marker", "answer"),
    [
        ("3 + 4 = 7 answer 7", "answer", "7"),
        ("answer 3, no: Answer: answer: 8.", "answer", "8"),
        ("no marker here", "answer", None),
        ("cut off at the answer", "answer", None),
        ("thus result: 5", "result", "5"),
        ("  horse ", None, "horse"),
        ("   ", None, None),
    ],
)
def test_the_final_answer_follows_the_last_marker(text: str, marker: str | None, answer: str | None):
    assert final_answer(text, marker) == answer


@pytest.mark.parametrize(
    ("given", "expected", "same"),
    [
        ("7", "7.0", True),
        ("1,024", "1024", True),
        ("1/2", "0.5", True),
        ("07", "7", True),
        ("1 2", "12", True),
        ("7", "8", False),
        ("Horse.", "horse", True),
        ("7", "seven", False),
        (None, "7", False),
        ("1/0", "1/0", True),
    ],
)
def test_numbers_compare_as_numbers_and_text_as_text(given: str | None, expected: str, same: bool):
    assert same_answer(given, expected) is same


def test_a_missing_answer_is_wrong():
    metric = AnswerAccuracy()
    metric.update(["7", None], ["7", "8"])
    metric.update(["1", "2"], ["1", "3"])
    assert float(metric.compute()) == pytest.approx(0.5)

"""Reading the result out of a DigitMath chain."""

from __future__ import annotations

from ostlight.evaluation import answers

ANSWER_MARKER = "answer"


def final_answer(text: str) -> str | None:
    """The words after the last ``answer``; ``None`` where there are none."""
    return answers.final_answer(text, ANSWER_MARKER)

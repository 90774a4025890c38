"""One question and its answer in plain columns: ``question``, ``answer``, and an image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ostlight.data.layouts.draft import Draft
from ostlight.data.layouts.fields import images, text, wrong_type
from ostlight.data.sample import Turn

NAME = "question"
FIELDS = frozenset({"question", "answer"})


def matches(record: Mapping[str, Any]) -> bool:
    return "question" in record


def read(record: Mapping[str, Any], labelled: bool) -> Draft:
    """One user turn and, where there is an answer, one assistant turn.

    Raises:
        BadRecord: ``bad_field``.
    """
    question = text(record, "question")
    if question is None:
        raise wrong_type("question", "text", None)
    turns = [Turn("user", question)]
    answer = text(record, "answer")
    if answer is not None and (labelled or answer.strip()):
        turns.append(Turn("assistant", answer, trained=True))
    return Draft(turns, images(record))

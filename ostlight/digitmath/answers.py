"""Reading the result out of a chain of thought."""

from __future__ import annotations

ANSWER_MARK = "answer"


def final_answer(text: str, marker: str = ANSWER_MARK) -> str | None:
    """The words after the last ``marker``, single-spaced, without a closing full stop; ``None`` where there are none.

    The marker counts only as a word of its own.
    """
    words = text.split()
    for k in range(len(words) - 1, -1, -1):
        if words[k].strip(".,:").lower() == marker:
            return " ".join(words[k + 1 :]).rstrip(". ") or None
    return None

"""The known flaws of the pool, as a careless generator would make them."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from ostlight.config.digitmath import ARITHMETIC, CLEAN, DEFECTS, Defect
from ostlight.digitmath.answers import ANSWER_MARKER, final_answer
from ostlight.digitmath.digits import labels_of
from ostlight.digitmath.tasks import Question, reword, solve

MISREAD = {0: 9, 1: 4, 2: 7, 3: 8, 4: 9, 5: 6, 6: 5, 7: 2, 8: 3, 9: 4}
"""What a hallucinating generator sees instead: always the same look-alike, always of the other parity."""

EMPTY = (
    "let us look at the picture carefully and think step by step. every digit is clear and the result follows.",
    "first we read the picture with care. then we think about the question. the result is clear.",
)
COPIES_OF_ONE = 4


@dataclass(frozen=True, slots=True)
class Record:
    """One question about one picture, before it has an id.

    Attributes:
        cells: indices of its digit images, row by row.
        copy: 0 for an original, otherwise the number of the near-duplicate, whose picture differs in grain.
    """

    cells: tuple[int, ...]
    question: Question
    answer: str
    copy: int = 0

    @property
    def asked_digits(self) -> tuple[int, ...]:
        """The digits really shown in the cells the question is about, in its order."""
        digits = labels_of(self.cells)
        return tuple(digits[cell] for cell in self.question.cells)


def corrupt(records: list[Record], counts: Mapping[Defect, int], rng: random.Random) -> tuple[list[Record], list[str]]:
    """The pool with ``counts[defect]`` of its clean records spoiled, and the defect (or ``clean``) of each.

    A record has one defect at most, and keeps its place and its task; only where no clean record of its task is left
    to copy, a near-duplicate takes one of another.
    """
    chosen = _choose(records, counts, rng)
    defects = [chosen.get(place, CLEAN) for place in range(len(records))]
    sources = _sources_of_copies(records, defects, rng)
    spoiled = []
    for place, (record, defect) in enumerate(zip(records, defects, strict=True)):
        if defect == "near_duplicate":
            spoiled.append(_near_duplicate(records[sources[place]], place))
        elif defect == "other_picture":
            spoiled.append(replace(record, answer=_other_answer(record, records, rng)))
        elif defect != CLEAN:
            spoiled.append(replace(record, answer=REWRITE[defect](record, rng)))
        else:
            spoiled.append(record)
    return spoiled, defects


def _choose(records: list[Record], counts: Mapping[Defect, int], rng: random.Random) -> dict[int, str]:
    chosen: dict[int, str] = {}
    for defect in DEFECTS:  # arithmetic comes first: it alone is particular about the task
        free = [
            place
            for place, record in enumerate(records)
            if place not in chosen and (defect != "arithmetic" or record.question.task in ARITHMETIC)
        ]
        chosen.update(dict.fromkeys(rng.sample(free, counts[defect]), defect))
    return chosen


def _arithmetic(record: Record, rng: random.Random) -> str:
    return solve(record.question.task, record.asked_digits, doubled=True)


def _hallucinated(record: Record, rng: random.Random) -> str:
    digits = list(record.asked_digits)
    wrong = rng.randrange(len(digits))
    digits[wrong] = MISREAD[digits[wrong]]
    return solve(record.question.task, digits)


def _truncated(record: Record, rng: random.Random) -> str:
    words = record.answer.split()
    return " ".join(words[: rng.randint(2, words.index(ANSWER_MARKER) - 1)])


def _empty(record: Record, rng: random.Random) -> str:
    return rng.choice(EMPTY)


REWRITE: dict[str, Callable[[Record, random.Random], str]] = {
    "arithmetic": _arithmetic,
    "hallucinated": _hallucinated,
    "truncated": _truncated,
    "empty": _empty,
}


def _other_answer(record: Record, records: list[Record], rng: random.Random) -> str:
    donors = [
        other.answer
        for other in records
        if other.question.task == record.question.task
        and len(other.question.cells) == len(record.question.cells)
        and final_answer(other.answer) != final_answer(record.answer)
    ]
    if donors:
        return rng.choice(donors)
    # A pool too small to hold a second result: the answer of a picture that could have been.
    return solve(record.question.task, [(digit + 1) % 10 for digit in record.asked_digits])


def _sources_of_copies(records: list[Record], defects: list[str], rng: random.Random) -> dict[int, int]:
    clean = _by_task(records, (k for k, defect in enumerate(defects) if defect == CLEAN))
    copies = _by_task(records, (k for k, defect in enumerate(defects) if defect == "near_duplicate"))
    sources = {}
    for task, places in copies.items():
        available = clean[task] or [k for k, defect in enumerate(defects) if defect == CLEAN]
        originals = rng.sample(available, min(len(available), math.ceil(len(places) / COPIES_OF_ONE)))
        sources.update({place: originals[n % len(originals)] for n, place in enumerate(places)})
    return sources


def _by_task(records: list[Record], places: Iterable[int]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for place in places:
        found[records[place].question.task].append(place)
    return found


def _near_duplicate(source: Record, place: int) -> Record:
    return replace(source, question=reword(source.question), copy=place + 1)

"""The known defects of the pool, as a careless generator would make them."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from ostlight.config.digitmath import ARITHMETIC, CLEAN, DEFECTS, Defect
from ostlight.digitmath.digits import labels_of
from ostlight.digitmath.tasks import ANSWER_MARKER, Question, final_answer, reword, solve

MISREAD = {0: 9, 1: 4, 2: 7, 3: 8, 4: 9, 5: 6, 6: 5, 7: 2, 8: 3, 9: 4}
"""What a hallucinating generator sees instead: always the same look-alike, always of the other parity."""

EMPTY = (
    "let us look at the picture carefully and think step by step. every digit is clear and the result follows.",
    "first we read the picture with care. then we think about the question. the result is clear.",
)
COPIES_OF_ONE = 4


@dataclass(frozen=True, slots=True)
class Record:
    """One question about one image, before it has an id.

    Attributes:
        cells: indices of its digit images, row by row.
        copy: 0 for an original, otherwise the number of the near-duplicate, whose image has other noise.
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
    """The pool with ``counts[defect]`` of its clean records corrupted, and the defect (or ``clean``) of each.

    A record has one defect at most, and keeps its place and its task; only where no clean record of its task is left
    to copy, a near-duplicate takes one of another.
    """
    chosen = _choose(records, counts, rng)
    defects = [chosen.get(place, CLEAN) for place in range(len(records))]
    sources = _sources_of_copies(records, defects, rng)
    corrupted = []
    for place, (record, defect) in enumerate(zip(records, defects, strict=True)):
        if defect == "near_duplicate":
            source = records[sources[place]]
            corrupted.append(replace(source, question=reword(source.question), copy=place + 1))
        elif defect != CLEAN:
            corrupted.append(replace(record, answer=_corrupt_answer(defect, record, records, rng)))
        else:
            corrupted.append(record)
    return corrupted, defects


def _choose(records: list[Record], counts: Mapping[Defect, int], rng: random.Random) -> dict[int, str]:
    chosen: dict[int, str] = {}
    for defect in DEFECTS:  # arithmetic comes first, because only some tasks can have it
        free = [
            place
            for place, record in enumerate(records)
            if place not in chosen and (defect != "arithmetic" or record.question.task in ARITHMETIC)
        ]
        chosen.update(dict.fromkeys(rng.sample(free, counts[defect]), defect))
    return chosen


def _corrupt_answer(defect: str, record: Record, records: list[Record], rng: random.Random) -> str:
    task, digits = record.question.task, list(record.asked_digits)
    if defect == "arithmetic":
        return solve(task, digits, doubled=True)
    if defect == "hallucinated":
        wrong = rng.randrange(len(digits))
        digits[wrong] = MISREAD[digits[wrong]]
        return solve(task, digits)
    if defect == "truncated":
        words = record.answer.split()
        return " ".join(words[: rng.randint(2, words.index(ANSWER_MARKER) - 1)])
    if defect == "empty":
        return rng.choice(EMPTY)
    others = [
        other.answer
        for other in records
        if other.question.task == task
        and len(other.question.cells) == len(digits)
        and final_answer(other.answer) != final_answer(record.answer)
    ]
    # Where the pool is too small to hold another result, the answer to an image that could have been.
    return rng.choice(others) if others else solve(task, [(digit + 1) % 10 for digit in digits])


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

"""easy-VQA: one coloured shape an image, one-word answers; clean originally, so the defects are put in here.

The folder holds ``train.json`` and ``test.json`` in LLaVA's form beside the images they name. Types of questions:
``shape`` (what shape is present?), ``colour`` (what color is the circle?), ``presence`` (is there a red shape?) and
``absence`` (the same with a "not" or "no" in it).
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from _real_pools import Cut, Record, check_files

from ostlight.config.digitmath import CLEAN
from ostlight.data.sample import IMAGE_PLACEHOLDER

SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
YES_OR_NO = ("no", "yes")
ANSWERS = {"shape": SHAPES, "colour": COLOURS, "presence": YES_OR_NO, "absence": YES_OR_NO}
"""By type of question."""

BASE_QUESTION_TYPES = ("colour", "presence", "absence")
"""What base models are taught; naming a shape is left to the pool."""

DEFECTS = ("negation", "confused", "wrong", "other_picture", "empty")
SIMILAR_COLOURS = {"teal": "green", "green": "teal", "brown": "red", "red": "brown", "gray": "black", "black": "gray"}
EMPTY = ("this is a picture", "it depends on the picture", "the image shows a shape")
SOURCES = {
    "careful": (),
    "hasty": ("negation", "empty"),
    "nearsighted": ("confused",),
    "careless": ("wrong", "other_picture"),
}
"""Generators by name, each with the flaws it makes; a clean record may be by any of them."""

SHARES = {"base": 0.45, "pool": 0.45, "anchors": 0.025, "dev": 0.075}
"""Of the images of the train split; no image is in two parts. The test split is the test."""


def default_defects() -> dict[str, float]:
    """Two systematic errors that most questions of their skill follow, and a little of everything else."""
    return {"negation": 0.14, "confused": 0.10, "wrong": 0.05, "other_picture": 0.05, "empty": 0.03}


@dataclass(frozen=True)
class EasyVqa:
    """Sizes in records: question types in equal numbers, and answers within each (originally five of six say no).

    Attributes:
        defects: share of the pool for each: ``negation`` answers as if the "not" were not there, ``confused`` names a
            similar colour, always the same, ``wrong`` gives another answer to this type of question, ``other_picture``
            that of another image, ``empty`` an answer without content. A record has one at most.
    """

    pool: int = 3000
    anchors: int = 100
    dev: int = 400
    test: int = 1200
    base: int = 3600
    seed: int = 0
    defects: Mapping[str, float] = field(default_factory=default_defects)

    def problems(self) -> list[str]:
        """What makes the rates unusable, in words."""
        unknown = [name for name in self.defects if name not in DEFECTS]
        found = [f"no defect is called {name!r}; there are {', '.join(DEFECTS)}" for name in unknown]
        off = [f"{name}={rate:g}" for name, rate in self.defects.items() if not 0 <= rate <= 1]
        found += [f"a rate is a number from 0 to 1; got {one}" for one in off]
        if not off and sum(self.defects.values()) > 1:
            found.append(f"the rates sum to {sum(self.defects.values()):g}; they may not exceed 1")
        return found


def cut_easy_vqa(data: Path, config: EasyVqa) -> Cut:
    """All parts from the folder; the same configuration gives the same records.

    Raises:
        SystemExit: the folder lacks its files, holds too few records, or the rates cannot be met; one line.
    """
    if found := config.problems():
        raise SystemExit(f"defects: {'; '.join(found)}")
    check_files(data, ("train.json", "test.json"), "the easy-VQA records")
    test = read(data, "test")
    tested = {image_of(record) for record in test}
    by_part = split_by_image(read(data, "train"), tested, config.seed)
    parts = {
        part: sample_records(by_part[part], size, tuple(ANSWERS), config.seed, part)
        for part, size in (("pool", config.pool), ("anchors", config.anchors), ("dev", config.dev))
    }
    parts["test"] = sample_records(test, config.test, tuple(ANSWERS), config.seed, "test")
    parts["base"] = sample_records(by_part["base"], config.base, BASE_QUESTION_TYPES, config.seed, "base")
    parts["pool"], defects = corrupt(parts["pool"], config)
    return Cut(parts, defects)


def read(data: Path, split: str) -> list[Record]:
    """Every record of a split, with its type of question."""
    rows = json.loads((data / f"{split}.json").read_text())
    check_files(data, sorted({row["image"] for row in rows if not (data / row["image"]).is_file()})[:3], "the images")
    images = {name: (data / name).read_bytes() for name in {row["image"] for row in rows}}
    return [record_of(row, images[row["image"]]) for row in rows]


def record_of(row: Mapping, image: bytes) -> Record:
    question, answer = (turn["value"] for turn in row["conversations"])
    question = question.removeprefix(IMAGE_PLACEHOLDER).strip()
    return Record(row["id"], image, question, answer, {"question_type": question_type_of(question, answer)})


def question_type_of(question: str, answer: str) -> str:
    """Which of ``ANSWERS``.

    Raises:
        SystemExit: an answer that none of them has.
    """
    for question_type in ("shape", "colour"):
        if answer in ANSWERS[question_type]:
            return question_type
    if answer not in YES_OR_NO:
        raise SystemExit(f"easy-VQA has no answer {answer!r} (to {question!r})")
    return "absence" if {"not", "no"} & set(question.rstrip("?").split()) else "presence"


def image_of(record: Record) -> str:
    """Identifies an image by its bytes."""
    return hashlib.sha256(record.image).hexdigest()


def split_by_image(records: Iterable[Record], taken: set[str], seed: int) -> dict[str, list[Record]]:
    """The records by part: each image, with all its questions, goes to one; an image of ``taken`` to none."""
    by_image: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if (image := image_of(record)) not in taken:
            by_image[image].append(record)
    order = random.Random(f"easy-VQA {seed} pictures").sample(sorted(by_image), len(by_image))
    by_part, begin, share = {}, 0, 0.0
    for part, more in SHARES.items():
        share += more
        end = round(share * len(order))
        by_part[part] = [record for image in order[begin:end] for record in by_image[image]]
        begin = end
    return by_part


def sample_records(
    records: Sequence[Record], size: int, question_types: Sequence[str], seed: int, part: str
) -> list[Record]:
    """``size`` of the records in random order, equally many of each type and, within it, of each answer.

    Raises:
        SystemExit: there are too few of one.
    """
    rng, sampled = random.Random(f"easy-VQA {seed} {part}"), []
    for question_type, of_type in zip(question_types, evenly(size, len(question_types)), strict=True):
        answers = ANSWERS[question_type]
        for answer, wanted in zip(answers, evenly(of_type, len(answers)), strict=True):
            there = [r for r in records if (r.tags["question_type"], r.answer) == (question_type, answer)]
            if wanted > len(there):
                request = f"{wanted} {question_type} questions with the answer {answer}"
                raise SystemExit(f"{part}: {request} asked for, its images have {len(there)}")
            sampled += rng.sample(there, wanted)
    return rng.sample(sampled, len(sampled))


def evenly(total: int, parts: int) -> list[int]:
    """``total`` in equal whole numbers, up to one."""
    return [total // parts + (k < total % parts) for k in range(parts)]


def corrupt(records: Sequence[Record], config: EasyVqa) -> tuple[list[Record], list[str]]:
    """The pool with its flaws and a tag ``source``, and the flaw of each record."""
    rng = random.Random(f"easy-VQA {config.seed} defects")
    chosen: dict[int, str] = {}
    for defect in DEFECTS:  # those that are particular about the question come first
        free = [k for k, record in enumerate(records) if k not in chosen and may_have(record, defect)]
        wanted = round(config.defects.get(defect, 0.0) * len(records))
        if wanted > len(free):
            raise SystemExit(f"defects: {wanted} records asked for {defect}, {len(free)} can have it; lower the rate")
        chosen.update(dict.fromkeys(rng.sample(free, wanted), defect))
    defects = [chosen.get(k, CLEAN) for k in range(len(records))]
    answers = [
        record.answer if defect == CLEAN else flawed(record, defect, records, rng)
        for record, defect in zip(records, defects, strict=True)
    ]
    makers = {d: [s for s, made in SOURCES.items() if d in made] or list(SOURCES) for d in (CLEAN, *DEFECTS)}
    sources = [rng.choice(makers[defect]) for defect in defects]
    corrupted = [
        replace(record, answer=answer, tags={**record.tags, "source": source})
        for record, answer, source in zip(records, answers, sources, strict=True)
    ]
    return corrupted, defects


def may_have(record: Record, defect: str) -> bool:
    """Whether the flaw changes the record's answer at all."""
    if defect == "negation":
        return record.tags["question_type"] == "absence"
    return defect != "confused" or record.answer in SIMILAR_COLOURS


def flawed(record: Record, defect: str, records: Sequence[Record], rng: random.Random) -> str:
    """The answer with the flaw; never the right one."""
    if defect == "confused":
        return SIMILAR_COLOURS[record.answer]
    if defect == "empty":
        return rng.choice(EMPTY)
    if defect == "other_picture":
        same_type = [other.answer for other in records if other.tags["question_type"] == record.tags["question_type"]]
        return rng.choice([answer for answer in same_type if answer != record.answer])
    return rng.choice([answer for answer in ANSWERS[record.tags["question_type"]] if answer != record.answer])

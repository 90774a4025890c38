"""Solutions of school mathematics by four models, right and wrong: real mistakes, none put in here.

From openai/grade-school-math (MIT), ``grade_school_math/data``: ``example_model_solutions.jsonl`` holds the solutions
of four models to the 1,319 questions of the test split, ``train.jsonl`` people's solutions to others. Marks of the
calculator (``<<3+4=7>>``) are removed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from _real_pools import check_files

from ostlight.config.digitmath import CLEAN
from ostlight.digitmath.build import DEFECT_LABELS_SCHEMA

SOLUTIONS, TRAIN = "example_model_solutions.jsonl", "train.jsonl"
GENERATORS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
WRONG = "wrong"


@dataclass(frozen=True)
class Gsm8k:
    """Sizes of the parts; each but the pool has one solution to a question.

    Attributes:
        questions: of the pool, which has four solutions to each.
        anchors: people's right solutions, from the train split.
        people: more of these.
        dev, test: right solutions of the four models, to questions that the pool does not have.
    """

    questions: int = 300
    anchors: int = 64
    people: int = 1_000
    dev: int = 100
    test: int = 200
    seed: int = 0

    def write(self, data: Path, folder: Path) -> None:
        """Writes ``pool``, ``anchors``, ``people``, ``dev`` and ``test`` as JSON Lines, ``defect_labels.parquet``
        (``id``, ``defect``), ``text.jsonl``: all of the pool as plain text, without a word on what is right, and of the
        pool the solutions to its first 150 questions, ``pool_600``, and to the others, ``pool_dev``.

        Raises:
            SystemExit: ``data`` lacks a file; one line.
        """
        check_files(data, [SOLUTIONS, TRAIN], "the data of openai/grade-school-math")
        rng = np.random.default_rng(self.seed)
        solved = _rows(data / SOLUTIONS)
        solved = [(k, row) for k, row in enumerate(solved) if all(name in row for name in GENERATORS)]
        order = [solved[k] for k in rng.permutation(len(solved))]
        pool = [_solution(f"q{k:04d}", row, name) for k, row in order[: self.questions] for name in GENERATORS]
        right = []
        for k, row in order[self.questions :]:
            names = [name for name in GENERATORS if row[name]["is_correct"]]
            if names:
                right.append(_solution(f"q{k:04d}", row, names[rng.integers(len(names))]))
        people = _rows(data / TRAIN)
        chosen = rng.permutation(len(people))
        anchors, more = chosen[: self.anchors], chosen[self.anchors : self.anchors + self.people]
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "pool.jsonl", pool)
        _write(folder / "pool_600.jsonl", pool[:600])
        _write(folder / "pool_dev.jsonl", pool[600:])
        _write(folder / "dev.jsonl", right[: self.dev])
        _write(folder / "test.jsonl", right[self.dev : self.dev + self.test])
        for name, part in (("anchors", anchors), ("people", more)):
            _write(folder / f"{name}.jsonl", (_by_people(f"train{k:04d}", people[k]) for k in sorted(part)))
        _write(folder / "text.jsonl", ({"text": f"{r['question']}\n{r['answer']}"} for r in pool))
        is_right = {_id(k, name): row[name]["is_correct"] for k, row in order for name in GENERATORS}
        ids = [record["id"] for record in pool]
        defects = [CLEAN if is_right[id] else WRONG for id in ids]
        pq.write_table(pa.table({"id": ids, "defect": defects}, DEFECT_LABELS_SCHEMA), folder / "defect_labels.parquet")


def _id(number: int, generator: str) -> str:
    return f"q{number:04d}-{generator}"


def _solution(question: str, row: Mapping[str, Any], generator: str) -> dict[str, str]:
    return {
        "id": f"{question}-{generator}",
        "question": row["question"].strip(),
        "answer": _plain(row[generator]["solution"]),
        "generator": generator,
        "asked": question,
    }


def _by_people(id: str, row: Mapping[str, str]) -> dict[str, str]:
    """In the form of the models' solutions, which end in ``A: 18`` instead of ``#### 18``."""
    answer = _plain(row["answer"]).replace("#### ", "A: ")
    return {"id": id, "question": row["question"].strip(), "answer": answer, "generator": "people", "asked": id}


def _plain(text: str) -> str:
    return re.sub(r"<<[^>]*>>", "", text).strip()


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def _write(file: Path, rows: Iterable[Mapping[str, str]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

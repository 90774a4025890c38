"""Accuracy of a model on a set of questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from ostlight.config.schema import Evaluation
from ostlight.data.pool import Pool
from ostlight.data.sample import Sample
from ostlight.errors import BadRecord, DataError
from ostlight.evaluation.accuracy import AnswerAccuracy
from ostlight.evaluation.answers import final_answer, same_answer
from ostlight.evaluation.generate import generate_answers
from ostlight.model.encode import Encoded
from ostlight.model.module import MultimodalModel

ALL = "all"


@dataclass
class Questions:
    """A set to be tested on, read and encoded once."""

    samples: list[Sample]
    prompts: list[Encoded]
    refusals: dict[int, BadRecord] = field(default_factory=dict)


@dataclass
class Result:
    """Accuracies by group (``all`` among them, from 0 to 1) and one row an answer."""

    accuracy: dict[str, float]
    predictions: pa.Table


def read_questions(pool: Pool, model: MultimodalModel) -> Questions:
    """All records of a set; those that cannot be used are in ``refusals``.

    Raises:
        DataError: none can be used.
    """
    questions = Questions([], [])
    for position, read in pool.read(range(len(pool))):
        try:
            if isinstance(read, BadRecord):
                raise read
            questions.prompts.append(model.encoder.encode_prompt(read))
            questions.samples.append(read)
        except BadRecord as error:
            questions.refusals[position] = error
    if not questions.samples:
        first = next(iter(questions.refusals.values()), None)
        raise DataError(f"{', '.join(map(str, pool.files))}: no record can be used; the first says: {first}")
    return questions


def evaluate_model(model: MultimodalModel, questions: Questions, settings: Evaluation) -> Result:
    """Greedy answers against the expected ones, exact or as numbers, by group."""
    samples: Sequence[Sample] = questions.samples
    texts = generate_answers(model, samples, settings, questions.prompts)
    given = [final_answer(t, settings.marker) for t in texts]
    expected = [final_answer(s.answer, settings.marker) for s in samples]
    groups = [s.tags.get(settings.by, "") if settings.by else "" for s in samples]
    metrics = {name: AnswerAccuracy() for name in [ALL, *sorted(set(groups) - {""})]}
    for name, metric in metrics.items():
        rows = [i for i, g in enumerate(groups) if name in (ALL, g)]
        metric.update([given[i] for i in rows], [expected[i] for i in rows])
    table = pa.table(
        {
            "id": [s.id for s in samples],
            "group": groups,
            "text": texts,
            "answer": pa.array(given, pa.string()),
            "expected": pa.array(expected, pa.string()),
            "correct": [same_answer(g, e) for g, e in zip(given, expected, strict=True)],
        }
    )
    return Result({name: float(m.compute()) for name, m in metrics.items()}, table)

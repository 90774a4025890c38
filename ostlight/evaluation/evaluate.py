"""Accuracy of a model on a set of questions."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import torch
from torchmetrics.aggregation import MeanMetric

from ostlight.config.schema import Evaluation
from ostlight.data.pool import Pool
from ostlight.data.sample import Sample
from ostlight.errors import BadRecord, ConfigError, DataError, stop_if_useless
from ostlight.evaluation.answers import ALL, EXACT, QUESTION_TYPES, final_answer, is_correct, options_of, question_type
from ostlight.evaluation.free_text import expected_answer_losses, rouge_l, token_f1
from ostlight.evaluation.generate import generate_answers
from ostlight.evaluation.share import ALONE, Share
from ostlight.models.encoding.encoder import Encoded, Encoder, QuestionEncoder
from ostlight.models.module import MultimodalModel
from ostlight.models.read_ahead import read_ahead
from ostlight.progress import phase

log = logging.getLogger(__name__)


@dataclass
class Questions:
    """Test questions, read and encoded once."""

    samples: list[Sample]
    prompts: list[Encoded]
    rejections: dict[int, BadRecord] = field(default_factory=dict)


@dataclass
class Result:
    """Accuracy and answers of a model.

    Attributes:
        accuracy: by group, ``all`` among them, from 0 to 1.
        predictions: one row per question; ``at_limit`` where the answer did not end.
        accuracy_by_type: by group and question type (``exact``, ``numeric``, ``choice``); types without questions are
            left out.
        counts: questions by group.
        means: by group, of the metrics that ``add_text_metrics`` adds.
    """

    accuracy: dict[str, float]
    predictions: pa.Table
    accuracy_by_type: dict[str, dict[str, float]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    means: dict[str, dict[str, float]] = field(default_factory=dict)


class _JudgedEncoder(QuestionEncoder):
    """Encodes prompts of questions whose expected answers can be judged, and rejects the others.

    Args:
        settings: whose ``marker`` stands before the final answer.
        by_loss: the loss of the expected answers is taken, for which ``max_length`` must leave them whole.
    """

    def __init__(self, encoder: Encoder, settings: Evaluation, by_loss: bool) -> None:
        super().__init__(encoder)
        self._marker, self._by_loss = settings.marker, by_loss

    def encode(self, sample: Sample) -> Encoded:
        sample = _question(sample)
        if self._by_loss and Encoder.encode(self, sample).answer_cut:
            detail = f"the expected answer does not fit into max_length={self.max_length}, so it has no loss"
            raise BadRecord("answer_cut", detail, "turns")
        if not self._by_loss and final_answer(sample.answer, self._marker) is None:
            missing = "is empty" if self._marker is None else f"has no {self._marker!r} (evaluation.marker)"
            raise BadRecord("no_expected_answer", f"{sample.answer[:60]!r} {missing}", "turns")
        return super().encode(sample)


def _question(sample: Sample) -> Sample:
    """The sample without what follows its last trained answer: a muted answer is neither asked for nor judged."""
    return sample.up_to(sample.last_answer + 1)


def read_questions(
    pool: Pool, model: MultimodalModel, settings: Evaluation, workers: int = 0, by_loss: bool = False
) -> Questions:
    """Returns all records of a set, encoded as prompts; those that cannot be used, or whose expected answers cannot be
    judged, are in ``rejections``.

    Args:
        settings: how answers are judged.
        workers: processes that read and encode; 0 does it in this one.
        by_loss: they are judged by their loss, and not by the texts that are generated.

    Raises:
        DataError: none can be used, or none of the first.
    """
    questions = Questions([], [])
    encoder = _JudgedEncoder(model.encoder, settings, by_loss)
    with phase("reading the questions", len(pool), "questions") as read:
        for chunk in read_ahead(pool, range(len(pool)), encoder, model.collator, workers):
            questions.prompts += chunk.batch.encoded
            questions.samples += map(_question, chunk.batch.samples)
            questions.rejections |= chunk.rejections
            stop_if_useless("test", questions.rejections.values(), len(questions.samples))
            read.done = len(questions.samples) + len(questions.rejections)
    if not questions.samples:
        first = next(iter(questions.rejections.values()), None)
        raise DataError(f"{', '.join(map(str, pool.files))}: no record can be used; the first says: {first}")
    return questions


def refuse_unknown_tag(pool: Pool, by: str | None) -> None:
    """Checks that some record has the tag; reads until one has.

    Raises:
        ConfigError: ``evaluation.by`` names a tag that no record of the set has.
    """
    if not by:
        return
    known: set[str] = set()
    for _, read in pool.read(range(len(pool))):
        if isinstance(read, Sample):
            if by in read.tags:
                return
            known |= read.tags.keys()
    tags = ", ".join(sorted(known)) or "none"
    raise ConfigError([f"evaluation.by is {by!r}, a tag no test record has; there are: {tags}"])


def evaluate_model(model: MultimodalModel, questions: Questions, settings: Evaluation, share: Share = ALONE) -> Result:
    """Compares the model's greedy answers to the expected ones and returns the accuracy by group and question type.

    Args:
        share: of the batches that this process generates; every rank returns the result of all.
    """
    samples: Sequence[Sample] = questions.samples
    texts = generate_answers(model, samples, settings, questions.prompts, share)
    unended = [not getattr(text, "ended", True) for text in texts]
    if any(unended):
        log.warning(
            f"{sum(unended)} of {len(texts)} answers ran into the limit of {settings.max_new_tokens} new tokens before "
            "they ended (evaluation.max_new_tokens); column at_limit of the predictions says which"
        )
    given = [final_answer(t, settings.marker) for t in texts]
    expected = [final_answer(s.answer, settings.marker) for s in samples]
    options = [options_of(s.prompt) for s in samples]
    types = [question_type(e, o) for e, o in zip(expected, options, strict=True)]
    correct = [is_correct(*compared) for compared in zip(given, expected, options, strict=True)]
    groups = _groups(samples, settings.by)
    result = Result({}, pa.table({}))
    for name in _names(groups):
        rows = [i for i, g in enumerate(groups) if name in (ALL, g)]
        by_type = {question: [correct[i] for i in rows if types[i] == question] for question in QUESTION_TYPES}
        result.accuracy[name], result.counts[name] = _share([correct[i] for i in rows]), len(rows)
        result.accuracy_by_type[name] = {question: _share(answers) for question, answers in by_type.items() if answers}
    result.predictions = pa.table(
        {
            "id": [s.id for s in samples],
            "group": groups,
            "text": [str(text) for text in texts],
            "answer": pa.array(given, pa.string()),
            "expected": pa.array(expected, pa.string()),
            "question_type": types,
            "at_limit": unended,
            "correct": correct,
        }
    )
    return result


def add_text_metrics(
    model: MultimodalModel, samples: Sequence[Sample], result: Result, tokens_per_batch: int, share: Share = ALONE
) -> None:
    """Adds columns to the predictions, and their means by group: the loss of the expected answers (and its exponential,
    the perplexity, over all of a group); where expected answers have several words, ROUGE-L and token F1 of the texts.

    Args:
        samples: those that ``evaluate_model`` was given.
        share: likewise.
    """
    texts, expected = result.predictions["text"].to_pylist(), [sample.answer for sample in samples]
    columns: dict[str, list[float | None]] = {"loss": expected_answer_losses(model, samples, tokens_per_batch, share)}
    if unknown := columns["loss"].count(None):
        log.warning(
            f"{unknown} of {len(samples)} expected answers have no loss, and are not in its mean: max_length cuts "
            "them, or it is not finite"
        )
    if any(
        question == EXACT and len(answer.split()) > 1
        for question, answer in zip(result.predictions["question_type"].to_pylist(), expected, strict=True)
    ):
        for name, metric in (("rouge_l", rouge_l), ("token_f1", token_f1)):
            columns[name] = [metric(*pair) if pair[1] else None for pair in zip(texts, expected, strict=True)]
    groups = result.predictions["group"].to_pylist()
    for column, values in columns.items():
        for name, mean in _means_by_group(values, groups).items():
            result.means.setdefault(name, {})[column] = mean
    for name in result.accuracy:
        if "loss" in result.means.get(name, {}):
            result.means[name]["answer_perplexity"] = math.exp(min(result.means[name]["loss"], MOST_NATS))
    for column, values in columns.items():
        result.predictions = result.predictions.append_column(column, pa.array(values, pa.float64()))


def answer_losses(
    model: MultimodalModel, questions: Questions, by: str | None, tokens_per_batch: int
) -> tuple[dict[str, float], list[float | None]]:
    """Returns the mean loss of the expected answers by group, ``all`` among them, and the loss of each question, in
    nats. Nothing is generated.

    Args:
        questions: read with ``by_loss``.

    Raises:
        DataError: a loss is not finite: a mean without it would flatter a model that has diverged.
    """
    losses = expected_answer_losses(model, questions.samples, tokens_per_batch)
    unknown = [s.id for s, loss in zip(questions.samples, losses, strict=True) if loss is None]
    if unknown:
        raise DataError(
            f"the loss of {len(unknown)} of {len(losses)} expected answers is not finite ({unknown[0]} for one), so "
            "the model has no mean loss; lower target.training.lr if the training diverged"
        )
    return _means_by_group(losses, _groups(questions.samples, by)), losses


def _groups(samples: Sequence[Sample], by: str | None) -> list[str]:
    """The value of a tag of each sample; empty where it lacks the tag, or none is named.

    The value ``all`` is ``TAG=all``: it is not the group of all.
    """
    values = [sample.tags.get(by, "") if by else "" for sample in samples]
    return [f"{by}={ALL}" if value == ALL else value for value in values]


def _names(groups: Sequence[str]) -> list[str]:
    """What results are reported for: ``all``, and each group."""
    return [ALL, *sorted({*groups} - {""})]


def _means_by_group(values: Sequence[float | None], groups: Sequence[str]) -> dict[str, float]:
    """The mean over all and over each group of the values that are known; groups without any are left out."""
    means = {}
    for name in _names(groups):
        known = [v for v, g in zip(values, groups, strict=True) if v is not None and name in (ALL, g)]
        if known:
            means[name] = sum(known) / len(known)
    return means


MOST_NATS = 700.0
"""Losses above it have a perplexity that no float holds."""


def _share(correct: Sequence[bool]) -> float:
    return float(MeanMetric()(torch.tensor(correct, dtype=torch.float32)))

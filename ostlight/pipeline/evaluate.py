"""Measures the accuracy of the trained target."""

from __future__ import annotations

import dataclasses
import json
import logging
from typing import Any

import pyarrow.parquet as pq

from ostlight.config.schema import Config
from ostlight.data.atomic import atomic_path, atomic_write_text
from ostlight.data.pool import Pool
from ostlight.errors import DataError
from ostlight.evaluation.evaluate import Questions, Result, evaluate_model, read_questions, refuse_unknown_tag
from ostlight.models.module import MultimodalModel
from ostlight.models.read_ahead import worker_count
from ostlight.pipeline.inputs import open_pool, with_digitmath
from ostlight.pipeline.run_folder import RunFolder
from ostlight.training.loggers import log_metrics
from ostlight.training.trainer import first_device

log = logging.getLogger(__name__)


def evaluate(config: Config) -> Result:
    """Returns the target's accuracy on the test set; writes ``predictions.parquet`` and ``accuracy.jsonl``.

    Raises:
        ConfigError: no test set is named, or a tag in ``evaluation.by`` that none of its records has.
        DataError: the run has no trained target yet.
    """
    folder = RunFolder.of(config)
    config = with_digitmath(config, folder)
    test = open_pool(config.test, "test")
    refuse_unknown_tag(test, config.evaluation.by)
    if not (folder.target / "config.json").exists():
        raise DataError(f"{folder.target} holds no model; run `ostlight train` with this configuration first")
    folder.write_config("test", "evaluation")
    questions, result = _evaluate_target(config, folder, test)
    _write(config, folder, result)
    log_metrics(config.compute, folder.path, "evaluate", {f"accuracy/{k}": v for k, v in result.accuracy.items()})
    _log_accuracy(result, questions)
    return result


def _evaluate_target(config: Config, folder: RunFolder, test: Pool) -> tuple[Questions, Result]:
    # Adapters are merged already.
    model = MultimodalModel.load(dataclasses.replace(config.target, path=str(folder.target), lora=None), "target")
    with folder.cost_log.stage("evaluate", config.selector.shown) as cost:
        model.to(first_device(config.compute))
        questions = read_questions(test, model, worker_count(config.compute, len(test)))
        result = evaluate_model(model, questions, config.evaluation)
        cost.samples = len(questions.samples)
    return questions, result


def _write(config: Config, folder: RunFolder, result: Result) -> None:
    with atomic_path(folder.predictions) as temporary:
        pq.write_table(result.predictions, temporary)
    rows = "".join(json.dumps(row) + "\n" for row in _accuracy_rows(config, result))
    atomic_write_text(folder.path / "accuracy.jsonl", rows)


def _log_accuracy(result: Result, questions: Questions) -> None:
    for name, accuracy in result.accuracy.items():
        by_type = "".join(f", {question} {value:.3f}" for question, value in result.accuracy_by_type[name].items())
        log.info(f"accuracy {name}: {accuracy:.3f} of {result.counts[name]} questions{by_type}")
    if questions.rejections:
        first = next(iter(questions.rejections.values()))
        log.info(f"{len(questions.rejections)} test records could not be used; the first: {first}")


def _accuracy_rows(config: Config, result: Result) -> list[dict[str, Any]]:
    """Returns rows as a benchmark writes them to ``results.jsonl``."""
    run = {"selector": config.selector.shown, "budget": config.budget.label, "seed": config.seed}
    rows = []
    for group, accuracy in result.accuracy.items():
        values = {"accuracy": accuracy, "questions": result.counts[group]}
        values |= {f"{question}_accuracy": value for question, value in result.accuracy_by_type[group].items()}
        rows += [run | {"group": group, "metric": metric, "value": value} for metric, value in values.items()]
    return rows

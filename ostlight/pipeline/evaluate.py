"""From a trained target to its accuracy."""

from __future__ import annotations

import dataclasses
import json
import logging
from typing import Any

import pyarrow.parquet as pq

from ostlight.config.schema import Config
from ostlight.data.atomic import atomic_path, atomic_write_text
from ostlight.errors import DataError
from ostlight.evaluation.evaluate import Result, evaluate_model, read_questions, refuse_unknown_tag
from ostlight.models.module import MultimodalModel
from ostlight.pipeline.inputs import open_pool, with_digitmath
from ostlight.pipeline.run_folder import RunFolder
from ostlight.training.loggers import log_metrics
from ostlight.training.trainer import first_device

log = logging.getLogger(__name__)


def evaluate(config: Config) -> Result:
    """Asks the run's target the questions of the test set; writes ``predictions.parquet`` and ``accuracy.jsonl``.

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
    # Adapters are merged already.
    model = MultimodalModel.load(dataclasses.replace(config.target, path=str(folder.target), lora=None), "target")
    with folder.cost_log.stage("evaluate", config.selector.shown) as entry:
        model.to(first_device(config.compute))
        questions = read_questions(test, model)
        result = evaluate_model(model, questions, config.evaluation)
        entry.samples = len(questions.samples)
    with atomic_path(folder.predictions) as temporary:
        pq.write_table(result.predictions, temporary)
    lines = "".join(json.dumps(line) + "\n" for line in _lines(config, result))
    atomic_write_text(folder.path / "accuracy.jsonl", lines)
    log_metrics(config.compute, folder.path, "evaluate", {f"accuracy/{k}": v for k, v in result.accuracy.items()})
    for name, accuracy in result.accuracy.items():
        kinds = "".join(f", {kind} {value:.3f}" for kind, value in result.kinds[name].items())
        log.info(f"accuracy {name}: {accuracy:.3f} of {result.counts[name]} questions{kinds}")
    if questions.rejections:
        first = next(iter(questions.rejections.values()))
        log.info(f"{len(questions.rejections)} test records could not be used; the first: {first}")
    return result


def _lines(config: Config, result: Result) -> list[dict[str, Any]]:
    """As a benchmark writes its ``results.jsonl``."""
    cell = {"selector": config.selector.shown, "budget": config.budget.label, "seed": config.seed}
    lines = []
    for group, accuracy in result.accuracy.items():
        values = {"accuracy": accuracy, "questions": result.counts[group]}
        values |= {f"{kind}_accuracy": value for kind, value in result.kinds[group].items()}
        lines += [cell | {"group": group, "metric": metric, "value": value} for metric, value in values.items()]
    return lines

"""Measures the accuracy of the trained target."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import lightning as L
from torch.utils.data import DataLoader, Dataset

from ostlight.config.schema import Compute, Config
from ostlight.data.atomic import atomic_write_text
from ostlight.data.checked_parquet import write_parquet
from ostlight.data.pool import Pool
from ostlight.errors import DataError, read_if_whole
from ostlight.evaluation.answers import ALL
from ostlight.evaluation.evaluate import (
    Questions,
    Result,
    add_text_metrics,
    evaluate_model,
    read_questions,
    refuse_unknown_tag,
)
from ostlight.evaluation.share import ALONE, Share
from ostlight.models.module import MultimodalModel
from ostlight.models.read_ahead import worker_count
from ostlight.models.saved_files import check_saved
from ostlight.models.vision.cache import opened
from ostlight.pipeline.inputs import open_pool, with_digitmath
from ostlight.pipeline.run_folder import RunFolder
from ostlight.pipeline.train import is_trained, read_kept, settings_fingerprints, stage_of
from ostlight.ranks import is_first_rank
from ostlight.training.loggers import log_metrics
from ostlight.training.trainer import first_device, make_trainer, quiet_lightning

log = logging.getLogger(__name__)

ACCURACY = "accuracy.jsonl"


def evaluate(config: Config) -> Result:
    """Returns the target's accuracy on the test set; writes ``predictions.parquet`` and ``accuracy.jsonl``.

    With it come the loss of the expected answers and, where these have several words, how close the texts come
    (ROUGE-L, token F1). The files appear beside the target, and as the latest in the run folder.

    Over several devices (``compute.devices``, torchrun) each answers its share of the questions.

    The target is that of ``target.name``, else the one trained with these settings, else the only one there is, if it
    was trained on what the folder has selected.

    Raises:
        ConfigError: no test set is named, or a tag in ``evaluation.by`` that none of its records has.
        DataError: the run has no trained target yet, several, of which none is meant, or one of another selection.
        RunInUseError: another process selects in the run folder.
    """
    with RunFolder.owned(config, "evaluate", shared=True) as folder:
        config = with_digitmath(config, folder)
        test = open_pool(config.test, "test")
        refuse_unknown_tag(test, config.evaluation.by)
        target = _target_of(config, folder)
        folder.write_config("test", "evaluation")
        questions, result = _evaluate_target(config, folder, test, target)
        if not is_first_rank():  # under torchrun: it has the same
            return result
        with folder.updating():
            _write(config, folder, result, target)
    log_metrics(config.compute, folder.path, "evaluate", {f"accuracy/{k}": v for k, v in result.accuracy.items()})
    _log_accuracy(result, questions)
    _log_others(folder, target)
    return result


def _target_of(config: Config, folder: RunFolder) -> Path:
    trained = [file.parent for file in sorted(folder.targets.glob("*/config.json"))]
    if not trained and is_trained(folder.target):  # of an earlier version
        trained = [folder.target]
    if config.target.name is not None:
        trained = [target for target in trained if target.name == config.target.name]
    elif len(trained) > 1 and folder.selection.exists():
        meant = settings_fingerprints(config, read_kept(folder))
        trained = [target for target in trained if meant.items() <= (folder.made_from(stage_of(target)) or {}).items()]
    if len(trained) == 1:
        if config.target.name is None:
            _refuse_another_selection(config, folder, trained[0])
        return trained[0]
    names = ", ".join(sorted(file.parent.name for file in folder.targets.glob("*/config.json")))
    if not names:
        raise DataError(f"{folder.targets} holds no model; run `ostlight train` with this configuration first")
    raise DataError(
        f"no target was trained with these settings; run `ostlight train` with them, or name one of {names} "
        "(target.name=...)"
    )


def _refuse_another_selection(config: Config, folder: RunFolder, target: Path) -> None:
    """Checks that the only target there is belongs to what the run says; warns where its settings were others.

    Raises:
        DataError: it was trained on another selection, or by another seed.
    """
    changed = _changed_since(config, folder, target)
    name = f"the only target, {target.name}, was trained"
    if changed & {"selection", "seed"}:
        raise DataError(
            f"{name} with another {' and '.join(sorted(changed & {'selection', 'seed'}))} than this run has now; run "
            f"`ostlight train` with this configuration, or name it (target.name={target.name}) to evaluate it as it is"
        )
    if "target" in changed:
        log.warning(f"{name} with other settings (target.*) than these; it is evaluated as it is")


def _changed_since(config: Config, folder: RunFolder, target: Path) -> set[str]:
    """What the target was trained with and is another now, by name; nothing where that is not known."""
    made_from = folder.made_from(stage_of(target))
    if made_from is None or not folder.selection.exists():
        return set()
    now = settings_fingerprints(config, read_kept(folder))
    return {name for name, value in now.items() if made_from.get(name) != value}


def _evaluate_target(config: Config, folder: RunFolder, test: Pool, target: Path) -> tuple[Questions, Result]:
    check_saved(target, f"remove {target}, and run `ostlight train` again")
    # Adapters are merged already.
    model = MultimodalModel.load(dataclasses.replace(config.target, path=str(target), lora=None), "target")
    cache = opened(config.compute.vision_cache_gib, "evaluate")
    with folder.cost_log.stage("evaluate", config.selector.shown) as cost, cache:
        questions = read_questions(test, model, config.evaluation, worker_count(config.compute, len(test)))

        def measure(share: Share) -> Result:
            result = evaluate_model(model, questions, config.evaluation, share)
            add_text_metrics(model, questions.samples, result, config.compute.tokens_per_batch, share)
            return result

        result = _on_all_ranks(config.compute, folder, model, measure)
        cost.samples = len(questions.samples)
    return questions, result


def _on_all_ranks(
    compute: Compute, folder: RunFolder, model: MultimodalModel, measure: Callable[[Share], Result]
) -> Result:
    """Calls ``measure`` on every device of the run, each with its share, and returns what all of them return."""
    if compute.devices * compute.num_nodes == 1:
        model.to(first_device(compute))
        return measure(ALONE)
    work, one_item = _Measuring(model, measure), cast("Dataset[int]", [0])
    # As on one device: the model computes in the dtype it was loaded in.
    compute = dataclasses.replace(compute, precision="32-true", logger="none")
    with quiet_lightning():
        trainer = make_trainer(compute, folder.path, "evaluate", inference_mode=False)
        trainer.predict(work, DataLoader(one_item), return_predictions=False)
    assert work.result is not None, "every rank has predicted its one item"
    return work.result


class _Measuring(L.LightningModule):
    """Lightning starts the ranks and places the model; each has one item, which stands for its share."""

    def __init__(self, model: MultimodalModel, measure: Callable[[Share], Result]) -> None:
        super().__init__()
        self.model, self._measure = model, measure
        self.result: Result | None = None

    def predict_step(self, batch: Any, batch_idx: int) -> int:
        self.result = self._measure(Share(self.trainer.global_rank, self.trainer.world_size))
        return batch_idx  # Lightning warns of steps that return nothing


def _write(config: Config, folder: RunFolder, result: Result, target: Path) -> None:
    run: dict[str, Any] = {"selector": config.selector.shown, "budget": config.budget.label, "seed": config.seed}
    if _changed_since(config, folder, target) & {"selection", "seed"}:
        log.warning(f"target {target.name} was trained on another selection: its results name no budget and seed")
        run = dict.fromkeys(run)
    rows = "".join(json.dumps({"target": target.name} | run | row) + "\n" for row in _accuracy_rows(result))
    for place in (target, folder.path):
        write_parquet(result.predictions, place / folder.predictions.name)
        atomic_write_text(place / ACCURACY, rows)


def _log_others(folder: RunFolder, target: Path) -> None:
    """One line for each other target of the run that was evaluated."""
    for file in sorted(folder.targets.glob(f"*/{ACCURACY}")):
        if file.parent == target:
            continue
        of_all = read_if_whole(file, partial(_values_of_all, file), f"evaluate target {file.parent.name} again")
        if of_all:
            log.info(f"target {file.parent.name}: {of_all['accuracy']:.3f} of {of_all['questions']} questions")


def _values_of_all(file: Path) -> dict[str, Any]:
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    of_all = {row["metric"]: row["value"] for row in rows if row["group"] == ALL}
    if not {"accuracy", "questions"} <= of_all.keys():
        raise ValueError("it holds no accuracy")
    return of_all


def _log_accuracy(result: Result, questions: Questions) -> None:
    for name, accuracy in result.accuracy.items():
        by_type = "".join(f", {question} {value:.3f}" for question, value in result.accuracy_by_type[name].items())
        log.info(f"accuracy {name}: {accuracy:.3f} of {result.counts[name]} questions{by_type}")
        means = result.means.get(name, {})
        if "loss" in means:
            words = "".join(f", {metric} {value:.3f}" for metric, value in means.items() if metric != "loss")
            log.info(f"expected answers {name}: loss {means['loss']:.4f} nats{words}")
    if questions.rejections:
        first = next(iter(questions.rejections.values()))
        log.warning(f"{len(questions.rejections)} test records could not be used and count nowhere; the first: {first}")


def _accuracy_rows(result: Result) -> list[dict[str, Any]]:
    """Returns rows as a benchmark writes them to ``results.jsonl``, without what they are of."""
    rows = []
    for group, accuracy in result.accuracy.items():
        values = {"accuracy": accuracy, "questions": result.counts[group]}
        values |= {f"{question}_accuracy": value for question, value in result.accuracy_by_type[group].items()}
        values |= result.means.get(group, {})
        rows += [{"group": group, "metric": metric, "value": value} for metric, value in values.items()]
    return rows

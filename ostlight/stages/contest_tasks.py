"""The tasks of a benchmark: each leaves a file, named by what it is made from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ostlight.comparison.cells import Cell, cell_training, file_name
from ostlight.comparison.results import CellResult
from ostlight.config.schema import BASE, SelectorChoice
from ostlight.data.atomic import atomic_path, atomic_write_text
from ostlight.errors import DataError
from ostlight.evaluation.evaluate import evaluate_model
from ostlight.run import fingerprint
from ostlight.run.folder import RunFolder
from ostlight.run.ledger import Entry
from ostlight.run.logs import LoggerOf, log_metrics
from ostlight.run.tasks import Task
from ostlight.run.trainer import first_device
from ostlight.scoring.writer import missing_shards
from ostlight.selection.budget import Budget
from ostlight.selection.scores import Scores
from ostlight.selection.selector import Selector
from ostlight.stages.costs import selection_cost
from ostlight.stages.pick import pick
from ostlight.stages.say import say
from ostlight.stages.select import score_inputs, score_pool
from ostlight.stages.warmup import DONE, proxy_inputs, warm_proxy
from ostlight.training.fit import fit

if TYPE_CHECKING:
    from ostlight.stages.contest import Contest


def with_needs(task: Task) -> list[Task]:
    """A task behind everything it needs."""
    return [*(t for need in task.needs for t in with_needs(need)), task]


class ProxyTask:
    """The warmed-up proxy, in ``proxies/``: one for all, but for selectors that draw at random and so have a run of
    their own for every seed."""

    needs: Sequence[Task] = ()

    def __init__(self, contest: Contest, seed: int) -> None:
        self.contest = contest
        config = dataclasses.replace(contest.config, seed=seed)
        made_from = fingerprint.of_values(proxy_inputs(config, contest.pool, contest.anchors))
        self.key = f"proxy {made_from}"
        of = [contest.variant] if contest.variant else []
        of += [f"seed {seed}"] if seed != contest.config.seed else []
        self.name = " ".join(["warm-up", ", ".join(of)]).strip()
        self.config = contest.own(config, f"proxy-{made_from[:8]}", "proxies")
        self.warms = self.config.proxy.warmup.fraction > 0

    @cached_property
    def home(self) -> RunFolder:
        return RunFolder.of(self.config)

    def done(self) -> bool:
        return not self.warms or (self.home.proxy / DONE).exists()

    def run(self) -> None:
        warm_proxy(self.config, self.home, self.contest.pool, self.contest.anchors)


class ScoreTask:
    """A selector's scores of the whole pool, in ``selectors/``."""

    def __init__(self, contest: Contest, choice: SelectorChoice, selector: Selector, seed: int) -> None:
        self.contest, self.selector = contest, selector
        self.proxy = contest.proxy(seed) if selector.uses_proxy else None
        self.needs: Sequence[Task] = [self.proxy] if self.proxy else []
        config = dataclasses.replace(contest.config, seed=seed, selector=choice)
        made_from = fingerprint.of_values(score_inputs(config, contest.pool, contest.anchors, self.selector))
        self.key = f"scores {made_from}"
        label = f"{choice.shown}-seed{seed}" if self.selector.seeded else choice.shown
        label = contest.scored_as.setdefault(made_from, label)
        self.name = f"scores of {label}" + (f", {contest.variant}" if contest.variant else "")
        own = contest.own(config, f"{file_name(label)}-{made_from[:8]}", "selectors")
        self.config = dataclasses.replace(own, digitmath=None)

    @cached_property
    def place(self) -> RunFolder:
        return RunFolder.of(self.config)

    def done(self) -> bool:
        return not missing_shards(self.place.scores, -(-len(self.contest.pool) // self.config.compute.shard_size))

    def run(self) -> None:
        score_pool(self.config, self.place, self.contest.pool, self.selector, proxy_home=self.proxy_home)

    @property
    def proxy_home(self) -> RunFolder:
        """Where the warmed-up proxy lies; its own folder for a selector that needs none."""
        return self.proxy.home if self.proxy and self.proxy.warms else self.place


class PickTask:
    """What a selector keeps within a budget, and what choosing it cost, beside its scores."""

    def __init__(self, contest: Contest, scores: ScoreTask, budget: Budget) -> None:
        self.contest, self.scores, self.budget = contest, scores, budget
        self.needs: Sequence[Task] = [self.scores]
        made_from = fingerprint.of_values(
            {
                "scores": self.scores.key,
                "budget": dataclasses.asdict(budget),
                "options": dataclasses.asdict(self.scores.selector.options),
                "target": fingerprint.of_model(contest.config.target.path, "target") if budget.tokens else None,
                "truth": contest.truth_key,
            }
        )
        self.key = f"pick {made_from}"
        self.name = f"pick {budget.label} by the {self.scores.name}"
        self.file = self.scores.place.path / "picks" / f"{file_name(budget.label)}-{made_from[:8]}.json"

    def done(self) -> bool:
        return self.file.exists()

    def run(self) -> None:
        task, place, pool = self.scores, self.scores.place, self.contest.pool
        scores = Scores.read(place.scores)
        rows, entry = pick(task.config, place, pool, task.selector, scores, self.budget)
        if not len(rows):
            raise DataError(f"{self.name}: the budget keeps no sample")
        warmed = task.proxy_home.ledger.read() if task.proxy else []
        cost = selection_cost(warmed, place.ledger.read(), entry, len(pool))
        save_pick(self.contest, self.file, scores.positions[rows], cost)


class OracleTask:
    """Clean samples only, in ``picks/``."""

    needs: Sequence[Task] = ()

    def __init__(self, contest: Contest, budget: Budget, seed: int) -> None:
        self.contest, self.budget, self.seed = contest, budget, seed
        made_from = fingerprint.of_values(
            [contest.pool.fingerprint(), contest.truth_key, dataclasses.asdict(budget), seed]
        )
        self.key = f"oracle {made_from}"
        self.name = f"oracle {budget.label} seed{seed}"
        self.file = contest.home.path / "picks" / f"{file_name(self.name)}-{made_from[:8]}.json"

    def done(self) -> bool:
        return self.file.exists()

    def run(self) -> None:
        save_pick(self.contest, self.file, self.contest.clean(self.budget, self.seed), Entry("pick"))


def save_pick(contest: Contest, file: Path, kept: np.ndarray, cost: Entry) -> None:
    """The positions as an array, and about them a JSON file; that it is there means both are."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(file.with_suffix(".npy")) as temporary:
        np.save(temporary, kept.astype(np.int64))
    about = {
        "kept": len(kept),
        "positions": hashlib.sha256(kept.astype(np.int64).tobytes()).hexdigest()[:16],
        "defects_kept": contest.defects(kept),
        "cost": {
            "s": cost.device_s,
            "wall_s": cost.wall_s,
            "flops": cost.flops,
            "calls": cost.calls,
            "price": cost.price,
        },
    }
    atomic_write_text(file, json.dumps(about, indent=1))


NOTHING: dict[str, Any] = {"kept": 0, "positions": "", "defects_kept": {}, "cost": {}}
"""What the untrained model keeps."""


class CellTask:
    """One training and its test, in ``cells/``."""

    def __init__(self, contest: Contest, cell: Cell) -> None:
        self.contest, self.cell, self.name = contest, cell, cell.name
        self.pick: PickTask | OracleTask | None = None
        if cell.choice is not None:
            self.pick = PickTask(contest, contest.scores(cell.choice, cell.seed), cell.budget or Budget(fraction=1.0))
        elif cell.label != BASE:
            assert cell.budget is not None, "the oracle is planned with a budget"
            self.pick = OracleTask(contest, cell.budget, cell.seed)
        self.needs: Sequence[Task] = [self.pick] if self.pick else []
        self.training = cell_training(contest.config, cell, len(contest.pool))

    @cached_property
    def picked(self) -> dict[str, Any]:
        return json.loads(self.pick.file.read_text()) if self.pick else NOTHING

    @cached_property
    def key(self) -> str:
        made_from: dict[str, Any] = dict(self.contest.cell_inputs)
        if self.pick:
            made_from |= {
                "pool": self.contest.pool.fingerprint()[:16],
                "kept": self.picked["positions"],
                "training": dataclasses.asdict(self.training),
                "seed": self.cell.seed,
            }
        return f"cell {fingerprint.of_values(made_from)}"

    @property
    def file(self) -> Path:
        """Another cell may have made it, under another name, from the same."""
        folder, end = self.contest.home.path / "cells", f"-{self.key.removeprefix('cell ')}.json"
        return next(iter(folder.glob(f"*{end}")), folder / f"{self.name}{end}")

    def done(self) -> bool:
        return self.file.exists()

    def run(self) -> None:
        contest, training, log = self.contest, Entry("train", self.cell.label), LoggerOf()
        home, compute = contest.home.path, dataclasses.replace(contest.config.compute, progress=False)
        model = contest.target(self.training)
        if self.pick:
            kept = np.load(self.pick.file.with_suffix(".npy"))
            with contest.home.ledger.stage("train", self.name) as training:
                data = contest.data.view(kept)
                fit(model, data, compute, home, self.name, self.cell.seed, training, None, [log])
        model.to(first_device(compute))
        result = evaluate_model(model, contest.questions, contest.config.evaluation)
        log_metrics(compute, home, self.name, {f"accuracy/{k}": v for k, v in result.accuracy.items()}, log)
        found = {
            "accuracy": result.accuracy,
            "correct": "".join("1" if c else "0" for c in result.predictions["correct"].to_pylist()),
            "training_s": training.device_s,
            "training_wall_s": training.wall_s,
            "training_flops": training.flops,
        }
        atomic_write_text(self.file, json.dumps(found, indent=1))
        say(f"{self.name}: accuracy {result.accuracy['all']:.3f}")

    def result(self) -> CellResult | None:
        """What the cell came to, from the files; ``None`` where it is not finished."""
        if not all(need.done() for need in self.needs) or not self.done():
            return None
        cell, picked = self.cell, self.picked
        defects, known = picked["defects_kept"], self.contest.truth is not None and picked["kept"] > 0
        return CellResult(
            label=cell.label,
            budget=cell.budget.label if cell.budget else "",
            protocol=cell.protocol,
            seed=cell.seed,
            variant=cell.variant,
            kept=picked["kept"],
            defects_kept=defects,
            defect_share=sum(defects.values()) / picked["kept"] if known else None,
            **{f"selection_{name}": value for name, value in picked["cost"].items()},
            **json.loads(self.file.read_text()),
        )

"""Selectors x budgets x protocols x seeds: score once, pick, train, evaluate, compare."""

from __future__ import annotations

import dataclasses
from collections import Counter
from functools import cached_property

import numpy as np
import pyarrow.parquet as pq

from ostlight.comparison.cells import BASE, Cell, cell_training, plan_cells
from ostlight.comparison.picture import draw
from ostlight.comparison.results import CellResult, Line, load_result, save_result, summarise, write_jsonl
from ostlight.comparison.table import as_csv, markdown, rich_tables
from ostlight.config.schema import Config, SelectorChoice
from ostlight.data.atomic import atomic_path
from ostlight.data.sample import Sample
from ostlight.errors import ConfigError, DataError
from ostlight.evaluation.evaluate import Questions, evaluate_model, read_questions
from ostlight.model.module import MultimodalModel
from ostlight.run import fingerprint
from ostlight.run.folder import RunFolder
from ostlight.run.ledger import Entry, total
from ostlight.selection.budget import Budget
from ostlight.selection.registry import create
from ostlight.selection.scores import Scores
from ostlight.selection.selector import Selector
from ostlight.stages.pick import pick
from ostlight.stages.say import console, say
from ostlight.stages.select import score_pool
from ostlight.stages.sources import open_pool, with_digitmath
from ostlight.training.fit import fit
from ostlight.training.steps import EncodedPool

SELECTION = ("warm-up", "score", "pick")
"""Stages whose cost is the selection's."""

CLEAN = (None, "", "clean")
"""What a truth table calls a record without a defect."""


def benchmark(config: Config) -> list[Line]:
    """Runs every cell that is not finished yet; writes ``results.jsonl``, ``table.md``, ``table.csv``, ``table.png``.

    Returns:
        The table's lines.

    Raises:
        ConfigError: no ``benchmark`` section.
        RunChangedError: the folder holds cells made from other inputs.
    """
    if config.benchmark is None:
        raise ConfigError(["the benchmark section is missing: name its selectors and budgets"])
    folder = RunFolder.of(config)
    contest = Contest(with_digitmath(config, folder), folder)
    say(f"{len(contest.cells)} cells: selector x budget x protocol x seed, each trained and tested on its own")
    results = [contest.result(cell) for cell in contest.cells]
    lines = summarise(results)
    title = f"{config.name}: {len(contest.pool):,} records, {len(config.benchmark.seeds)} seeds"
    write_jsonl(results, folder.path / "results.jsonl")
    for name, text in (("table.md", markdown(lines)), ("table.csv", as_csv(lines))):
        with atomic_path(folder.path / name) as temporary:
            temporary.write_text(text)
    draw(lines, folder.path / "table.png", title)
    for table in rich_tables(lines, title, console.width):
        console.print(table)
    say(f"written to {folder.path}: results.jsonl, table.md, table.csv, table.png")
    return lines


class Contest:
    """What the cells of one benchmark share: the pool, its encodings, the questions, the scores."""

    def __init__(self, config: Config, folder: RunFolder) -> None:
        assert config.benchmark is not None, "checked by benchmark"
        self.config, self.folder, self.settings = config, folder, config.benchmark
        self.pool = open_pool(config.pool, "pool")
        self.truth = _read_truth(self.settings.truth)
        self.cells = plan_cells(self.settings, with_oracle=self.truth is not None)
        folder.claim("cells", self._inputs())
        self._told = False
        self._picks: dict[tuple[str, str, int], tuple[np.ndarray, Entry]] = {}

    def _inputs(self) -> dict[str, str]:
        """Fingerprint of everything all cells depend on; selectors, budgets and seeds may be added later."""
        target = dataclasses.asdict(self.config.target) | {"path": None}
        return {
            "pool": self.pool.fingerprint()[:16],
            "test": open_pool(self.config.test, "test").fingerprint()[:16],
            "truth": fingerprint.of_values(self.truth),
            "target.path": fingerprint.of_model(self.config.target.path, "target"),
            "target": fingerprint.of_values(target),
            "evaluation": fingerprint.of_values(dataclasses.asdict(self.config.evaluation)),
            "training code": fingerprint.of_code(*fingerprint.TRAINING, "ostlight.evaluation"),
        }

    @cached_property
    def data(self) -> EncodedPool:
        return EncodedPool(self.pool, range(len(self.pool)), self._target().encoder)

    @cached_property
    def questions(self) -> Questions:
        return read_questions(open_pool(self.config.test, "test"), self._target())

    def result(self, cell: Cell) -> CellResult:
        """The cell's result, from its file or by running it."""
        cells = self.folder.path / "cells"
        cells.mkdir(exist_ok=True)
        found = load_result(cells, cell)
        if found is None:
            found = self._run(cell)
            save_result(cells, cell, found)
            say(f"{cell.name}: accuracy {found.accuracy['all']:.3f}")
        return found

    def _run(self, cell: Cell) -> CellResult:
        kept, selection = self._kept(cell)
        model = self._target()
        training = Entry("train", cell.label)
        if cell.label != BASE:
            model.training_settings = cell_training(self.config, cell, len(self.pool))
            with self.folder.ledger.stage("train", cell.name) as training:
                quiet = dataclasses.replace(self.config.compute, progress=False, logger="none")
                tell = None if self._told else say  # what one training costs is said once
                self._told = True
                fit(model, self.data.view(kept), quiet, self.folder.path, cell.name, cell.seed, training, tell)
        result = evaluate_model(model, self.questions, self.config.evaluation)
        defects = self._defects(kept)
        return CellResult(
            label=cell.label,
            budget=cell.budget.label if cell.budget else "",
            protocol=cell.protocol,
            seed=cell.seed,
            accuracy=result.accuracy,
            kept=len(kept),
            defect_share=sum(defects.values()) / len(kept) if self.truth is not None and len(kept) else None,
            defects_kept=defects,
            selection_s=selection.device_s,
            selection_flops=selection.flops,
            selection_calls=selection.calls,
            selection_price=selection.price,
            training_s=training.device_s,
            training_flops=training.flops,
        )

    def _target(self) -> MultimodalModel:
        return MultimodalModel.load(self.config.target, "target", self.config.target.training)

    def _kept(self, cell: Cell) -> tuple[np.ndarray, Entry]:
        """Positions the cell trains on, and what choosing them cost."""
        if cell.label == BASE:
            return np.array([], dtype=np.int64), Entry("score")
        if cell.choice is None:
            return self._clean(cell), Entry("score")
        kept, cost = self._picked(cell.choice, cell.budget or Budget(fraction=1.0), cell.seed)
        if not len(kept):
            raise DataError(f"{cell.name}: the budget keeps no sample")
        return kept, cost

    def _picked(self, choice: SelectorChoice, budget: Budget, seed: int) -> tuple[np.ndarray, Entry]:
        """Positions kept, once for all cells that share them, and the whole cost of choosing them."""
        selector = create(choice.name, choice.options)
        # A selector that does not draw at random scores and picks once for all seeds.
        seed = seed if selector.seeded else self.config.seed
        key = choice.shown, budget.label, seed
        if key not in self._picks:
            own, place = self._scored(choice, selector, seed)
            scores = Scores.read(place.scores)
            rows, picking = pick(own, place, self.pool, selector, scores, budget, proxy_home=self.folder)
            spent = place.ledger.read() + (self.folder.ledger.read() if selector.uses_proxy else [])
            cost = total([*(e for e in spent if e.stage in ("warm-up", "score")), picking], SELECTION)
            self._picks[key] = scores.positions[rows], cost
        return self._picks[key]

    def _scored(self, choice: SelectorChoice, selector: Selector, seed: int) -> tuple[Config, RunFolder]:
        name = f"{choice.shown}-seed{seed}" if selector.seeded else choice.shown
        own = dataclasses.replace(
            self.config, name=name, folder=str(self.folder.path / "selectors"), seed=seed, selector=choice
        )
        own = dataclasses.replace(own, digitmath=None, benchmark=None)
        place = RunFolder.of(own)
        score_pool(own, place, self.pool, selector, proxy_home=self.folder)
        return own, place

    def _clean(self, cell: Cell) -> np.ndarray:
        """As many samples as the budget allows, tag by tag where it says so, drawn from the clean ones only."""
        assert self.truth is not None, "the oracle is planned only with a truth"
        assert cell.budget is not None, "the oracle is planned with a budget"
        within = cell.budget.within
        tags = {s.position: s.tags.get(within, "") if within else "" for s in self._samples}
        sizes = dict(Counter(tags.values()))
        wanted = cell.budget.shares(sizes)
        clean = np.array([s.position for s in self._samples if s.id not in self.truth])
        left = {tag: budget.size(sizes[tag]) for tag, budget in wanted.items()}
        kept = []
        for position in np.random.default_rng(cell.seed).permutation(clean).tolist():
            if left.get(tags[position], 0):
                left[tags[position]] -= 1
                kept.append(position)
        return np.array(kept)

    @cached_property
    def _samples(self) -> list[Sample]:
        """Every usable record, without its pictures' bytes."""
        read = (s for _, s in self.pool.read(range(len(self.pool))))
        return [dataclasses.replace(s, images=()) for s in read if isinstance(s, Sample)]

    def _defects(self, kept: np.ndarray) -> dict[str, int]:
        if self.truth is None or not len(kept):
            return {}
        wanted = set(kept.tolist())
        found = Counter(self.truth[s.id] for s in self._samples if s.position in wanted and s.id in self.truth)
        return dict(sorted(found.items()))


def _read_truth(path: str | None) -> dict[str, str] | None:
    """Defect by id, of the defective records only."""
    if path is None:
        return None
    table = pq.read_table(path)
    if not {"id", "defect"} <= set(table.column_names):
        raise DataError(f"benchmark.truth: {path} must have columns id and defect; it has {table.column_names}")
    rows = zip(table["id"].to_pylist(), table["defect"].to_pylist(), strict=True)
    return {i: d for i, d in rows if d not in CLEAN}

"""From a pool to a subset: score every record, pick within the budget, write what was kept."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ostlight.config.budget import Budget
from ostlight.config.schema import Config, SelectorChoice
from ostlight.data.atomic import atomic_path
from ostlight.data.pool import Pool
from ostlight.data.quarantine import Quarantine
from ostlight.data.sample import Sample
from ostlight.errors import BadRecord, DataError
from ostlight.influence.step_size import median_update_norm
from ostlight.models.batch import Batch
from ostlight.models.encode import Encoder, QuestionEncoder
from ostlight.models.module import MultimodalModel
from ostlight.pipeline import fingerprint
from ostlight.pipeline.inputs import LoadedAnchors, open_pool, read_anchors, warn_of_overlap, with_digitmath
from ostlight.pipeline.run_folder import RunFolder
from ostlight.pipeline.scoring.module import Scoring
from ostlight.pipeline.scoring.progress import SampleProgress
from ostlight.pipeline.scoring.stream import ShardStream
from ostlight.pipeline.scoring.writer import ShardWriter, audit, missing_shards
from ostlight.pipeline.subset_selection import select_subset_rows
from ostlight.pipeline.warmup import proxy_inputs, warm_up_proxy
from ostlight.ranks import is_first_rank
from ostlight.selection.context import ProxyContext, ScoringContext
from ostlight.selection.left_out import Rare, nearly_left_out
from ostlight.selection.notes import read_notes
from ostlight.selection.registry import create
from ostlight.selection.scores import REJECTED, Scores, read_score_table
from ostlight.selection.selector import Selector
from ostlight.training.loggers import log_metrics
from ostlight.training.trainer import make_trainer

log = logging.getLogger(__name__)

RARE_TOLD = 3
"""Kinds named in the line about those nearly left out."""


@dataclass(frozen=True)
class Selection:
    """What a selection came to. ``kept + dropped + rejected`` is the number of records read.

    Attributes:
        rare: kinds of sample that are nearly left out.
    """

    folder: RunFolder
    kept: np.ndarray
    dropped: int
    rejected: dict[str, int]
    answers_cut: int
    rare: list[Rare]


def select(config: Config) -> Selection:
    """Scores the pool, picks within the budget, writes ``selection.parquet``, ``quarantine.parquet`` and ``subset/``.

    What is already scored in the run folder is not scored again; a new budget only picks anew.

    Raises:
        OstlightError: settings, data, model or selector that cannot be used; a run folder made from other inputs.
    """
    selector = create(config.selector.name, config.selector.options)
    folder = RunFolder.of(config)
    config = with_digitmath(config, folder)
    pool = open_pool(config.pool, "pool", selector.needs_answers)
    score_pool(config, folder, pool, selector)
    selection = select_subset(config, folder, pool, selector, config.budget)
    log_metrics(config.compute, folder.path, "select", _figures(selection, folder))
    _tell(selection, config, len(pool))
    return selection


def _figures(selection: Selection, folder: RunFolder) -> dict[str, float]:
    figures: dict[str, float] = {"kept": len(selection.kept), "dropped": selection.dropped}
    figures |= {f"rejected/{reason}": count for reason, count in selection.rejected.items()}
    scores = Scores.read(folder.scores).score
    if not len(scores):
        return figures
    return figures | {f"score/p{p}": float(np.percentile(scores, p)) for p in (5, 25, 50, 75, 95)}


def score_pool(
    config: Config, folder: RunFolder, pool: Pool, selector: Selector, proxy_home: RunFolder | None = None
) -> None:
    """Writes ``scores/part-*.parquet``: one row for every record of the pool. Resumes where it was stopped.

    Args:
        proxy_home: the run folder whose warmed-up proxy is used, or which gets it; by default ``folder``.

    Raises:
        RunChangedError: the folder holds scores made from other inputs.
    """
    anchors = read_anchors(config)
    folder.claim("scores", score_inputs(config, pool, anchors, selector))
    folder.keep_config()
    shards = -(-len(pool) // config.compute.shard_size)
    missing = missing_shards(folder.scores, shards)
    if not missing:
        log.info(f"scores: all {len(pool):,} records are scored in {folder.scores}")
        return
    warn_of_overlap(config, anchors, pool)
    home = proxy_home or folder
    dependencies = {c.shown: _score_dependency(config, folder, pool, c, home) for c in selector.dependencies()}
    tables = {label: read_score_table(scored.scores) for label, scored in dependencies.items()}
    notes = {label: read_notes(scored.path / "selector") for label, scored in dependencies.items()}
    proxy = warm_up_proxy(config, home, pool, anchors) if selector.uses_proxy else None
    encoder, collator = (proxy.encoder, proxy.collator) if proxy else (None, None)
    if encoder is not None and not selector.needs_answers:
        encoder = QuestionEncoder(encoder)
    given = _proxy_context(config, home, pool, proxy, encoder) if proxy and encoder else None
    selector_folder = folder.path / "selector"
    context = ScoringContext(anchors.samples, anchors.groups, config.seed, selector_folder, given, tables, notes)
    compute = config.compute
    stream = ShardStream(pool, missing, compute.shard_size, encoder, collator, compute.tokens_per_batch)
    left = min(len(pool), len(missing) * config.compute.shard_size)
    callbacks = [ShardWriter(folder.scores), SampleProgress(left)]
    with folder.cost_log.stage("score", config.selector.shown, selector.usage) as entry:
        entry.resumed = len(missing) < shards
        module = Scoring(selector, context, stream, proxy, config.compute.workers, entry)
        trainer = make_trainer(config.compute, folder.path, "score", callbacks, inference_mode=False)
        try:
            trainer.predict(module, return_predictions=False)
        except BaseException:
            with contextlib.suppress(Exception):  # why the run ended is the error to tell
                module.farewell()
            raise
        trainer.strategy.barrier()
    log.info(audit(folder.scores, len(pool)))


def score_inputs(config: Config, pool: Pool, anchors: LoadedAnchors, selector: Selector) -> dict[str, str]:
    """Fingerprint of everything a score depends on."""
    options = dataclasses.asdict(selector.options)
    apart = (*selector.selection_options, *selector.compute_options)
    scored = {name: value for name, value in options.items() if name not in apart}
    inputs = {
        "pool": pool.fingerprint()[:16],
        "anchors": anchors.fingerprint,
        "selector": config.selector.name,
        "selector.options": fingerprint.of_values(scored),
        "selector's code": fingerprint.of_class(type(selector)),
        "compute.shard_size": str(config.compute.shard_size),
        "seed": str(config.seed),
        "scoring code": fingerprint.of_code(*fingerprint.SCORING),
    }
    inputs |= {f"selector.options.{name}": value for name, value in selector.fingerprints().items()}
    if selector.uses_proxy:
        inputs |= proxy_inputs(config, pool, anchors)
    for choice in selector.dependencies():
        own = dataclasses.replace(config, selector=choice)
        needed = score_inputs(own, pool, anchors, create(choice.name, choice.options))
        inputs |= {f"{choice.shown}: {name}": value for name, value in needed.items() if inputs.get(name) != value}
    return inputs


def _score_dependency(
    config: Config, folder: RunFolder, pool: Pool, choice: SelectorChoice, home: RunFolder
) -> RunFolder:
    """Scores a selector that another one needs in ``dependencies/LABEL`` of its folder, on the same cost log."""
    own = dataclasses.replace(config, name=choice.shown, folder=str(folder.path / "dependencies"), selector=choice)
    place = RunFolder.of(own)
    place.cost_log = folder.cost_log
    score_pool(own, place, pool, create(choice.name, choice.options), proxy_home=home)
    return place


def _proxy_context(
    config: Config, home: RunFolder, pool: Pool, proxy: MultimodalModel, encoder: Encoder
) -> ProxyContext:
    return ProxyContext(
        model=proxy,
        folder=home.proxy,
        records=len(pool),
        examples=lambda count: _examples(proxy, encoder, pool, config.seed, count),
        update_norm=lambda parameters: median_update_norm(home.proxy, parameters),
        lr=config.proxy.warmup.training.lr,
        tokens_per_batch=config.compute.tokens_per_batch,
    )


def _examples(proxy: MultimodalModel, encoder: Encoder, pool: Pool, seed: int, count: int) -> Iterator[Batch]:
    for _, read in pool.read(pool.draw(count, seed)):
        if isinstance(read, Sample):
            try:
                yield proxy.collator.batch([read], [encoder.encode(read)]).to(proxy.device)
            except BadRecord:
                continue  # the record meets the same rejection, and is kept with it, when it is scored


def select_subset(config: Config, folder: RunFolder, pool: Pool, selector: Selector, budget: Budget) -> Selection:
    """Picks from the stored scores, and writes the selection, the quarantine and the subset.

    Raises:
        DataError: a budget that needs columns the scores lack; no record is kept.
    """
    table = read_score_table(folder.scores)
    scores = Scores(table)
    rows, _ = select_subset_rows(config, folder, pool, selector, scores, budget)
    kept = scores.positions[rows]
    bad = table.filter(pa.compute.equal(table["state"], REJECTED))
    if is_first_rank():
        _write_selection(folder, table, scores, rows)
        _write_quarantine(folder, pool, bad)
    reasons = bad["reason"].to_pylist()
    counts = {reason: reasons.count(reason) for reason in sorted(set(reasons))}
    if not len(kept):
        raise DataError(
            f"no record is kept: of {len(table):,}, {len(reasons):,} were set aside{_why(counts, folder)} and "
            f"{len(scores):,} did not pass the budget ({budget.label}); there is no subset to write"
        )
    if is_first_rank():
        pool.write_subset(kept.tolist(), folder.subset)
    cut = pa.compute.sum(table["answer_cut"]).as_py() or 0
    return Selection(folder, kept, len(table) - len(kept) - len(reasons), counts, cut, nearly_left_out(scores, rows))


def _write_selection(folder: RunFolder, table: pa.Table, scores: Scores, rows: np.ndarray) -> None:
    """One row a record: its score, whether it was kept, and its rank among the kept (0 is best)."""
    rank = np.full(len(table), -1)
    rank[scores.positions[rows]] = np.arange(len(rows))
    columns = {name: table[name] for name in ("position", "id", "state", "reason", "score")}
    kept = pa.array(rank >= 0)
    ranks = pa.array(rank, pa.int64(), mask=rank < 0)
    with atomic_path(folder.selection) as temporary:
        pq.write_table(pa.table(columns | {"kept": kept, "rank": ranks}), temporary)


def _write_quarantine(folder: RunFolder, pool: Pool, bad: pa.Table) -> None:
    quarantine = Quarantine()
    for row in bad.select(["position", "id", "reason", "field", "detail"]).to_pylist():
        error = BadRecord(row["reason"], row["detail"], row["field"])
        quarantine.add(pool, row["position"], error, stage="score", id=row["id"])
    quarantine.write(folder.quarantine)


def _why(rejected: dict[str, int], folder: RunFolder) -> str:
    why = ", ".join(f"{n} {reason}" for reason, n in rejected.items())
    return f" ({why}; see {folder.quarantine})" if why else ""


def _tell(selection: Selection, config: Config, records: int) -> None:
    aside = sum(selection.rejected.values())
    kept = f"{len(selection.kept):,} kept ({config.budget.label})"
    where = _why(selection.rejected, selection.folder)
    log.info(f"{records:,} records read = {kept} + {selection.dropped:,} dropped + {aside:,} set aside{where}")
    if selection.answers_cut:
        limit = config.proxy.max_length
        log.info(
            f"{selection.answers_cut} answers were cut by the length limit and scored on the rest (max_length={limit})"
        )
    if selection.rare:
        few, more = selection.rare[:RARE_TOLD], len(selection.rare) - RARE_TOLD
        told = ", ".join(map(str, few)) + (f" and {more} more" if more > 0 else "")
        advice = f"budget.stratify_by={few[0].tag} keeps shares"
        log.warning(f"hardly any kept of {told}; what a subset lacks a model forgets: {advice}")
    log.info(f"subset: {selection.folder.subset}")

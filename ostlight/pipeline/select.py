"""Selects a subset of a pool: score every record, select within the budget, write what was kept.

``select`` lists the steps. Scoring is in ``ostlight.pipeline.score``.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ostlight.config.budget import Budget
from ostlight.config.schema import Config
from ostlight.data.atomic import atomic_path
from ostlight.data.pool import Pool
from ostlight.data.quarantine import Quarantine
from ostlight.data.reasons import group_by_reason
from ostlight.data.subset import write_subset
from ostlight.errors import BadRecord, DataError
from ostlight.pipeline.inputs import open_pool, read_anchors, warn_of_records, with_digitmath
from ostlight.pipeline.run_folder import RunFolder
from ostlight.pipeline.score import ScoringJob, score_pool
from ostlight.pipeline.scoring_on_ray import shard_engine
from ostlight.pipeline.subset_selection import select_subset_rows
from ostlight.pipeline.tags import refuse_missing_tags
from ostlight.pipeline.unsupported import kept_unsupported, share_of_scored, unsupported_positions
from ostlight.ranks import is_first_rank
from ostlight.selection.registry import create
from ostlight.selection.scores import REJECTED, Scores, read_score_table
from ostlight.selection.selector import Selector
from ostlight.selection.underrepresented import UnderrepresentedTag, find_underrepresented
from ostlight.training.loggers import log_metrics

log = logging.getLogger(__name__)

MAX_RARE_LISTED = 3
"""Strata that the warning about nearly omitted ones lists."""


@dataclass(frozen=True)
class Selection:
    """The result of a selection. ``kept + dropped + rejected`` is the number of records read.

    Attributes:
        folder: the run folder.
        kept: positions of the kept records, best first; last come those that are kept without a score.
        dropped: usable records that were not kept.
        rejected: unusable records by reason.
        answers_cut: samples whose answer was cut by the length limit.
        rare: strata of which hardly any sample is kept.
        kept_unscored: kept records of media that the proxy cannot read (``pool.unsupported``).
    """

    folder: RunFolder
    kept: np.ndarray
    dropped: int
    rejected: dict[str, int]
    answers_cut: int
    rare: list[UnderrepresentedTag]
    kept_unscored: int = 0


def select(config: Config) -> Selection:
    """Scores the pool, selects within the budget, writes ``selection.parquet``, ``quarantine.parquet`` and ``subset/``.

    Scores that the run folder already holds are reused; a new budget selects from them again.

    Raises:
        OstlightError: unusable settings, data, model or selector; a run folder made from other inputs.
    """
    selector = create(config.selector.name, config.selector.options)
    folder = RunFolder.of(config)
    config = with_digitmath(config, folder)
    pool = open_pool(config.pool, "pool", selector.needs_answers, folder)
    refuse_missing_tags(pool, selector, {"budget": config.budget}, lambda: read_anchors(config).groups)
    warn_of_records(pool)
    _announce_trials(config, selector, len(pool))
    with shard_engine(config.compute) as engine:
        score_pool(ScoringJob(config, folder, pool, selector, engine=engine))
    selection = select_subset(config, folder, pool, selector, config.budget)
    log_metrics(config.compute, folder.path, "select", _metrics(selection))
    _log_summary(selection, config, len(pool))
    return selection


def _announce_trials(config: Config, selector: Selector, records: int) -> None:
    batch = config.proxy.warmup.training.batch_size
    trials, steps = selector.trials_at_most(records, batch)
    if trials:
        log.info(
            f"after scoring: at most {trials} trials of {steps} steps on the proxy, as much training as on "
            f"{trials * steps * batch:,} samples; the pool has {records:,}"
        )


def select_subset(config: Config, folder: RunFolder, pool: Pool, selector: Selector, budget: Budget) -> Selection:
    """Selects from the stored scores and writes the selection, the quarantine and the subset.

    Raises:
        DataError: a budget that needs columns the scores lack; no record is kept.
    """
    table = read_score_table(folder.scores)
    scores = Scores(table)
    policy, unsupported = config.pool.unsupported, unsupported_positions(table)
    share = share_of_scored(budget, policy, len(scores), len(unsupported))
    rows, _ = select_subset_rows(config, folder, pool, selector, scores, share)
    unread = kept_unsupported(pool, policy, unsupported, budget, len(rows), len(scores), config.seed)
    kept = np.concatenate([scores.positions[rows], unread])
    is_kept = pc.is_in(table["position"], pa.array(unread))
    rejected_rows = table.filter(pc.and_not(pc.equal(table["state"], REJECTED), is_kept))
    if is_first_rank():
        _write_selection(folder, table, kept)
        _write_quarantine(folder, pool, rejected_rows)
    rejected = _count_by_reason(rejected_rows)
    if not len(kept):
        _log_rejected(folder)
        raise DataError(
            f"no record is kept: of {len(table):,}, {rejected_rows.num_rows:,} were rejected"
            f"{_reasons(rejected, folder)} and {len(scores):,} did not pass the budget ({budget.label}); "
            f"there is no subset to write{_first_reason(rejected_rows)}"
        )
    if is_first_rank():
        write_subset(pool, kept.tolist(), folder.subset, set(unread.tolist()))
    answers_cut = pc.sum(table["answer_cut"]).as_py() or 0
    dropped = len(scores) - len(rows)
    rare = find_underrepresented(scores, rows)
    return Selection(folder, kept, dropped, rejected, answers_cut, rare, len(unread))


def _count_by_reason(rejected_rows: pa.Table) -> dict[str, int]:
    reasons = rejected_rows["reason"].to_pylist()
    return {reason: reasons.count(reason) for reason in sorted(set(reasons))}


def _write_selection(folder: RunFolder, table: pa.Table, kept: np.ndarray) -> None:
    """One row per record: its score, whether it was kept, and its rank among the kept (0 is best)."""
    rank = np.full(len(table), -1)
    rank[kept] = np.arange(len(kept))
    columns = {name: table[name] for name in ("position", "id", "state", "reason", "score")}
    columns |= {"kept": pa.array(rank >= 0), "rank": pa.array(rank, pa.int64(), mask=rank < 0)}
    with atomic_path(folder.selection) as temporary:
        pq.write_table(pa.table(columns), temporary)


def _write_quarantine(folder: RunFolder, pool: Pool, rejected_rows: pa.Table) -> None:
    quarantine = Quarantine()
    for row in rejected_rows.select(["position", "id", "reason", "field", "detail"]).to_pylist():
        error = BadRecord(row["reason"], row["detail"], row["field"])
        quarantine.add(pool, row["position"], error, stage="score", id=row["id"])
    quarantine.write(folder.quarantine)


def _metrics(selection: Selection) -> dict[str, float]:
    """Returns what a logger gets: counts, and percentiles of the scores."""
    metrics: dict[str, float] = {"kept": len(selection.kept), "dropped": selection.dropped}
    metrics |= {f"rejected/{reason}": count for reason, count in selection.rejected.items()}
    scores = Scores.read(selection.folder.scores).score
    if not len(scores):
        return metrics
    return metrics | {f"score/p{p}": float(np.percentile(scores, p)) for p in (5, 25, 50, 75, 95)}


def _log_summary(selection: Selection, config: Config, records: int) -> None:
    rejected = sum(selection.rejected.values())
    log.info(
        f"{records:,} records read = {len(selection.kept):,} kept ({config.budget.label}) + "
        f"{selection.dropped:,} dropped + {rejected:,} rejected{_reasons(selection.rejected, selection.folder)}"
    )
    _log_rejected(selection.folder)
    if selection.kept_unscored:
        log.info(
            f"{selection.kept_unscored:,} of the kept have no score: they hold what the proxy cannot read "
            f"(pool.unsupported={config.pool.unsupported})"
        )
    if selection.answers_cut:
        log.info(
            f"{selection.answers_cut} answers were cut by the length limit and scored on the rest "
            f"(max_length={config.proxy.max_length})"
        )
    if selection.rare:
        listed, more = selection.rare[:MAX_RARE_LISTED], len(selection.rare) - MAX_RARE_LISTED
        names = ", ".join(map(str, listed)) + (f" and {more} more" if more > 0 else "")
        log.warning(
            f"hardly any kept of {names}; a model forgets what its subset lacks: "
            f"budget.stratify_by={listed[0].tag} keeps the pool's shares"
        )
    log.info(f"subset: {selection.folder.subset}")


def _log_rejected(folder: RunFolder) -> None:
    """Logs the rejected records by reason, with the first of each and what to do."""
    if is_first_rank() and folder.quarantine.is_file():
        for group in group_by_reason(Quarantine.read(folder.quarantine)):
            log.info("\n".join(group.lines()))


def _first_reason(rejected_rows: pa.Table) -> str:
    if not rejected_rows.num_rows:
        return ""
    row = rejected_rows.slice(0, 1).to_pylist()[0]
    return f". The first rejected: {BadRecord(row['reason'], row['detail'], row['field'])}"


def _reasons(rejected: dict[str, int], folder: RunFolder) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in rejected.items())
    return f" ({reasons}; see {folder.quarantine})" if reasons else ""

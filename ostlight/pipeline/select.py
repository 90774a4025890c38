"""Selects a subset of a pool: score every record, select within the budget, write what was kept.

``select`` lists the steps. Scoring is in ``ostlight.pipeline.score``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ostlight.config.budget import Budget
from ostlight.config.schema import Config
from ostlight.data.pool import Pool
from ostlight.data.quarantine import Quarantine, is_listed, write_rejected
from ostlight.data.reasons import group_by_reason
from ostlight.data.subset import write_subset
from ostlight.errors import BadRecord, DataError
from ostlight.pipeline.inputs import open_pool, read_anchors, warn_of_records, with_digitmath
from ostlight.pipeline.required import refuse_missing_settings
from ostlight.pipeline.run_folder import RunFolder
from ostlight.pipeline.score import ScoringJob, score_pool
from ostlight.pipeline.scoring_on_ray import shard_engine
from ostlight.pipeline.selection import Selection
from ostlight.pipeline.selection_file import write_selection
from ostlight.pipeline.subset_selection import select_subset_rows
from ostlight.pipeline.tags import refuse_missing_tags
from ostlight.pipeline.unsupported import kept_unsupported, share_of_scored, unsupported_positions
from ostlight.pipeline.warmup import divergence
from ostlight.ranks import is_first_rank
from ostlight.selection.registry import create, load
from ostlight.selection.score_files import ScoreFiles
from ostlight.selection.scores import Scores
from ostlight.selection.selector import Selector
from ostlight.selection.underrepresented import find_underrepresented
from ostlight.training.loggers import log_metrics

log = logging.getLogger(__name__)

PERCENTILES = (5, 25, 50, 75, 95)
"""Of the scores, which a logger gets."""

MOST_REJECTED = 0.5
"""Share of the records above which a selection is a problem."""

MAX_RARE_LISTED = 3
"""Strata that the warning about nearly omitted ones lists."""


def select(config: Config) -> Selection:
    """Scores the pool, selects within the budget, writes ``selection.parquet``, ``quarantine.parquet`` and ``subset/``.

    Scores that the run folder already holds are reused; a new budget selects from them again.

    Raises:
        OstlightError: unusable settings, data, model or selector; a run folder made from other inputs, or in use.
    """
    selector = create(config.selector.name, config.selector.options)
    refuse_missing_settings(config, selector)
    with RunFolder.owned(config, "select") as folder:
        config = with_digitmath(config, folder)
        pool = open_pool(config.pool, "pool", selector.needs_answers, folder)
        refuse_missing_tags(pool, selector, {"budget": config.budget}, lambda: read_anchors(config).groups)
        warn_of_records(pool)
        _announce_trials(config, selector, len(pool))
        with shard_engine(config.compute) as engine:
            score_pool(ScoringJob(config, folder, pool, selector, engine=engine))
        selection = select_subset(config, folder, pool, selector, config.budget)
        selection.problems.extend(_problems(config, selection, len(pool)))
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
    files = ScoreFiles(folder.scores)
    scores, rejected = Scores.of_files(files), files.rejected()
    policy, unsupported = config.pool.unsupported, unsupported_positions(rejected)
    share = share_of_scored(budget, policy, len(scores), len(unsupported))
    rows, _ = select_subset_rows(config, folder, pool, selector, scores, share)
    unread = kept_unsupported(pool, policy, unsupported, budget, len(rows), len(scores), config.seed)
    kept = np.concatenate([scores.positions[rows], unread])
    rejected = rejected.filter(pc.invert(pc.is_in(rejected["position"], pa.array(unread))))
    if is_first_rank():
        is_new = not (is_listed(rejected, "score", folder.quarantine) and len(kept))
        write_rejected(pool, rejected, "score", folder.quarantine)  # without those of earlier trainings
        if is_new:
            _log_rejected(folder)
    by_reason = _count_by_reason(rejected)
    if not len(kept):
        raise DataError(
            f"no record is kept: of {len(files.rows):,}, {len(rejected):,} were rejected"
            f"{_reasons(by_reason, folder)} and {len(scores):,} did not pass the budget ({budget.label}); "
            f"there is no subset to write{_first_reason(rejected)}"
        )
    if is_first_rank():
        write_selection(config, pool, files, kept, folder.selection)
        write_subset(pool, kept, folder.subset, set(unread.tolist()))
    answers_cut = pc.sum(files.rows["answer_cut"]).as_py() or 0
    return Selection(
        folder,
        kept,
        dropped=len(scores) - len(rows),
        rejected=by_reason,
        answers_cut=answers_cut,
        rare=find_underrepresented(scores, rows),
        pool=pool,
        kept_unscored=len(unread),
        score_percentiles={p: float(np.percentile(scores.score, p)) for p in PERCENTILES if len(scores)},
    )


def _count_by_reason(rejected: pa.Table) -> dict[str, int]:
    counts = rejected.group_by("reason").aggregate([("reason", "count")])
    return dict(sorted(zip(counts["reason"].to_pylist(), counts["reason_count"].to_pylist(), strict=True)))


def _metrics(selection: Selection) -> dict[str, float]:
    """Returns what a logger gets: counts, and percentiles of the scores."""
    metrics: dict[str, float] = {"kept": len(selection.kept), "dropped": selection.dropped}
    metrics |= {f"rejected/{reason}": count for reason, count in selection.rejected.items()}
    return metrics | {f"score/p{p}": value for p, value in selection.score_percentiles.items()}


def _log_summary(selection: Selection, config: Config, records: int) -> None:
    rejected = sum(selection.rejected.values())
    ignored = load(config.selector.name).ignores_budget
    asked = f"{config.selector.name} ignores the budget" if ignored else config.budget.label
    log.info(
        f"{records:,} records read = {len(selection.kept):,} kept ({asked}) + "
        f"{selection.dropped:,} dropped + {rejected:,} rejected{_reasons(selection.rejected, selection.folder)}"
    )
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
    for problem in selection.problems:
        log.warning(problem)


def _log_rejected(folder: RunFolder) -> None:
    """Logs the rejected records by reason, with the first of each and what to do: once, not for every budget."""
    for group in group_by_reason(Quarantine.read(folder.quarantine)):
        log.info("\n".join(group.lines()))


def _problems(config: Config, selection: Selection, records: int) -> Iterator[str]:
    rejected, diverged = sum(selection.rejected.values()), divergence(selection.folder.proxy)
    if rejected > MOST_REJECTED * records and "rejections" not in config.tolerate:
        yield (
            f"{rejected:,} of {records:,} records were rejected{_reasons(selection.rejected, selection.folder)}: the "
            "subset says little about the pool. Correct the records, or set tolerate=[rejections]"
        )
    if diverged is not None and "divergence" not in config.tolerate:
        before, after = diverged
        yield (
            f"the warm-up diverged and was undone: loss {before:.3g} before, {after:.3g} after; the pool was scored "
            "with the proxy as it was given. Lower proxy.warmup.training.lr, or set tolerate=[divergence]"
        )


def _first_reason(rejected_rows: pa.Table) -> str:
    if not rejected_rows.num_rows:
        return ""
    row = rejected_rows.slice(0, 1).to_pylist()[0]
    return f". The first rejected: {BadRecord(row['reason'], row['detail'], row['field'])}"


def _reasons(rejected: dict[str, int], folder: RunFolder) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in rejected.items())
    return f" ({reasons}; see {folder.quarantine})" if reasons else ""

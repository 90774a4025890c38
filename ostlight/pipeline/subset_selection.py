"""Selects rows of the stored scores, with the trials, anchor groups and notes that a selector may ask for."""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import cache, partial

import numpy as np

from ostlight.config.budget import Budget
from ostlight.config.schema import Config
from ostlight.data.pool import Pool
from ostlight.data.sample import Sample
from ostlight.errors import BadRecord, SelectorError
from ostlight.models.cost import StageCost
from ostlight.models.load import load_encoder
from ostlight.models.vision.cache import opened
from ostlight.pipeline import fingerprint
from ostlight.pipeline.inputs import LoadedAnchors, read_anchors
from ostlight.pipeline.run_folder import RunFolder
from ostlight.pipeline.warmup import load_base_checkpoint, proxy_fingerprints, read_trusted, seconds_per_sample
from ostlight.progress import phase, track
from ostlight.selection.notes import check_note
from ostlight.selection.scores import Scores, SelectionContext
from ostlight.selection.select_rows import select_rows
from ostlight.selection.selector import Selector
from ostlight.training.kept_trials import KeptTrials
from ostlight.training.trial import Trials

log = logging.getLogger(__name__)


def select_subset_rows(
    config: Config, folder: RunFolder, pool: Pool, selector: Selector, scores: Scores, budget: Budget
) -> tuple[np.ndarray, StageCost]:
    """Returns the rows of ``scores`` the selector keeps, best first, and what selecting them cost.

    Raises:
        DataError: a budget that needs columns the scores lack.
        SelectorError: ``select`` asks for what the run does not have, or returns something other than rows.
    """
    cache = opened(config.compute.vision_cache_gib, "select")
    with folder.cost_log.stage("select", config.selector.shown, selector.usage) as cost, cache:
        usable = np.arange(len(scores))
        if budget.tokens is not None and not selector.ignores_budget:
            lengths = count_tokens(config, pool, scores.positions)
            usable = np.flatnonzero(lengths)
            if len(usable) < len(scores):
                log.warning(
                    f"{len(scores) - len(usable):,} samples do not fit the target (target.max_length, its processor) "
                    "and are not selected"
                )
            scores = scores.with_tokens(lengths).take(usable)
        context = _selection_context(config, folder, pool, selector, cost)
        with phase(f"selecting by {config.selector.shown}"):
            rows_kept = select_rows(selector, scores.with_context(context), budget)
            rows = usable[rows_kept]
        _warn_of_another_size(config, selector, budget, scores, rows_kept)
        cost.samples = len(scores)
        cost.more |= {"budget": budget.label, "seed": config.seed}
    return rows, cost


def _warn_of_another_size(config: Config, selector: Selector, budget: Budget, scores: Scores, kept: np.ndarray) -> None:
    """A comparison at equal budgets needs just as many samples; of tokens, all but less than a sample's."""
    if selector.ignores_budget or budget.threshold is not None:
        return
    name = config.selector.shown
    if budget.tokens is None:
        if len(kept) != (size := budget.size(len(scores))):
            log.warning(f"{name} keeps {len(kept):,} samples, where the budget ({budget.label}) asks for {size:,}")
        return
    lengths = scores.tokens
    used, longest = int(lengths[kept].sum()), int(lengths.max(initial=0))
    if len(kept) < len(scores) and (left := budget.tokens - used) > longest:
        log.warning(
            f"{name} keeps {used:,} tokens and leaves {left:,} of the budget ({budget.label}) unused, more than the "
            f"longest sample has ({longest:,})"
        )


def _selection_context(
    config: Config, folder: RunFolder, pool: Pool, selector: Selector, cost: StageCost
) -> SelectionContext:
    """Returns what ``select`` may ask the run for; anchors and proxy are loaded when they are first needed."""
    anchors = cache(lambda: read_anchors(config))
    trials = cache(lambda: _trials(config, folder, pool, selector, anchors(), cost))

    def note(name: str, value: object) -> None:
        check_note(name, value)
        cost.more.setdefault("noted", {})[name] = value

    return SelectionContext(
        lambda positions, repeat, steps: trials()(positions, repeat, steps),
        lambda: anchors().groups,
        note,
        config.seed,
        config.anchors.group,
        config.pool.weights,
        config.proxy.warmup.training.batch_size,
        seconds_per_sample(folder),
    )


def _trials(
    config: Config, folder: RunFolder, pool: Pool, selector: Selector, anchors: LoadedAnchors, cost: StageCost
) -> Trials:
    name = config.selector.name
    if not selector.uses_proxy:
        raise SelectorError(f"selector {name!r} asks for a trial without `uses_proxy = True` in its class; declare it")
    trusted, _ = read_trusted(config, anchors)
    if not trusted:
        raise SelectorError(
            f"selector {name!r} asks for a trial, which is measured on trusted samples; "
            "name a file of them in dev.path or anchors.path"
        )
    load_proxy = partial(load_base_checkpoint, config)
    group_tag = config.anchors.group or config.evaluation.by
    kept = KeptTrials(folder.path / "trials", _trial_fingerprints(config, pool, anchors, group_tag))
    return Trials(load_proxy, pool, trusted, config.compute, folder.path, config.seed, cost, group_tag, kept)


def _trial_fingerprints(config: Config, pool: Pool, anchors: LoadedAnchors, group_tag: str | None) -> dict[str, str]:
    """Returns the fingerprint of everything a trial depends on besides its records, their order and its steps."""
    compute = config.compute
    return proxy_fingerprints(config, pool, anchors) | {
        "group": str(group_tag),
        "compute": f"{compute.devices * compute.num_nodes} devices, {compute.tokens_per_batch} tokens",
        "evaluation code": fingerprint.of_code("ostlight.training"),
    }


def count_tokens(config: Config, pool: Pool, positions: np.ndarray) -> np.ndarray:
    """Returns the length of each sample in the target's tokens, by which a token budget counts.

    A sample that the target cannot take has a length of 0.

    Raises:
        ConfigError: no target is named.
    """
    encoder = load_encoder(config.target, "target")
    lengths = np.zeros(len(positions), dtype=np.int32)
    reads = track(pool.read(positions.tolist()), "counting tokens", len(positions), "samples")
    for k, (_, read) in enumerate(reads):
        if isinstance(read, Sample):
            with suppress(BadRecord):
                lengths[k] = len(encoder.encode(read))
    return lengths

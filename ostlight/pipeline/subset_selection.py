"""From stored scores to the rows that are kept, with what a selector may ask for on the way."""

from __future__ import annotations

from functools import cache, partial

import numpy as np

from ostlight.config.budget import Budget
from ostlight.config.schema import Config
from ostlight.data.pool import Pool
from ostlight.data.sample import Sample
from ostlight.errors import BadRecord, SelectorError
from ostlight.models.cost import StageCost
from ostlight.models.load import load_encoder
from ostlight.pipeline.inputs import read_anchors
from ostlight.pipeline.run_folder import RunFolder
from ostlight.pipeline.warmup import load_untrained_proxy, read_trusted
from ostlight.selection.notes import check_note
from ostlight.selection.scores import Scores, SelectionContext
from ostlight.selection.select_rows import select_rows
from ostlight.selection.selector import Selector
from ostlight.training.trial import TrialContext, Trials


def select_subset_rows(
    config: Config,
    folder: RunFolder,
    pool: Pool,
    selector: Selector,
    scores: Scores,
    budget: Budget,
) -> tuple[np.ndarray, StageCost]:
    """Rows of ``scores`` the selector keeps, best first, and what choosing them cost, as the cost log has it.

    Raises:
        DataError: a budget that needs columns the scores lack.
        SelectorError: ``select`` asks for what the run does not have, or returns what are no rows.
    """
    with folder.cost_log.stage("select", config.selector.shown, selector.usage) as entry:
        if budget.tokens is not None:
            scores = scores.with_tokens(count_tokens(config, pool, scores.positions))
        context = _selection_context(config, folder, pool, selector, entry)
        rows = select_rows(selector, scores.with_context(context), budget)
        entry.samples = len(scores)
        entry.more["budget"] = budget.label
    return rows, entry


def _selection_context(
    config: Config, folder: RunFolder, pool: Pool, selector: Selector, entry: StageCost
) -> SelectionContext:
    name = config.selector.name
    anchors = cache(lambda: read_anchors(config))

    @cache
    def trials() -> Trials:
        if not selector.uses_proxy:
            raise SelectorError(
                f"selector {name!r} asks for a trial without `uses_proxy = True` in its class; declare it"
            )
        trusted, _ = read_trusted(config, anchors())
        if not trusted:
            raise SelectorError(
                f"selector {name!r} asks for a trial, which is read on trusted samples; "
                "name a file of them in dev.path or anchors.path"
            )
        fresh = partial(load_untrained_proxy, config)
        context = TrialContext(fresh, pool, trusted, config.compute, folder.path, config.seed)
        return Trials(context, entry)

    def note(fact: str, value: object) -> None:
        check_note(fact, value)
        entry.more.setdefault("noted", {})[fact] = value

    return SelectionContext(
        lambda positions, repeat, steps: trials()(positions, repeat, steps), lambda: anchors().groups, note, config.seed
    )


def count_tokens(config: Config, pool: Pool, positions: np.ndarray) -> np.ndarray:
    """Length of each sample in the target's tokens: what a token budget is spent in.

    Raises:
        ConfigError: no target is named.
    """
    encoder = load_encoder(config.target, "target")
    counts = []
    for _, read in pool.read(positions.tolist()):
        try:
            # A sample the target refuses cannot be afforded by any budget.
            counts.append(len(encoder.encode(read)) if isinstance(read, Sample) else np.iinfo(np.int32).max)
        except BadRecord:
            counts.append(np.iinfo(np.int32).max)
    return np.array(counts)

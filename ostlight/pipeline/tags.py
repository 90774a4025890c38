"""Whether the pool has the tags that a run asks for: decided before any work."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence

from ostlight.config.budget import ANCHOR_GROUP, GRADIENT_CLUSTER, Budget
from ostlight.data.pool import Pool
from ostlight.data.record import MAX_TAG_CHARACTERS
from ostlight.data.sample import Sample
from ostlight.errors import ConfigError
from ostlight.selection.selector import Selector
from ostlight.selection.strata import refuse_one_group
from ostlight.suggest import did_you_mean

log = logging.getLogger(__name__)

READ_FIRST = 1_000
"""Records, evenly spread over the pool, among which a tag is looked for before all records are read."""


def refuse_missing_tags(
    pool: Pool, selector: Selector, budgets: Mapping[str, Budget], groups: Callable[[], Sequence[str]]
) -> None:
    """Checks that the pool has the tags that the selector and the budgets name, and that the selector's scores will
    have what the budgets read.

    Reads records until each tag was seen once.

    Args:
        pool: of the run.
        selector: of the run.
        budgets: by their place in the configuration.
        groups: gives the group of each anchor; called where a budget is split by it.

    Raises:
        ConfigError: no usable record has the tag; lists those there are.
        DataError: the budget is split by anchor group, and there is one group.
        SelectorError: the selector's options do not serve a budget.
    """
    wanted = {f"selector.options.{option}": tag for option, tag in selector.tags_needed().items()}
    for where, budget in budgets.items():
        selector.check_budget(budget)
        if budget.stratify_by == ANCHOR_GROUP:
            refuse_one_group(groups())
        elif budget.stratify_by not in (None, GRADIENT_CLUSTER):
            wanted[f"{where}.stratify_by"] = budget.stratify_by
    if not wanted:
        return
    known = _tags(pool, set(wanted.values()))
    if known is None:  # nothing can be used: the run says why
        return
    problems = []
    for setting, tag in wanted.items():
        if tag not in known:
            also = f"; it also takes {ANCHOR_GROUP} and {GRADIENT_CLUSTER}" if setting.endswith("stratify_by") else ""
            there_are = ", ".join(sorted(known)) or "none"
            problems.append(
                f"{setting} is {tag!r}, a tag no record of the pool has; {did_you_mean(tag, known)}"
                f"there are: {there_are}{also}; a text of more than {MAX_TAG_CHARACTERS} characters is no tag"
            )
    if problems:
        raise ConfigError(problems)


def _tags(pool: Pool, wanted: set[str]) -> set[str] | None:
    """Returns the tags seen until all wanted ones were, or the pool's end; ``None`` where no record can be used."""
    first = range(0, len(pool), max(1, len(pool) // READ_FIRST))
    known: set[str] = set()
    usable = False
    for k, (_, read) in enumerate(pool.read(itertools.chain(first, range(len(pool))))):
        if k == len(first):
            missing = ", ".join(map(repr, sorted(wanted - known)))
            log.info(f"no tag {missing} in {len(first):,} records spread over the pool; looking through all of them")
        if isinstance(read, Sample):
            usable = True
            known |= read.tags.keys()
            if wanted <= known:
                break
    return known if usable else None

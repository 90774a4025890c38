"""Records of media and function calls that the proxy cannot read: rejected, all kept, or kept in proportion.

The setting ``pool.unsupported`` decides.

They have no score. They are kept so that a slice of a pool (its videos, say) is not lost because the proxy is blind to
it: whoever trains on the subset reads them.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ostlight.config.budget import Budget
from ostlight.config.schema import Unsupported
from ostlight.data.pool import Pool
from ostlight.data.sample import Sample
from ostlight.selection.scores import REJECTED

log = logging.getLogger(__name__)

REASONS = ("unsupported_media", "no_vision", "no_tools")
"""Of records without a fault that hold media (video, sound; images for a proxy that takes none), or function calls that
the proxy's chat template leaves out."""

LOOKED_AT = 2_000
"""Records, spread over the pool, that are looked at before it is scored; all of a smaller pool."""

_OUTCOMES = {
    "reject": "they are rejected, so the subset holds none; pool.unsupported=keep or proportional keeps them",
    "keep": "all of them are kept, beside the budget",
    "proportional": "they are kept in proportion, by chance",
}


def announce(pool: Pool, policy: Unsupported, takes_images: bool, takes_tools: bool) -> None:
    """Says before scoring how many records the proxy cannot read, and what becomes of them."""
    positions = range(0, len(pool), max(1, len(pool) // LOOKED_AT))[:LOOKED_AT]
    found: Counter[str] = Counter()
    for _, read in pool.read(positions):
        if isinstance(read, Sample):
            found["images, for a proxy that takes none"] += bool(read.images) and not takes_images
            calls = any(turn.tool_calls or turn.role == "tool" for turn in read.turns)
            found["function calls, which the proxy's chat template leaves out"] += calls and not takes_tools
        elif read.reason in REASONS:
            found[read.field or "other media"] += 1
    if count := found.total():
        kinds = ", ".join(f"{n:,} with {kind}" for kind, n in found.most_common() if n)
        looked = f"{len(positions):,} records looked at" if len(positions) < len(pool) else f"{len(pool):,} records"
        log.warning(
            f"{count:,} of {looked} ({count / len(positions):.0%}) hold what the proxy cannot read ({kinds}): "
            f"{_OUTCOMES[policy]} (pool.unsupported={policy})"
        )


def unsupported_positions(table: pa.Table) -> np.ndarray:
    """Returns the positions of these records in a score table, ascending."""
    chosen = pc.and_(pc.equal(table["state"], REJECTED), pc.is_in(table["reason"], pa.array(REASONS)))
    return np.sort(table.filter(chosen)["position"].to_numpy())


def share_of_scored(budget: Budget, policy: Unsupported, scored: int, unsupported: int) -> Budget:
    """Returns what of a budget the scored records get: less of a count or of tokens, where others are kept too."""
    if policy != "proportional" or not unsupported or not scored:
        return budget
    share = scored / (scored + unsupported)
    if budget.count is not None:
        return replace(budget, count=max(1, round(budget.count * share)))
    return budget if budget.tokens is None else replace(budget, tokens=max(1, round(budget.tokens * share)))


def kept_unsupported(
    pool: Pool, policy: Unsupported, positions: np.ndarray, budget: Budget, kept: int, scored: int, seed: int
) -> np.ndarray:
    """Returns the positions of the unsupported records that are kept, ascending.

    Args:
        positions: of all unsupported records.
        budget: decides where no record is scored.
        kept: scored records that are kept, of ``scored``; as large a share of the others is.
        seed: of the choice, which goes by names and not by places.
    """
    if policy == "keep":
        return positions
    if policy == "reject" or not len(positions):
        return positions[:0]
    has_size = budget.tokens is None and budget.threshold is None
    count = round(len(positions) * kept / scored) if scored else budget.size(len(positions)) if has_size else 0
    order = np.array(pool.random_positions(len(pool), seed), dtype=np.int64)
    return np.sort(order[np.isin(order, positions)][:count])

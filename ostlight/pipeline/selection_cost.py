"""What a selection cost, from the cost logs of its stages."""

from __future__ import annotations

from collections.abc import Sequence

from ostlight.models.cost import ADDITIVE, StageCost


def selection_cost(
    proxy: Sequence[StageCost], scoring: Sequence[StageCost], selecting: StageCost, records: int
) -> StageCost:
    """Returns the cost of warm-up, scoring and selecting, as one undisturbed run would have had it.

    A warm-up that fails starts over, so its last run counts. Scoring resumes, and repeats the shards it was at; its
    cost is therefore the cost per record over all attempts times the number of records, for the selector and for each
    of its dependencies.

    Args:
        proxy: cost log with the warm-up; empty for selectors without a proxy.
        scoring: cost log with the scores.
        selecting: cost of selecting within this budget.
        records: in the pool.
    """
    cost = StageCost("selection")
    warm_ups = [e for e in proxy if e.stage == "warm-up" and "failed" not in e.more]
    attempts: dict[str, list[StageCost]] = {}
    for entry in scoring:
        if entry.stage == "score":
            attempts.setdefault(entry.selector, []).append(entry)
    for name in ("wall_s", "device_s", *ADDITIVE):
        scores = sum(_scale_to_pool(name, entries, records) for entries in attempts.values())
        value = sum(getattr(e, name) for e in warm_ups[-1:]) + scores + getattr(selecting, name)
        setattr(cost, name, type(getattr(cost, name))(value))
    return cost


def _scale_to_pool(name: str, attempts: Sequence[StageCost], records: int) -> float:
    """Returns the setup of the last attempt, plus all other cost per record times the records."""
    scored = sum(e.samples for e in attempts)
    setups = [e.more.get("setup_flops", 0.0) if name == "flops" else 0.0 for e in attempts]
    per_record = sum(getattr(e, name) for e in attempts) - sum(setups)
    return float(setups[-1] + per_record * (records / scored if scored else 1))

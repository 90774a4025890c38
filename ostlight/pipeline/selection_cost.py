"""What a selection cost, from the cost logs of its stages."""

from __future__ import annotations

from collections.abc import Sequence

from ostlight.models.cost import ADDITIVE, StageCost


def selection_cost(
    proxy: Sequence[StageCost], scoring: Sequence[StageCost], picking: StageCost, records: int
) -> StageCost:
    """Warm-up, scoring and picking, as one undisturbed run of them would have cost.

    A warm-up that was killed started over, so its last one counts. Scoring goes on where it was killed, and what was
    begun is done again, so its cost is that of a record, over all attempts, times the records there are: for the
    selector itself and for each that scored for it (``Selector.dependencies``).

    Args:
        proxy: cost log of the warm-up; empty for selectors without a proxy.
        scoring: cost log of the scores.
        picking: of this budget.
        records: in the pool.
    """
    whole = StageCost("selection")
    warm = [e for e in proxy if e.stage == "warm-up" and "failed" not in e.more]
    scored = [e for e in scoring if e.stage == "score"]
    attempts = [[e for e in scored if e.selector == s] for s in {e.selector: None for e in scored}]
    for name in ("wall_s", "device_s", *ADDITIVE):
        score = sum(_whole(name, of_one, records) for of_one in attempts)
        value = sum(getattr(e, name) for e in warm[-1:]) + score + getattr(picking, name)
        setattr(whole, name, type(getattr(whole, name))(value))
    return whole


def _whole(name: str, attempts: Sequence[StageCost], records: int) -> float:
    """The setting up of the last attempt, and the rest by the record."""
    seen = sum(e.samples for e in attempts)
    setups = [e.more.get("setup_flops", 0.0) if name == "flops" else 0.0 for e in attempts]
    by_record = sum(getattr(e, name) for e in attempts) - sum(setups)
    return setups[-1] + by_record * (records / seen if seen else 1)

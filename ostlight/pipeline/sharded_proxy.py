"""Scoring with a proxy whose weights are sharded over the ranks (``compute.shard_proxy``): which selectors can."""

from __future__ import annotations

from collections.abc import Iterator

from ostlight.config.schema import Compute, Config
from ostlight.errors import SelectorError
from ostlight.selection.registry import create, find, names
from ostlight.selection.selector import Selector
from ostlight.training.precision import precision_of

FULL = ("32-true", "64-true")
"""Precisions of passes in float32 or wider."""


def shards_proxy(compute: Compute) -> bool:
    """Whether each rank holds a part of the proxy's weights; on a single device there is nothing to shard."""
    return compute.shard_proxy and compute.devices * compute.num_nodes > 1


def refuse_sharding(config: Config, name: str, selector: Selector, groups: int) -> None:
    """Raises:
    SelectorError: the selector, or one that it depends on, cannot score a proxy that is to be sharded.
    """
    for problem in sharding_problems(config, name, selector, groups):
        raise SelectorError(problem)


def sharding_problems(config: Config, name: str, selector: Selector, groups: int) -> Iterator[str]:
    """Why a proxy that is to be sharded cannot be scored, a sentence for each selector.

    Args:
        config: of the run.
        name: of the selector, as shown.
        selector: that is to score.
        groups: of the anchors; 1 where they have none.
    """
    if not shards_proxy(config.compute):
        return
    full = precision_of(config.compute) in FULL and config.proxy.dtype != "bfloat16"
    for shown, one in _with_dependencies(name, selector):
        if not one.uses_proxy:
            continue
        problem = one.sharding_problem(groups, full) if one.scores_sharded else "needs whole weights on each device"
        if problem is not None:
            able = ", ".join(n for n in names() if (cls := find(n).cls) is not None and cls.scores_sharded)
            yield (
                f"compute.shard_proxy: selector {shown!r} {problem}. Sharded weights are scored by {able}; or take a "
                "smaller proxy, without shard_proxy"
            )


def _with_dependencies(name: str, selector: Selector) -> Iterator[tuple[str, Selector]]:
    yield name, selector
    for choice in selector.dependencies():
        yield from _with_dependencies(choice.shown, create(choice.name, choice.options))

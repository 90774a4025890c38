"""What ``ost`` holds on a device, and what ``auto`` chooses so that it fits. From shapes, before anything is loaded."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ostlight.errors import SelectorError
from ostlight.influence.gradient_vectors import AT_ONCE
from ostlight.influence.gradients.factors import WIDEST
from ostlight.influence.gradients.vectors import shares
from ostlight.influence.parameters import select_parameters, text_blocks
from ostlight.influence.scorer import DEFAULT_PROBES, DEFAULT_RANK
from ostlight.selection.planning import ProxyMemory, gib
from ostlight_selectors.ost.options import Estimator

log = logging.getLogger("ostlight.selectors.ost")

AUTO = "auto"
FULL, HALF = 4, 2
"""Bytes of a number."""
LOWER_RANKS = (16, 8)
ROOM = 0.9
"""Share of the memory that ``auto`` fills; batches go beside it, and are halved where they do not fit."""

MEASURED = "0.94 for projected, rank 32 over all blocks (DigitMath, docs/explanation/estimators.md)"
NOT_MEASURED = "rank agreement with exact: not measured for this choice; the run measures its own"


@dataclass(frozen=True)
class Choice:
    """What the options that may be ``auto`` become."""

    parameters: str
    vector_storage: str
    rank: int | None

    def __str__(self) -> str:
        rank = "" if self.rank is None else f", rank={self.rank}"
        return f"parameters={self.parameters}, vector_storage={self.vector_storage}{rank}"


def estimator_of(options: Any, half: bool, groups: int) -> Estimator:
    """The estimator of these options; ``null`` stands for two forward passes a sample, or a backward pass where they do
    not do: for groups, random products, or in half precision."""
    if options.estimator is not None:
        chosen: Estimator = options.estimator
        return chosen
    of_one_vector = groups < 2 and not options.utility_by_anchor and options.random_products is None
    return "finite_difference" if of_one_vector and not half else "first_order"


def sharding_problem(options: Any, groups: int, full: bool) -> str | None:
    """Why these options do not do for sharded weights, which are scored by two forward passes alone."""
    if groups > 1:
        return f"has {groups} groups of anchors, each of which takes backward passes; leave anchors.group out"
    if not full:
        return "loses the difference of two passes in bf16; set compute.precision=32-true and proxy.dtype=float32"
    estimator = estimator_of(options, half=False, groups=groups)
    if estimator != "finite_difference":
        return f"with estimator={estimator} takes gradients of single samples; {_way_out(options)}"
    return None


def _way_out(options: Any) -> str:
    """To the one estimator of sharded weights, from options that it does not go with."""
    beside = [name for name in ("utility_by_anchor", "random_products") if getattr(options, name)]
    beside += ["selection=set"] if options.selection == "set" else []
    return " and ".join(["set estimator=finite_difference", *(f"leave {one} out" for one in beside)])


def vector_count(options: Any, estimator: str, groups: int, anchors: int) -> int:
    """How many fixed vectors, each as large as the parameters."""
    if estimator == "exact":
        return 0
    if options.utility_by_anchor and estimator != "projected":
        groups = anchors
    if estimator == "projected":
        return groups + (options.rank or DEFAULT_RANK)
    return groups * (1 + (options.probes or DEFAULT_PROBES)) if estimator == "second_order" else groups


def held(options: Any, proxy: ProxyMemory, parameters: Mapping[str, nn.Parameter]) -> dict[str, int]:
    """Bytes on the fullest device beside the proxy's weights and a batch's activations, by what they are for.

    Args:
        options: with a ``vector_storage`` that is not ``auto``.
        parameters: those the step changes, on the meta device.
    """
    estimator = estimator_of(options, proxy.half, proxy.groups)
    vectors = vector_count(options, estimator, proxy.groups, proxy.anchors)
    storage, ranks = options.vector_storage, proxy.ranks if options.vector_storage == "split" else 1
    itemsize = HALF if storage == "bf16" else FULL
    sizes = {name: p.numel() for name, p in parameters.items()}
    owners = shares(sizes, ranks)
    entries = sum(sizes.values())
    if proxy.sharded:  # the direction, and the weights that are shifted along it
        part = entries * FULL // proxy.ranks
        sharded = {"gradient vectors": part, "weights before the shift": part}
        return sharded | _factors_of_a_rank(options, parameters, proxy.ranks)
    own = max(sum(size for name, size in sizes.items() if owners[name] == rank) for rank in range(ranks))
    at_once = max(proxy.groups, min(AT_ONCE, max(1, vectors - proxy.groups)))
    memory = {
        "gradient vectors": 0 if storage == "offload" else vectors * own * itemsize,
        "vectors being made": at_once * own * FULL if vectors else 0,
        "factors": factor_bytes(options, parameters) // ranks,
        "one sample's step": 3 * entries * FULL,
    }
    whole = FULL * sum(p.numel() for p in proxy.model.parameters())
    if proxy.weights < whole:  # half-precision weights are copied for exact utilities
        memory["weights in float32"] = whole
    return {name: size for name, size in memory.items() if size}


def factor_bytes(options: Any, parameters: Mapping[str, nn.Parameter]) -> int:
    """Bytes of the preconditioner: a number for each entry, and for K-FAC a basis for each side of a matrix."""
    entries = sum(p.numel() for p in parameters.values())
    if options.step == "sgd":
        return 0
    sides = [side for p in parameters.values() if p.ndim == 2 for side in p.shape if side <= WIDEST]
    return FULL * (entries + (0 if options.step == "adam" else sum(side * side for side in sides)))


def _factors_of_a_rank(options: Any, parameters: Mapping[str, nn.Parameter], ranks: int) -> dict[str, int]:
    """Those of the fullest rank of a sharded proxy: whole parameters' factors, but a part of every diagonal of Adam."""
    if options.step == "adam":
        return {"factors": factor_bytes(options, parameters) // ranks}
    owners = shares({name: p.numel() for name, p in parameters.items()}, ranks)
    owned = [{name: p for name, p in parameters.items() if owners[name] == rank} for rank in range(ranks)]
    fullest = max(factor_bytes(options, own) for own in owned)
    return {"factors": fullest} if fullest else {}


def fit(options: Any, proxy: ProxyMemory) -> None:
    """Sets the options that are ``auto`` to the first choice that fits, and logs it.

    Raises:
        SelectorError: nothing fits; or, without ``auto``, weights and vectors alone are more than there is.
    """
    if AUTO not in (options.parameters, options.vector_storage):
        _refuse(options, proxy)
        return
    first: tuple[Choice, int] | None = None
    for choice in _choices(options, proxy):
        memory = _memory(options, proxy, choice)
        total = proxy.weights + sum(memory.values())
        first = first or (choice, total)
        on_host = (
            0 if choice.vector_storage != "offload" else _memory(options, proxy, choice, "full")["gradient vectors"]
        )
        host_fits = proxy.host is None or on_host <= ROOM * proxy.host
        if proxy.free is None or (total <= ROOM * proxy.free and host_fits):
            _take(options, choice, proxy)
            of = "" if proxy.free is None else f" of {gib(proxy.free)}"
            log.info(f"auto: {choice}; {_parts(proxy, memory)}, {gib(total)}{of} on each device; {_agreement(options)}")
            return
    assert first is not None, "there is always a choice"
    choice, total = first
    raise SelectorError(
        f"auto: {choice} takes {gib(total)} on each device, which has {gib(proxy.free or 0)}, and no smaller choice "
        f"fits; take a smaller proxy, a proxy with LoRA adapters and parameters=lora, or more devices{_or_shard(proxy)}"
    )


def _choices(options: Any, proxy: ProxyMemory) -> Iterator[Choice]:
    """From the one that loses nothing to the smallest."""
    estimator = estimator_of(options, proxy.half, proxy.groups)
    depth = len(text_blocks(proxy.model)) if options.parameters == AUTO else 0
    scopes = [options.parameters]
    if options.parameters == AUTO:
        scopes = ["blocks", *(f"last:{depth >> k}" for k in range(1, depth.bit_length()))]
    storages = [options.vector_storage]
    if options.vector_storage == AUTO:
        storages = ["full", *(["split"] if proxy.ranks > 1 else []), "bf16", *(["offload"] if proxy.host else [])]
    if estimator in ("finite_difference", "exact"):
        storages = ["full"]
    lowers = estimator == "projected" and options.rank is None and options.vector_storage == AUTO
    for rank in (options.rank, *(LOWER_RANKS if lowers else ())):
        for parameters in scopes:
            for storage in storages:
                yield Choice(parameters, storage, rank)


def _memory(options: Any, proxy: ProxyMemory, choice: Choice, storage: str | None = None) -> dict[str, int]:
    chosen = dataclasses.replace(
        options,
        parameters=choice.parameters,
        vector_storage=storage or choice.vector_storage,
        rank=choice.rank,
    )
    return held(chosen, proxy, select_parameters(proxy.model, choice.parameters))


def _take(options: Any, choice: Choice, proxy: ProxyMemory) -> None:
    options.parameters, options.vector_storage, options.rank = choice.parameters, choice.vector_storage, choice.rank


def _agreement(options: Any) -> str:
    if options.estimator == "projected" and options.parameters == "blocks" and options.rank in (None, DEFAULT_RANK):
        rounded = "; bf16 rounds entries by 2^-9 at most, what that costs is not measured"
        return f"rank agreement with exact: {MEASURED}" + (rounded if options.vector_storage == "bf16" else "")
    return NOT_MEASURED


def _refuse(options: Any, proxy: ProxyMemory) -> None:
    parameters = select_parameters(proxy.model, options.parameters)
    memory = held(options, proxy, parameters)
    vectors = memory.get("gradient vectors", 0)
    if proxy.free is None or proxy.weights + vectors <= proxy.free:
        return
    raise SelectorError(
        f"{_parts(proxy, {'gradient vectors': vectors})} do not fit into {gib(proxy.free)} on each device: set "
        "vector_storage=auto (or bf16, offload, split), parameters=auto (or last:4, lora), or a lower rank"
        f"{_or_shard(proxy)}"
    )


def _or_shard(proxy: ProxyMemory) -> str:
    if proxy.sharded:
        return ""
    return "; or shard the proxy (compute.shard_proxy=true, strategy=fsdp) in fp32 with estimator=finite_difference"


def _parts(proxy: ProxyMemory, memory: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {gib(size)}" for name, size in {"weights": proxy.weights, **memory}.items())

"""Whether what a selector holds fits into memory, before anything is loaded."""

from __future__ import annotations

import dataclasses

from ostlight.config.schema import Compute, Config, Proxy
from ostlight.models.memory import device_memory, machine_memory
from ostlight.models.module import MultimodalModel
from ostlight.models.shapes import gathered_share, shapes_of, weight_bytes
from ostlight.pipeline.inputs import LoadedAnchors
from ostlight.pipeline.run_folder import RunFolder
from ostlight.pipeline.sharded_proxy import shards_proxy
from ostlight.selection.planning import ProxyMemory
from ostlight.selection.selector import Selector
from ostlight.training.precision import on_cuda, precision_of

AUTO = "auto"
"""Value of an option that ``Selector.fit_memory`` sets."""


def fitted(config: Config, folder: RunFolder, selector: Selector, anchors: LoadedAnchors, is_complete: bool) -> Config:
    """Returns the configuration with the selector's options as they were chosen; sets them in ``selector`` too.

    A run that has begun keeps what it chose.

    Args:
        is_complete: all records are scored; nothing is checked then.

    Raises:
        SelectorError: what the selector needs does not fit into memory.
    """
    if not selector.uses_proxy or type(selector).fit_memory is Selector.fit_memory:
        return config
    before = dataclasses.asdict(selector.options)
    if folder.made_from("scores") is not None:
        for name, value in folder.written_options().items():
            if before.get(name) == AUTO or (name in before and before[name] is None and AUTO in before.values()):
                setattr(selector.options, name, value)
    if not is_complete:
        model = shapes_of(config.proxy, "proxy", None)
        selector.fit_memory(
            proxy_memory(model, config.proxy, config.compute, len(anchors.samples), anchors.group_count)
        )
    after = dataclasses.asdict(selector.options)
    chosen = {name: value for name, value in after.items() if before[name] != value}
    if not chosen:
        return config
    choice = dataclasses.replace(config.selector, options={**config.selector.options, **chosen})
    return dataclasses.replace(config, selector=choice)


def proxy_memory(model: MultimodalModel, proxy: Proxy, compute: Compute, anchors: int, groups: int) -> ProxyMemory:
    """Returns what a selector is told; ``model`` is the proxy on the meta device."""
    free, on_gpu = device_memory(compute.accelerator), on_cuda(compute)
    if free is not None and not on_gpu:
        free //= compute.devices  # ranks share the machine's
    host = machine_memory() if on_gpu else None
    weights, sharded = weight_bytes(model), shards_proxy(compute)
    if sharded:
        weights = round(weights / (compute.devices * compute.num_nodes) + gathered_share(model) * weights)
    return ProxyMemory(
        model=model.model,
        weights=weights,
        anchors=anchors,
        groups=groups,
        half=precision_of(compute).startswith("bf16") or proxy.dtype == "bfloat16",
        ranks=compute.devices * compute.num_nodes,
        free=free,
        host=None if host is None else host // compute.devices,
        sharded=sharded,
    )

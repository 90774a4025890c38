"""In which layers a sample's gain lies: its gradient against the anchors', layer by layer."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ostlight.config.schema import Model
from ostlight.digitmath.model import checkpoint
from ostlight.errors import DataError
from ostlight.influence.anchors import AnchorSet
from ostlight.influence.gradient_vectors import finite_means
from ostlight.influence.parameters import named_parameters_of
from ostlight.influence.preconditioner import adam_scale
from ostlight.influence.sample_gradient import sample_gradient, train_only
from ostlight.models.module import MultimodalModel
from ostlight.pipeline.inputs import read_anchors
from ostlight.pipeline.warmup import DONE
from ostlight.reporting.run import Run
from ostlight.selection.registry import create

NUMBERED = re.compile(r"^(.*?)([^.]+\.\d+)(\.|$)")


@dataclass(frozen=True)
class LayerSlope:
    """``gain``: ``eta <g_i, g_V>`` over one layer's parameters, nats; the gains of all layers add up to the slope of
    the utility. ``cosine``: of the two gradients within the layer."""

    layer: str
    gain: float
    cosine: float


def layer_slopes(run: Run, position: int, eta: float) -> list[LayerSlope]:
    """Of one sample, in the model's order. Loads the proxy as it scored and passes over the anchors once.

    Curvature is left out: it does not fall apart into layers.

    Raises:
        DataError: the run's scores are no utilities, or the proxy or the anchors are not at hand.
        BadRecord: the record, or its gradient, cannot be used.
    """
    config = run.config
    options = create(config.selector.name, config.selector.options).options
    if not hasattr(options, "parameters"):
        raise DataError(
            f"the selector {config.selector.name!r} takes no gradients, so no layer has a part in its score"
        )
    if run.pool is None:
        raise DataError("the pool is not at hand, so the sample's gradient cannot be taken again")
    model, folder = _proxy(run)
    parameters = named_parameters_of(model.model, options.parameters)
    train_only(model, parameters)
    anchors = replace(config, anchors=run.located(config.anchors, "anchors"))
    trusted = read_anchors(anchors)
    if not trusted.samples:
        raise DataError("the anchors are not at hand, so their gradient cannot be taken again")
    sets = AnchorSet.make(model, trusted.samples, [""] * len(trusted.samples), config.compute.tokens_per_batch)
    target = finite_means(model, sets, parameters)[""]
    if getattr(options, "optimizer", "sgd") == "adam":
        scale, _ = adam_scale(folder, model, parameters, sets)
        target = {name: vector * scale[name] for name, vector in target.items()}
    sample = run.pool[position]
    single = model.collator.batch([sample], [model.encoder.encode(sample)]).to(model.device)
    _, gradient = sample_gradient(model, list(parameters.values()), single)
    return _by_layer(dict(zip(parameters, gradient, strict=True)), target, eta)


def layer_of(parameter: str) -> str:
    """``layers.3`` of ``model.language_model.layers.3.mlp.up_proj.weight``; the module's name where none is
    numbered."""
    found = NUMBERED.match(parameter)
    return found.group(2) if found else parameter.rpartition(".")[0] or parameter


def _by_layer(gradient: Mapping[str, Tensor], target: Mapping[str, Tensor], eta: float) -> list[LayerSlope]:
    parts: dict[str, list[Tensor]] = defaultdict(list)
    for name, g in gradient.items():
        a, b = g.double(), target[name].double()
        parts[layer_of(name)].append(torch.stack([(a * b).sum(), a.square().sum(), b.square().sum()]))
    found = []
    for layer, sums in parts.items():
        product, own, anchors = torch.stack(sums).sum(0).tolist()
        norms = (own * anchors) ** 0.5
        found.append(LayerSlope(layer, eta * product, product / norms if norms else 0.0))
    return found


def _proxy(run: Run) -> tuple[MultimodalModel, Path]:
    """As it scored: warmed up in this folder or among the benchmark's, or as it came."""
    settings: Model = run.config.proxy
    if not run.config.proxy.warmup.fraction:
        path = settings.path or (str(checkpoint("proxy")) if run.config.digitmath is not None else None)
        return MultimodalModel.load(replace(settings, path=path), "proxy"), run.path / "proxy"
    for folder in (run.path / "proxy", *_shared(run)):
        if (folder / DONE).is_file():
            return MultimodalModel.load(replace(settings, path=str(folder)), "proxy"), folder
    raise DataError(f"the warmed-up proxy is not in {run.path / 'proxy'} any more, nor among those of a benchmark")


def _shared(run: Run) -> Iterator[Path]:
    """Proxies of a benchmark around this folder that were made from what its scores were made from."""
    made_from = _manifest(run.path).get("scores", {}).items()
    for home in sorted(run.path.parent.parent.glob("proxies/*/")):
        warmed_from = _manifest(home).get("proxy")
        if warmed_from is not None and warmed_from.items() <= made_from:
            yield home / "proxy"


def _manifest(folder: Path) -> dict[str, dict[str, str]]:
    file = folder / "manifest.json"
    return dict(json.loads(file.read_text())) if file.is_file() else {}

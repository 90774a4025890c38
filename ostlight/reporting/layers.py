"""First-order utility of one sample, layer by layer."""

from __future__ import annotations

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
from ostlight.influence.gradient_vectors import finite_mean_gradients
from ostlight.influence.parameters import select_parameters
from ostlight.influence.preconditioner import Preconditioner
from ostlight.influence.sample_gradient import sample_gradient, train_only
from ostlight.models.influence_task import make_anchors
from ostlight.models.module import MultimodalModel
from ostlight.models.saved_files import check_saved
from ostlight.pipeline.fingerprint import GRADIENT_VECTORS
from ostlight.pipeline.inputs import read_anchors
from ostlight.pipeline.run_folder import read_manifest
from ostlight.pipeline.warmup import DONE
from ostlight.reporting.finished_run import FinishedRun
from ostlight.selection.notes import PRECONDITIONER
from ostlight.selection.registry import create
from ostlight.training.optimizer_records import WARM_UP_AGAIN, warmup_adam_preconditioner

NUMBERED = re.compile(r"^(.*?)([^.]+\.\d+)(\.|$)")


@dataclass(frozen=True)
class LayerUtility:
    """One layer's part of a sample's first-order utility.

    Attributes:
        utility: ``step size * <g_i, P g_V>`` over the layer's parameters, nats; all layers add up to the sample's.
        cosine: of the sample's and the anchors' gradient within the layer.
    """

    layer: str
    utility: float
    cosine: float


def layer_utilities(run: FinishedRun, position: int) -> list[LayerUtility]:
    """Returns the layers in the model's order. Loads the proxy as it scored and passes over the anchors once.

    Curvature is left out: it couples the layers.

    Raises:
        DataError: the selector takes no gradients, or the proxy, the pool or the anchors cannot be opened any more.
        BadRecord: the record, or its gradient, cannot be used.
    """
    config = run.config
    selector = create(config.selector.name, config.selector.options)
    scored_by = [selector, *(create(choice.name, choice.options) for choice in selector.dependencies())]
    options = next((each.options for each in scored_by if hasattr(each.options, "parameters")), None)
    if options is None:
        raise DataError(f"the selector {config.selector.name!r} takes no gradients, so its score has no parts by layer")
    if "step_size" not in run.notes:
        raise DataError("the run's notes hold no step size")
    if run.pool is None:
        raise DataError(f"the sample's gradient cannot be computed again. {run.missing[-1]}")
    model, folder = _proxy(run)
    parameters = select_parameters(model.model, options.parameters)
    train_only(model, parameters)
    located = replace(config, anchors=run.locate(config.anchors, "anchors"))
    anchors = read_anchors(located)
    if not anchors.samples:
        raise DataError("the anchors cannot be opened, so their gradient cannot be computed again")
    sets = make_anchors(model, anchors.samples, [""] * len(anchors.samples), config.compute.tokens_per_batch)
    target = finite_mean_gradients(model.model, sets, parameters)[""]
    step = getattr(options, "step", "sgd")
    if step == "adam":
        records = folder if config.proxy.warmup.fraction > 0 else None
        preconditioner, _ = warmup_adam_preconditioner(records, model.model, parameters, sets)
    elif step != "sgd":
        preconditioner = _stored_preconditioner(run, folder, step, model.device)
    if step != "sgd":
        target = {name: preconditioner.apply(name, vector) for name, vector in target.items()}
    sample = run.pool[position]
    single = model.collator.batch([sample], [model.encoder.encode(sample)]).to(model.device)
    _, gradient = sample_gradient(model.model, sets.task, parameters, single)
    return _by_layer(gradient, target, run.notes["step_size"])


def _stored_preconditioner(run: FinishedRun, proxy: Path, step: str, device: torch.device) -> Preconditioner:
    file = proxy / GRADIENT_VECTORS / str(run.notes.get(PRECONDITIONER))
    stored = Preconditioner.load(file, device) if file.is_file() else None
    if stored is None:
        raise DataError(f"the factors of step={step} are not in {file.parent} any more; score again to make them anew")
    return stored


def layer_of(parameter: str) -> str:
    """``layers.3`` for ``model.language_model.layers.3.mlp.up_proj.weight``; the module's name where none is
    numbered."""
    numbered = NUMBERED.match(parameter)
    return numbered.group(2) if numbered else parameter.rpartition(".")[0] or parameter


def _by_layer(
    gradient: Mapping[str, Tensor], anchor_gradient: Mapping[str, Tensor], step_size: float
) -> list[LayerUtility]:
    products: dict[str, list[Tensor]] = defaultdict(list)
    for name, g in gradient.items():
        a, b = g.double(), anchor_gradient[name].double()
        products[layer_of(name)].append(torch.stack([(a * b).sum(), a.square().sum(), b.square().sum()]))
    layers = []
    for layer, of_parameters in products.items():
        dot, squared_norm, anchors_squared_norm = torch.stack(of_parameters).sum(0).tolist()
        norms = (squared_norm * anchors_squared_norm) ** 0.5
        layers.append(LayerUtility(layer, step_size * dot, dot / norms if norms else 0.0))
    return layers


def _proxy(run: FinishedRun) -> tuple[MultimodalModel, Path]:
    """The model as it scored, and its folder: warmed up in the run or in its benchmark, or as it was given."""
    proxy = run.config.proxy
    settings: Model = proxy
    if not proxy.warmup.fraction:
        path = settings.path or (str(checkpoint("proxy")) if run.config.digitmath is not None else None)
        return MultimodalModel.load(replace(settings, path=path), "proxy"), run.path / "proxy"
    for folder in (run.path / "proxy", *_benchmark_proxies(run)):
        if (folder / DONE).is_file():
            check_saved(folder, WARM_UP_AGAIN.format(folder))
            return MultimodalModel.load(replace(settings, path=str(folder)), "proxy"), folder
    raise DataError(f"the warmed-up proxy is not in {run.path / 'proxy'} any more, nor among those of a benchmark")


def _benchmark_proxies(run: FinishedRun) -> Iterator[Path]:
    """Proxies of the benchmark around this folder whose inputs are among those of its scores."""
    score_inputs = read_manifest(run.path).get("scores", {}).items()
    for home in sorted(run.path.parent.parent.glob("proxies/*/")):
        proxy_inputs = read_manifest(home).get("proxy")
        if proxy_inputs is not None and proxy_inputs.items() <= score_inputs:
            yield home / "proxy"

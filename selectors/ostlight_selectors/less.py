"""LESS: samples whose Adam step agrees with the mean gradient of a group of anchors."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ostlight.config.schema import Count
from ostlight.errors import BadRecord, SelectorError
from ostlight.influence.anchors import Anchors
from ostlight.influence.failures import failures
from ostlight.influence.gradient_vectors import finite_mean_gradients
from ostlight.influence.gradients.engine import GradientDots
from ostlight.influence.gradients.probes import Vectors, requiring_gradients, zeros
from ostlight.influence.gradients.rows import RowMap
from ostlight.influence.parameters import select_parameters
from ostlight.influence.sample_gradient import norm, sample_gradient, train_only
from ostlight.models.batch import Batch
from ostlight.models.influence_task import make_anchors
from ostlight.selection.context import ScoringContext
from ostlight.selection.planning import ProxyMemory, gib
from ostlight.selection.selector import Selector
from ostlight.training.optimizer_records import warmup_adam_preconditioner

log = logging.getLogger("ostlight.selectors.less")


class Less(Selector):
    """Largest cosine, over the groups of anchors, of the sample's Adam step with the group's mean gradient.

    "LESS: Selecting Influential Data for Targeted Instruction Tuning" (arXiv 2402.04333), at one checkpoint, the
    proxy: ``score_i = max_g cos(P g_i, g_V^g)``, where ``P = diag(1 / (sqrt(v) + eps))`` holds Adam's second moments of
    the warm-up, frozen; its first moment, the same for all samples, is left out. No gradient is kept:
    ``<P g_i, t> = <g_i, P t>``, so a pass takes each ``g_i`` against fixed vectors, the groups' ``P g_V^g`` and ``d``
    random ones, ``P r_k`` with entries ``+-1/sqrt(d)``. The inner products are exact; the projection ``R P g_i`` gives
    the length of the step, within a factor of ``1 +- 1/sqrt(2 d)``. LESS takes the inner product between projections
    too, since it keeps the pool's for later: an error of ``1/sqrt(d)`` on a cosine that is itself small. That cosine is
    kept beside the score. One forward and one backward pass a sample.

    With ``average: cosines`` the score is the largest mean, over the anchors of a group, of the cosines with their
    gradients one by one, as the authors' code has it: ``mean_j g_j / |g_j|`` takes the place of ``g_V / |g_V|``.
    """

    uses_proxy: ClassVar[bool] = True
    needs_anchors: ClassVar[bool] = True
    renamed_options: ClassVar[Mapping[str, str]] = {"scope": "parameters"}

    @dataclass
    class Options:
        """Attributes:
        parameters: ``blocks``, ``last:N``, ``head``, ``all``, ``lora`` or a regular expression.
        projection: d, random vectors; each takes as much memory as the gradient.
        step: ``adam``, or ``sgd``: the gradient itself, P = 1.
        average: of a group's anchors: their ``gradients`` (as in the paper), or the ``cosines`` with them.
        """

        parameters: str = "blocks"
        projection: Count = 64
        step: Literal["adam", "sgd"] = "adam"
        average: Literal["gradients", "cosines"] = "gradients"

    def fit_memory(self, proxy: ProxyMemory) -> None:
        entries = sum(p.numel() for p in select_parameters(proxy.model, self.options.parameters).values())
        count = proxy.groups + self.options.projection
        held = 4 * count * entries
        if proxy.free is not None and proxy.weights + held > proxy.free:
            raise SelectorError(
                f"less: {count} gradient vectors of {entries:,} entries are {gib(held)}, the weights "
                f"{gib(proxy.weights)}, and each device has {gib(proxy.free)}: set fewer parameters "
                "(selector.options.parameters=last:6) or a smaller selector.options.projection"
            )

    def setup(self, context: ScoringContext) -> None:
        context.require_anchors("less")
        proxy = context.proxy
        self.model = model = proxy.model.model
        parameters = select_parameters(model, self.options.parameters)
        train_only(model, parameters)
        anchors = make_anchors(proxy.model, context.anchors, context.groups, proxy.tokens_per_batch)
        of_cosines = self.options.average == "cosines"
        by_group = (mean_unit_gradients if of_cosines else finite_mean_gradients)(model, anchors, parameters)
        preconditioner, shaped = None, "sgd steps"
        if self.options.step == "adam":
            preconditioner, source = warmup_adam_preconditioner(
                proxy.folder if proxy.warmed_up else None, model, parameters, anchors
            )
            shaped = f"adam steps, shaped by {source}"
        device, size, groups = proxy.model.device, self.options.projection, len(by_group)
        squares = torch.zeros(groups, dtype=torch.float64, device=device)
        self.projected = torch.zeros(size, groups, dtype=torch.float64, device=device)
        self.vectors = {}
        for name, parameter in parameters.items():  # one after the other: all random vectors are the most there is
            means = torch.stack([mean.pop(name) for mean in by_group.values()])
            random = random_directions(context.seed, name, parameter, size)
            flat = means.double().flatten(1)
            squares += flat.square().sum(1)
            self.projected += random.flatten(1).double() @ flat.T
            vectors = torch.cat([means, random])
            self.vectors[name] = vectors if preconditioner is None else preconditioner.apply(name, vectors)
        lengths = squares.sqrt()
        for group, length in zip(by_group, lengths.tolist(), strict=True):
            if not length:
                raise SelectorError(
                    f"the mean gradient of the anchors of group {str(group)!r} is zero, so no step has a direction "
                    "towards them; leave them out, or group the anchors by another tag (anchors.group)"
                )
        # What the inner products are over, besides the sample's length; unit gradients have their lengths in them.
        self.lengths = torch.ones_like(lengths) if of_cosines else lengths
        self.projected_lengths = torch.ones_like(lengths) if of_cosines else self.projected.norm(dim=0)
        self.engine, self.rows = GradientDots(model, parameters), RowMap(model)
        self.task = anchors.task
        held = sum(t.nbytes for t in self.vectors.values())
        log.info(f"{shaped}; gradient vectors: {held / 2**20:.1f} MiB")
        context.note("groups", [str(group) for group in by_group])
        context.note("vector_bytes", held)
        for single in proxy.examples(1):
            self.engine.verify(lambda: self.task.losses(model, single), self.rows.of(single.inputs))  # noqa: B023

    def score(self, batch: Batch) -> dict[str, Any]:
        found = self.engine.products(
            lambda: self.task.losses(self.model, batch), self.rows.of(batch.inputs), self.vectors
        )
        groups = len(self.lengths)
        along, sketch = found.dots[:, :groups], found.dots[:, groups:]
        length = sketch.norm(dim=1, keepdim=True)
        cosines = along / (length * self.lengths)
        projected = sketch @ self.projected / (length * self.projected_lengths)
        columns: dict[str, Any] = {
            "score": cosines.amax(1),
            "projected_cosine": projected.amax(1),
            "step_length": length[:, 0],
            "loss": found.losses.double(),
        }
        if groups > 1:
            columns["cosine_by_group"] = cosines
        return columns | failures(found)


def mean_unit_gradients(
    model: nn.Module, anchors: Anchors, parameters: Mapping[str, nn.Parameter]
) -> dict[Hashable, Vectors]:
    """``mean_j g_j / |g_j|`` over the anchors of each group: ``[*shape]`` per parameter. A gradient of 0 counts as 0.

    Raises:
        SelectorError: an anchor's loss or gradient is not finite; names the anchor.
    """
    means: dict[Hashable, Vectors] = {group: zeros(parameters) for group in anchors.sizes}
    with requiring_gradients(parameters):
        for index, single in anchors.singles():
            try:
                _, gradient = sample_gradient(model, anchors.task, parameters, single)
            except BadRecord as error:
                raise SelectorError(f"{anchors.name_of(index)}: {error}; fix it or leave it out") from error
            group, length = anchors.groups[index], norm(gradient)
            for name, part in gradient.items():
                means[group][name] += part / (length * anchors.sizes[group] or 1.0)
    return means


def random_directions(seed: int, name: str, parameter: nn.Parameter, count: int) -> Tensor:
    """``[count, *shape]``, fp32, entries ``+-1/sqrt(count)``: ``E ||R x||^2 = ||x||^2`` over all parameters.

    A parameter's signs depend on the seed and its name alone, not on the device or the other parameters.
    """
    key = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:7], "big"))
    bits = torch.randint(0, 2, (count, *parameter.shape), generator=generator, dtype=torch.int8)
    return ((2.0 * bits - 1.0) / count**0.5).to(parameter.device)

"""The utility from inner products of one gradient with a few fixed vectors: first order, and curvature by sketching."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ostlight.gradients.engine import GradientDots
from ostlight.gradients.estimators import pooled, sketches
from ostlight.gradients.rows import RowMap
from ostlight.model.batch import Batch
from ostlight.model.module import MultimodalModel
from ostlight.utility.anchors import AnchorSet
from ostlight.utility.failures import failures
from ostlight.utility.gradient import train_only
from ostlight.utility.targets import Holding, make_targets, slope_norm


class Sketched:
    """Utilities of a whole batch from one forward and one backward pass, in nats:

        u_i ~ eta <g_i, g_V>                                   without probes (first order)
        u_i ~ eta <g_i, g_V> - eta^2 / 2 mean_k <g_i, q_k>^2   with K probes (second order)

    where the probes ``q_k`` sketch the generalized Gauss-Newton matrix of the anchor loss
    (``ostlight.gradients.probes``). First order leaves out curvature and can rank very differently from ``Exact`` at
    the step sizes training really uses.

    Args:
        model, parameters, anchors, eta: as for ``Exact``; half-precision weights are fine here.
        num_probes: K; 0 for first order. With groups, each group gets K probes of its own.
        seed: of the probes.
        scale: as for ``Exact``. ``<P g_i, t> = <g_i, P t>`` for a diagonal ``P``, so the fixed vectors carry it.
        hold, cache, say: where the fixed vectors are held and kept (``ostlight.utility.targets``); their size is said
            before they are made.

    Raises:
        SelectorError: the fixed vectors do not fit where they are to be held.
        OstlightError: a layer the gradient engine cannot treat, or too few anchors for the probes.
    """

    def __init__(
        self,
        model: MultimodalModel,
        parameters: Mapping[str, nn.Parameter],
        anchors: AnchorSet,
        eta: float,
        num_probes: int = 0,
        seed: int = 0,
        scale: Mapping[str, Tensor] | None = None,
        hold: str = "full",
        cache: Path | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        train_only(model, parameters)
        self.model, self.parameters, self.eta, self.num_probes = model, dict(parameters), eta, num_probes
        self.sizes: dict[Hashable, int] = dict(Counter(anchors.groups))
        self.names = anchors.names
        self.holding = Holding(self.parameters, self.sizes, num_probes, hold, model.device)
        say(self.holding.line())
        self.holding.refuse_if_too_large()
        self.targets = make_targets(model, self.holding, anchors, seed, scale, cache, say)
        self.slope_norm = slope_norm(self.targets, self.sizes, num_probes)
        self.engine, self.rows = GradientDots(model, self.parameters), RowMap(model.model)

    def leave(self) -> None:
        """This rank is done; needed where the vectors are split over ranks."""
        self.targets.leave()

    def verify(self, batch: Batch) -> float:
        """Compares the engine with plain autograd on a few samples; the largest relative deviation.

        Raises:
            OstlightError: it is larger than rounding explains; names the parameter.
        """
        return self.engine.verify(lambda: self.model.losses(batch), self.rows.of(batch.inputs))

    def columns(self, batch: Batch) -> dict[str, Any]:
        """Utilities and what came along, one value a sample.

        Returns:
            ``score`` (``u_i``), ``loss``, ``grad_norm``, ``slope`` (``<g_i, g_V>``), ``eta``, ``cosine`` of ``g_i``
            with ``g_V``; with probes ``phi`` (``[K * groups]`` a sample, so that sets can be picked later); with groups
            ``utility_by_group`` in the order of ``names``; ``failure`` where loss or gradient are not finite.
        """
        found = self.engine.products(
            lambda: self.model.losses(batch), self.rows.of(batch.inputs), self.targets, squared_norms=True
        )
        parts = sketches(found.dots, self.sizes, self.num_probes)
        whole = pooled(parts, self.sizes)
        norms = found.squared_norms.sqrt()
        columns: dict[str, Any] = {
            "score": whole.second_order(self.eta),
            "loss": found.losses.double(),
            "grad_norm": norms,
            "slope": whole.slope,
            "eta": [self.eta] * len(batch),
            "cosine": whole.slope / (norms * self.slope_norm).clamp_min(torch.finfo(torch.float64).tiny),
        }
        if self.num_probes:
            columns["phi"] = whole.curvature.float()
        if self.names:
            columns["utility_by_group"] = torch.stack([parts[n].second_order(self.eta) for n in self.names], dim=1)
        return columns | failures(found)

"""The utility from a few measured steps: changes of the logits in a reduced basis, the cross-entropy in full."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ostlight.errors import BadRecord
from ostlight.influence.estimators.gradient_products import GradientProducts
from ostlight.influence.gradient_vectors import IN_MEMORY, VectorSettings
from ostlight.influence.gradients.curvature_correction import CurvatureCorrection
from ostlight.influence.gradients.probes import Vectors
from ostlight.influence.gradients.responses import StepResponses, measure_responses
from ostlight.influence.sample_gradient import sample_gradient
from ostlight.influence.simulated_step import SimulatedStep
from ostlight.influence.tensor_files import load_whole, save_whole
from ostlight.progress import track


class Projected(GradientProducts):
    """Utilities of a whole batch from one forward and one backward pass, in nats:

        u_i ~ L_V(z) - L_V(z - eta sum_k phi_k rho_k + q_i) + eta (<g_i, g_V> - sum_k phi_k <rho_k, grad_z L_V>)

    with the anchors' logits ``z``, K measured directions ``rho_k`` and the sample's coordinates ``phi_k``
    (``ostlight.influence.gradients.responses``). The last term is the first-order gain outside the directions.
    ``||phi||^2`` is the curvature ``g_i' H g_i`` within them.

    ``q_i`` is what the network's own curvature adds to the change of the logits, predicted from the measured steps, for
    which it is known (``ostlight.influence.gradients.curvature_correction``). The cross-entropy is taken as it is.

    Groups cost one vector each and no directions of their own: the loss of each is read off the same logits.

    Args:
        step, vectors: as for ``GradientProducts``.
        snapshots: samples of the pool, one a batch, whose steps are measured: ``3 S`` passes over the anchors.
        rank: K directions, each a vector as large as the parameters.
        by_anchor: also ``utility_by_anchor``, off the same logits; what lies outside of the directions is known of
            groups alone, and counts equally for all anchors.

    Raises:
        InfluenceError: as ``GradientProducts``; no snapshot can be stepped on.
    """

    def __init__(
        self,
        step: SimulatedStep,
        snapshots: Sequence[Any],
        rank: int,
        vectors: VectorSettings = IN_MEMORY,
        by_anchor: bool = False,
    ) -> None:
        measured = _MeasuredSteps(step, snapshots, rank, vectors.is_writer)
        super().__init__(step, 0, (measured, rank), 0, vectors)
        self.responses, self.by_anchor = measured.responses.to(step.device), by_anchor
        self.inside = self.responses.loss_gradients
        self.correction = self._correction([snapshots[k] for k in self.responses.steps.tolist()])

    def _correction(self, taken: Sequence[Any]) -> CurvatureCorrection:
        _, phi = self.split(torch.cat([self.products(single).dots for single in track(taken, "curvature correction")]))
        known = phi.isfinite().all(1)
        return CurvatureCorrection.fit(phi[known], self.responses.deviations[known], self.step.step_size)

    def split(self, dots: Tensor) -> tuple[Tensor, ...]:
        """``[N, G]`` alignments with the groups' mean gradients, and ``[N, K]`` coordinates."""
        return dots.double().tensor_split([len(self.sizes)], dim=1)

    def utilities(self, dots: Tensor) -> dict[str, Tensor]:
        alignments, phi = self.split(dots)
        outside = self.step.step_size * (alignments - phi @ self.inside.T)
        weights, groups = self.responses.weights, len(self.sizes)
        if self.by_anchor:
            weights = torch.cat([weights, self.responses.anchor_weights])
        inside = self.responses.loss_decrease(phi, self.step.step_size, self.correction(phi), weights)
        by_group = outside + inside[:, :groups]
        shares = torch.tensor(list(self.sizes.values()), dtype=torch.float64, device=dots.device)
        shares = shares / shares.sum()
        columns = {"score": by_group @ shares, "alignment": alignments @ shares, "phi": phi.float()}
        if self.by_anchor:
            columns["utility_by_anchor"] = inside[:, groups:] + (outside @ shares)[:, None]
        if self.names:
            order = [list(self.sizes).index(name) for name in self.names]
            columns["utility_by_group"] = by_group[:, order]
        return columns


class _MeasuredSteps:
    """The measured steps, cached beside the vectors that are made from them."""

    def __init__(self, step: SimulatedStep, snapshots: Sequence[Any], rank: int, is_writer: bool) -> None:
        self._step, self._snapshots, self._rank, self._is_writer = step, snapshots, rank, is_writer
        self.responses: StepResponses

    @property
    def key(self) -> Mapping[str, Any]:
        digests = [digest for single in self._snapshots for digest in self._step.task.digests(single)]
        return {"rank": self._rank, "step_size": self._step.step_size, "snapshots": " ".join(digests)}

    def prepare(self, folder: Path | None) -> None:
        file = None if folder is None else folder / "responses"
        stored = load_whole(file) if file is not None and file.exists() else None
        if stored is not None:
            self.responses = StepResponses(**stored[0])
            return
        full = self._full
        with torch.autocast(self._step.device.type, enabled=False):  # its rounding is as large as a response
            self.responses = measure_responses(
                full.model, full.anchors, full.parameters, self._gradients, full.step_size, self._rank
            )
        if file is not None and self._is_writer:
            save_whole(file, vars(self.responses))

    def vectors(self, names: Sequence[str], only: range) -> Vectors:
        parameters = {name: self._full.parameters[name] for name in names}
        return self.responses.to(self._step.device).vectors(self._full.model, self._full.anchors, parameters, only)

    @cached_property
    def _full(self) -> SimulatedStep:
        return self._step.in_full_precision()

    def _gradients(self) -> Iterator[Vectors]:
        for single in track(self._snapshots, "calibration by measured steps", unit="samples"):
            try:
                _, gradient = sample_gradient(self._step.model, self._step.task, self._step.parameters, single)
            except BadRecord:
                continue  # the record meets the same rejection, and is kept with it, when it is scored
            yield self._step.direction(gradient)

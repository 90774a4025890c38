"""The utility from a few measured steps: the logits' way in a reduced basis, the cross-entropy in full."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ostlight.data.atomic import atomic_path
from ostlight.errors import BadRecord
from ostlight.influence.estimators.gradient_products import GradientProducts
from ostlight.influence.gradient_vectors import IN_MEMORY, Keeping, anchors_for_probes, digest_of, seen_of
from ostlight.influence.gradients.curvature_correction import Bend
from ostlight.influence.gradients.probes import Vectors
from ostlight.influence.gradients.responses import Responses, measured
from ostlight.influence.sample_gradient import sample_gradient
from ostlight.influence.simulated_step import Step
from ostlight.models.batch import Batch
from ostlight.ranks import is_first_rank


class Projected(GradientProducts):
    """Utilities of a whole batch from one forward and one backward pass, in nats:

        u_i ~ L_V(z) - L_V(z - eta sum_k phi_k rho_k + q_i) + eta (<g_i, g_V> - sum_k phi_k <rho_k, grad_z L_V>)

    with the anchors' logits ``z``, K measured directions ``rho_k`` and the sample's coordinates ``phi_k``
    (``ostlight.influence.gradients.responses``). The last term is the slope of what lies outside the directions.
    ``||phi||^2`` is the curvature ``g_i' H g_i`` within them.

    ``q_i`` is what the network's own curvature adds to the way of the logits, told from the measured steps, of which it
    is known (``ostlight.influence.gradients.curvature_correction``). The cross-entropy is taken as it is.

    Groups cost one vector each and no directions of their own: the loss of each is read off the same moved logits.

    Args:
        step, keeping: as for ``GradientProducts``.
        snapshots: samples of the pool, one a batch, whose steps are measured: ``3 S`` passes over the anchors.
        count: K directions that are kept, each a vector as large as the scope.

    Raises:
        SelectorError, OstlightError: as ``GradientProducts``; no snapshot can be stepped on.
    """

    def __init__(self, step: Step, snapshots: Sequence[Batch], count: int, keeping: Keeping = IN_MEMORY) -> None:
        steps = _Steps(step, snapshots, count)
        super().__init__(step, 0, (steps, count), 0, keeping)
        self.responses = steps.responses.to(step.model.device)
        self.inside = self.responses.slopes
        self.bend = self._bend([snapshots[place] for place in self.responses.places.tolist()])

    def _bend(self, taken: Sequence[Batch]) -> Bend:
        _, phi = self._parts(torch.cat([self._dots(single) for single in taken]))
        known = phi.isfinite().all(1)
        return Bend.of(phi[known], self.responses.bent[known], self.eta)

    def _dots(self, single: Batch) -> Tensor:
        return self.engine.products(lambda: self.model.losses(single), self.rows.of(single.inputs), self.targets).dots

    def _parts(self, dots: Tensor) -> tuple[Tensor, ...]:
        """``[N, G]`` slopes and ``[N, K]`` coordinates."""
        return dots.double().tensor_split([len(self.sizes)], dim=1)

    def utilities(self, dots: Tensor) -> dict[str, Tensor]:
        slopes, phi = self._parts(dots)
        outside = self.eta * (slopes - phi @ self.inside.T)
        by_group = outside + self.responses.falls(phi, self.eta, self.bend(phi))
        shares = torch.tensor(list(self.sizes.values()), dtype=torch.float64, device=dots.device)
        shares = shares / shares.sum()
        told = {"score": by_group @ shares, "alignment": slopes @ shares, "phi": phi.float()}
        if self.names:
            order = [list(self.sizes).index(name) for name in self.names]
            told["utility_by_group"] = by_group[:, order]
        return told


class _Steps:
    """The measured steps, kept beside the vectors that are made from them."""

    def __init__(self, step: Step, snapshots: Sequence[Batch], count: int) -> None:
        self._step, self._snapshots, self._count = step, snapshots, count
        shown = seen_of(enumerate(single.encoded[0] for single in snapshots))
        self.key: Mapping[str, Any] = {"directions": count, "eta": step.eta, "snapshots": digest_of(shown)}
        self.responses: Responses

    def prepare(self, folder: Path | None) -> None:
        file = None if folder is None else folder / "responses"
        if file is not None and file.exists():
            self.responses = Responses(**load_file(file))
            return
        trusted = anchors_for_probes(self._full.model, self._step.anchors)
        with torch.autocast(self._step.model.device.type, enabled=False):  # its rounding is as large as a response
            self.responses = measured(trusted, self._full.parameters, self._gradients, self._step.eta, self._count)
        if file is not None and is_first_rank():
            with atomic_path(file) as temporary:
                save_file({name: t.contiguous().cpu() for name, t in vars(self.responses).items()}, temporary)

    def vectors(self, names: Sequence[str], only: range) -> Vectors:
        trusted = anchors_for_probes(self._full.model, self._step.anchors)
        parameters = {name: self._full.parameters[name] for name in names}
        return self.responses.to(self._step.model.device).vectors(trusted, parameters, only)

    @cached_property
    def _full(self) -> Step:
        return self._step.in_full_precision()

    def _gradients(self) -> Iterator[Vectors]:
        names = list(self._step.parameters)
        for single in self._snapshots:
            try:
                _, found = sample_gradient(self._step.model, list(self._step.parameters.values()), single)
            except BadRecord:
                continue  # the record meets the same rejection, and is kept with it, when it is scored
            yield self._step.shaped(dict(zip(names, found, strict=True)))

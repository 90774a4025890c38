"""Inner products of every sample's gradient with fixed vectors, from one forward and one backward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import ostlight.influence.gradients.parameter_uses  # noqa: F401  (fills the rules)
from ostlight.errors import InfluenceError
from ostlight.influence.gradients.norms import wide
from ostlight.influence.gradients.probes import gradients_of, requiring_gradients
from ostlight.influence.gradients.products import Products
from ostlight.influence.gradients.random_products import RandomDirections, RandomProducts
from ostlight.influence.gradients.rows import RowOwners
from ostlight.influence.gradients.sink import WAY_OUT, Both
from ostlight.influence.gradients.tracking import ParameterTracker
from ostlight.influence.gradients.vectors import GradientVectors

Losses = Callable[[], Tensor]
"""Runs the model on a batch and returns its per-sample losses ``[N]``."""

AGREEMENT = {torch.float64: 1e-5, torch.float32: 1e-3, torch.bfloat16: 0.15, torch.float16: 0.05}
"""Largest deviation from plain autograd, over the gradient's norm, that ``verify`` lets pass, by the weights' dtype.
Most models round their norms to fp32 whatever the dtype, so fp64 is held to no more than that."""


@dataclass(frozen=True)
class SampleProducts:
    """Results of one pass for every sample's gradient ``g_i``.

    Attributes:
        losses: ``[N]`` the losses the pass was taken on, detached.
        by_parameter: ``[N, M]`` fp64 inner products with the vectors, per parameter; one that took no part is missing.
            Unless they were asked for separately, those of small parameters may stand together under the name of one of
            them; what is no finite number always stands under its own.
        squared_norms_by_parameter: ``[N]`` fp64, likewise; empty where norms were not asked for.
        random_products: ``[N, count]`` fp32 or fp64 (``RandomDirections``); ``None`` where not asked for.
    """

    losses: Tensor
    num_vectors: int
    by_parameter: dict[str, Tensor]
    squared_norms_by_parameter: dict[str, Tensor]
    random_products: Tensor | None = None

    @property
    def dots(self) -> Tensor:
        """``[N, M]`` ``<g_i, vector_m>`` over all parameters."""
        zero = torch.zeros(len(self.losses), self.num_vectors, dtype=torch.float64, device=self.losses.device)
        return sum((part.to(zero.device) for part in self.by_parameter.values()), zero)

    @property
    def squared_norms(self) -> Tensor:
        """``[N]`` ``||g_i||^2`` over all parameters."""
        zero = torch.zeros(len(self.losses), dtype=torch.float64, device=self.losses.device)
        return sum((part.to(zero.device) for part in self.squared_norms_by_parameter.values()), zero)

    def non_finite(self) -> dict[int, str]:
        """Row to the first parameter, in the backward pass's order, whose product or norm is no finite number."""
        found: dict[int, str] = {}
        for parts in (self.by_parameter, self.squared_norms_by_parameter):
            for name, part in parts.items():
                for row in (~part.isfinite().reshape(len(part), -1).all(1)).nonzero()[:, 0].tolist():
                    found.setdefault(row, name)
        if self.random_products is not None:
            for row in (~self.random_products.isfinite().all(1)).nonzero()[:, 0].tolist():
                found.setdefault(row, "all parameters (its random products)")
        return found


class GradientDots:
    """Takes per-sample gradients against fixed vectors without weight gradients and without holding any.

    Args:
        model: in eval mode: samples must not depend on one another.
        parameters: from ``select_parameters``.
    """

    def __init__(self, model: nn.Module, parameters: dict[str, nn.Parameter]) -> None:
        self.model = model
        self.parameters = parameters

    def products(
        self,
        losses: Losses,
        rows: RowOwners,
        vectors: Mapping[str, Tensor] | None = None,
        squared_norms: bool = False,
        separate: bool = False,
        random: RandomDirections | None = None,
    ) -> SampleProducts:
        """One forward and one backward pass over a batch.

        Args:
            losses: runs the model and returns ``[N]`` losses; sample i's may depend on sample i's rows alone. While it
                runs, the parameters are tracked stand-ins and no weight asks for a gradient.
            rows: whose row is whose, from ``RowMap.of(inputs)``; ``RowOwners(N)`` where every layer sees ``[N, ...]``.
            vectors: ``[M, *shape]`` per parameter, the same M for all, any float dtype; looked up by name
                when the backward pass comes to the parameter, and let go at once
                (``ostlight.influence.gradients.vectors``).
            squared_norms: also take ``||g_i||^2``.
            separate: keep every parameter's results separate, also small ones'.
            random: also take the products with these directions.

        Raises:
            InfluenceError: a use of a parameter that is not treated (named, with its layer), rows that cannot be
                assigned, vectors that do not fit the parameters, or no parameter took part.
        """
        given = vectors if vectors is not None else {}
        num_vectors = self._check(given)
        sink = Products(self.parameters, rows, given, squared_norms, separate)
        random_sink = None if random is None else RandomProducts(random, rows)
        both = sink if random_sink is None else Both(sink, random_sink)
        tracker = ParameterTracker(self.model, self.parameters, both)
        values = tracker.backward(losses, rows.num_samples)
        sink.finish()
        found = None if random_sink is None else random_sink.products
        return SampleProducts(values.detach(), num_vectors, sink.dots, sink.norms, found)

    def verify(self, losses: Losses, rows: RowOwners, most_samples: int = 2) -> float:
        """Compares the engine with plain autograd on a few samples of a batch, parameter by parameter.

        Meant for the start of a run: it is the last guard against a use of a parameter that escapes the tracker and
        against rows given to the wrong sample. Costs one training step for each sample compared.

        Returns:
            the largest deviation found, over the gradient's norm (the vectors' entries are standard normal, so that is
            the size of the product); a parameter with less than a thousandth of the sample's gradient is measured
            against that thousandth.

        Raises:
            InfluenceError: a deviation above ``AGREEMENT``; names the parameter and the row.
        """
        generator = torch.Generator().manual_seed(0)
        vectors = {
            name: torch.randn(1, *p.shape, generator=generator).to(p.device, wide(p).dtype)
            for name, p in self.parameters.items()
        }
        found = self.products(losses, rows, vectors, separate=True)
        worst, tolerance = 0.0, max(AGREEMENT[parameter.dtype] for parameter in self.parameters.values())
        if torch.is_autocast_enabled(next(iter(self.parameters.values())).device.type):
            tolerance = AGREEMENT[torch.bfloat16]
        for row in range(min(most_samples, rows.num_samples)):
            gradients = self._plain_gradient(losses, row)
            # A gradient that is zero but for rounding (a key projection's bias, say) has no figures to agree on.
            least = 1e-3 * sum(float(gradient.double().square().sum()) for gradient in gradients.values()) ** 0.5
            for name, gradient in gradients.items():
                expected = (gradient.double() * vectors[name][0]).sum()
                got = found.by_parameter[name][row, 0] if name in found.by_parameter else torch.zeros(())
                # The size a product with a random vector has; the product of the norms is larger by the root of the
                # parameter's size, and held against it even a product that is all wrong would look small.
                scale = max(float(gradient.double().norm()), least)
                deviation = abs(float(got) - float(expected)) / scale if scale else abs(float(got))
                worst = max(worst, deviation)
                if deviation > tolerance:
                    raise InfluenceError(
                        f"per-sample gradients: parameter {name}, row {row} of the batch: {float(got):.6g}, but "
                        f"{float(expected):.6g} by plain autograd; {WAY_OUT}"
                    )
        return worst

    def _plain_gradient(self, losses: Losses, row: int) -> dict[str, Tensor]:
        with requiring_gradients(self.parameters):
            found = gradients_of(losses()[row], None, self.parameters, keep=False)
        return {name: found.get(name, torch.zeros_like(parameter)) for name, parameter in self.parameters.items()}

    def _check(self, vectors: Mapping[str, Tensor]) -> int:
        if not vectors:
            return 0
        # Looking a stored vector up may move it between devices or ranks; its shape is known without that.
        shapes = (
            vectors.shapes if isinstance(vectors, GradientVectors) else {name: t.shape for name, t in vectors.items()}
        )
        counts = {shape[0] for shape in shapes.values()}
        wrong = [
            f"{name} has {list(shapes[name]) if name in shapes else 'none'}, not {['M', *p.shape]}"
            for name, p in self.parameters.items()
            if name not in shapes or shapes[name][1:] != p.shape
        ]
        if wrong or len(counts) != 1:
            problems = "; ".join(wrong[:5]) or f"they hold {sorted(counts)} vectors each"
            raise InfluenceError(f"vectors do not fit the parameters: {problems}")
        return counts.pop()

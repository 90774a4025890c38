"""Prefers samples by the length of their gradient (GraNd)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ostlight.influence.failures import failures
from ostlight.influence.gradients.engine import GradientDots
from ostlight.influence.gradients.rows import RowMap
from ostlight.influence.parameters import select_parameters
from ostlight.influence.sample_gradient import train_only
from ostlight.models.batch import Batch
from ostlight.selection.context import ScoringContext
from ostlight.selection.metric_selector import MetricSelector, Preference


class GradNorm(MetricSelector):
    """The samples with the longest (or shortest, or middling) gradients of their loss: ``||g_i||_2``.

    GraNd of "Deep Learning on a Data Diet" (arXiv 2107.07075), from one proxy instead of an average over networks early
    in training. One forward and one backward pass a sample, batched; no gradient is kept in memory.
    """

    uses_proxy: ClassVar[bool] = True
    column: ClassVar[str] = "gradient_norm"
    renamed_options: ClassVar[Mapping[str, str]] = {"scope": "parameters"}

    @dataclass
    class Options:
        """Attributes:
        prefer: ``high``, ``low`` or ``middle`` norm.
        parameters: those it is taken over: ``blocks``, ``last:N``, ``head``, ``all``, ``lora`` or a regular expression.
        """

        prefer: Preference = "high"
        parameters: str = "blocks"

    def setup(self, context: ScoringContext) -> None:
        super().setup(context)
        parameters = select_parameters(self.model.model, self.options.parameters)
        train_only(self.model, parameters)
        self.engine, self.rows = GradientDots(self.model, parameters), RowMap(self.model.model)

    def measure(self, batch: Batch) -> dict[str, Any]:
        rows = self.rows.of(batch.inputs)
        found = self.engine.products(lambda: self.model.losses(batch), rows, squared_norms=True)
        norms = found.squared_norms.sqrt()
        return {"gradient_norm": norms, "loss": found.losses.double()} | failures(found)

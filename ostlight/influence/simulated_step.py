"""The step that is simulated on every sample, and where its effect is read."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn

from ostlight.influence.anchors import AnchorSet
from ostlight.models.module import MultimodalModel


@dataclass(frozen=True)
class Step:
    """``theta - eta P grad l_i(theta)``, read on the anchors.

    Attributes:
        model: the proxy.
        parameters: what the step changes, by name.
        anchors: what the loss is read on.
        eta: step size.
        scale: ``P``, what each gradient entry is multiplied by before the step (``adam_scale``); ``None`` for SGD.
    """

    model: MultimodalModel
    parameters: Mapping[str, nn.Parameter]
    anchors: AnchorSet
    eta: float
    scale: Mapping[str, Tensor] | None = None

    def shaped(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``P g``."""
        if self.scale is None:
            return dict(gradients)
        return {name: g * self.scale[name] for name, g in gradients.items()}

    def in_full_precision(self) -> Step:
        """As it is where the weights can hold a small step, else on a copy of the model in float32."""
        if next(iter(self.parameters.values())).dtype.itemsize >= 4:
            return self
        copied = copy.deepcopy(self.model).float()
        named = dict(copied.model.named_parameters())
        return replace(self, model=copied, parameters={name: named[name] for name in self.parameters})

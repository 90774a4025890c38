"""Low loss: the cheapest score that needs a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ostlight.errors import SelectorError
from ostlight.model.batch import Batch
from ostlight.selection.selector import Selector
from ostlight.selection.setting import Setting

PREFERENCES = ("low", "high")


class Loss(Selector):
    """The samples the proxy finds easiest (or hardest): mean cross-entropy over the answer tokens."""

    uses_proxy: ClassVar[bool] = True

    @dataclass
    class Options:
        """Attributes:
        prefer: ``low`` or ``high`` loss.
        """

        prefer: str = "low"

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        if self.options.prefer not in PREFERENCES:
            raise SelectorError(f"selector.options.prefer must be low or high; got {self.options.prefer!r}")

    def setup(self, setting: Setting) -> None:
        self.model = setting.proxy.model

    def score(self, batch: Batch) -> dict[str, Any]:
        with torch.no_grad():
            losses = self.model.losses(batch).double()
        return {"score": losses if self.options.prefer == "high" else -losses, "loss": losses}

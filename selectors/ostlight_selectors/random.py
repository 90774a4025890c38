"""The floor of every comparison."""

from __future__ import annotations

from typing import Any, ClassVar

from ostlight.model.batch import Batch
from ostlight.selection.draws import draws
from ostlight.selection.selector import Selector
from ostlight.selection.setting import Setting


class Random(Selector):
    """A uniform random subset, the same for the same seed whatever the order of the pool."""

    seeded: ClassVar[bool] = True

    def setup(self, setting: Setting) -> None:
        self.seed = setting.seed

    def score(self, batch: Batch) -> dict[str, Any]:
        return {"score": draws(self.seed, (sample.id for sample in batch.samples))}

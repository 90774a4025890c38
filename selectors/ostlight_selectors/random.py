"""The floor of every comparison."""

from __future__ import annotations

import hashlib
from typing import Any, ClassVar

from ostlight.model.batch import Batch
from ostlight.selection.selector import Selector
from ostlight.selection.setting import Setting


class Random(Selector):
    """A uniform random subset, the same for the same seed whatever the order of the pool."""

    seeded: ClassVar[bool] = True

    def setup(self, setting: Setting) -> None:
        self.seed = setting.seed

    def score(self, batch: Batch) -> dict[str, Any]:
        return {"score": [self._uniform(sample.id) for sample in batch.samples]}

    def _uniform(self, sample_id: str) -> float:
        digest = hashlib.sha256(f"{self.seed}:{sample_id}".encode()).digest()
        return int.from_bytes(digest[:7], "big") / 2**56

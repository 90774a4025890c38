"""Columns that a selector computes for the whole pool at once and hands out batch by batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ostlight.data.sample import Sample
from ostlight.errors import BadRecord


class PoolColumns:
    """What ``Selector.score`` returns, looked up by each sample's position in the pool.

    Args:
        positions: ``[N]`` of the samples that the columns describe.
        columns: ``[N]`` or ``[N, K]`` each, ``score`` among them.
        failures: why other samples are not among them, by position.
    """

    def __init__(
        self, positions: np.ndarray, columns: Mapping[str, np.ndarray], failures: Mapping[int, BadRecord]
    ) -> None:
        self.columns, self.failures = columns, failures
        self.rows = {position: row for row, position in enumerate(positions.tolist())}

    def of(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Columns with one value a sample; without one, the score is NaN and ``failure`` says why where that is known.

        A sample that is neither described nor failed has the score NaN too, so it is rejected.
        """
        positions = [sample.position for sample in samples]
        rows = [self.rows.get(position) for position in positions]
        found: dict[str, Any] = {}
        for name, values in self.columns.items():
            missing = float("nan") if name == "score" else None
            found[name] = [missing if row is None else values[row] for row in rows]
        return found | {"failure": [self.failures.get(position) for position in positions]}

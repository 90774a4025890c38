"""Every sample in the page, packed: a hundred thousand rows are a few megabytes."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from ostlight.reporting.evidence import Evidence
from ostlight.reporting.families import Families
from ostlight.reporting.figures import Scale, clipped
from ostlight.reporting.matrix import coded_tags
from ostlight.reporting.noise import CERTAIN
from ostlight.reporting.samples import TAG

MOST = 100_000
"""Rows carried; of a larger pool the best and the worst, as many of each."""
ID = 80
"""Characters of an id that are carried."""
MOST_TAGS = 4


def packed(evidence: Evidence, families: Families | None, scale: Scale) -> dict[str, Any]:
    """Columns as base64 of little-endian arrays, by score, the best first; the page's script takes them apart."""
    order = np.argsort(evidence.place)
    if len(order) > MOST:
        order = np.concatenate([order[: MOST // 2], order[-(MOST // 2) :]])
    numbers = {"utility" if evidence.is_utility else "score": evidence.score * scale.factor}
    if evidence.noise is not None:
        numbers["± 95%"] = CERTAIN * evidence.noise * scale.factor
    if evidence.curvature_cost is not None:
        numbers["curvature cost"] = evidence.curvature_cost * scale.factor
    numbers |= {name: evidence.columns[name] for name in ("cosine", "loss") if name in evidence.columns}
    tags = sorted(coded_tags(evidence).items(), key=lambda item: len(item[1][0]))[:MOST_TAGS]
    return {
        "count": len(order),
        "ids": [clipped(evidence.ids[k], ID) for k in order.tolist()],
        "place": _base64(evidence.place[order] + 1, "<u4"),
        "numbers": [[name, _base64(values[order], "<f4")] for name, values in numbers.items()],
        "toxic": _base64(evidence.toxic[order], "u1"),
        "kept": [[pick.mark, pick.suffix, _base64(pick.kept[order], "u1")] for pick in evidence.picks],
        "family": None if families is None else _base64(families.of[order] + 1, "<u4"),
        "tags": [
            [clipped(tag, TAG), [clipped(name, TAG) for name in names], _base64(codes[order], "<u2")]
            for tag, (names, codes) in tags
        ],
    }


def _base64(values: np.ndarray, kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, np.dtype(kind)).tobytes()).decode()

"""The table of all samples, packed for the page: a hundred thousand rows are a few megabytes."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from ostlight.reporting.matrix import encode_tags
from ostlight.reporting.near_duplicates import DuplicateGroups
from ostlight.reporting.number_format import UnitScale, clipped
from ostlight.reporting.sample_cards import TAG
from ostlight.reporting.score_columns import ScoreColumns
from ostlight.reporting.sketch_noise import Z_95

MOST = 100_000
"""Rows carried; of a larger pool the best and the worst, as many of each."""
ID = 80
"""Characters of an id that are carried."""
MOST_TAGS = 4


def pack_samples(scores: ScoreColumns, duplicates: DuplicateGroups | None, scale: UnitScale) -> dict[str, Any]:
    """Columns as base64 of little-endian arrays, best score first; ``script.js`` unpacks them."""
    order = np.argsort(scores.place)
    if len(order) > MOST:
        order = np.concatenate([order[: MOST // 2], order[-(MOST // 2) :]])
    unit = f", {scale.unit}" if scale.unit else ""
    numbers = {("utility" if scores.is_utility else "score") + unit: scores.score * scale.factor}
    if scores.noise is not None:
        numbers["± (95%)"] = Z_95 * scores.noise * scale.factor
    if scores.curvature_cost is not None:
        numbers["curvature cost"] = scores.curvature_cost * scale.factor
    numbers |= {name: scores.extra[name] for name in ("cosine", "loss") if name in scores.extra}
    tags = sorted(encode_tags(scores).items(), key=lambda item: len(item[1][0]))[:MOST_TAGS]
    return {
        "count": len(order),
        "ids": [clipped(scores.ids[k], ID) for k in order.tolist()],
        "rank": _base64(scores.place[order] + 1, "<u4"),
        "numbers": [[name, _base64(values[order], "<f4")] for name, values in numbers.items()],
        "toxic": _base64(scores.toxic[order], "u1"),
        "kept": [[s.key, s.suffix, _base64(s.kept[order], "u1")] for s in scores.selections],
        "duplicateGroup": None if duplicates is None else _base64(duplicates.group_of[order] + 1, "<u4"),
        "tags": [
            [clipped(tag, TAG), [clipped(name, TAG) for name in names], _base64(codes[order], "<u2")]
            for tag, (names, codes) in tags
        ],
    }


def _base64(values: np.ndarray, dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, np.dtype(dtype)).tobytes()).decode()

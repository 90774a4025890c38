"""A pool in which images and text alternate in blocks, with records that cannot be read."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import tiny_families
import torch
from PIL import Image


def _picture(seed: int) -> bytes:
    noise = torch.randint(0, 256, (16, 16, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    file = io.BytesIO()
    Image.fromarray(noise.numpy()).save(file, "PNG")
    return file.getvalue()


def write_mixed_pool(file: Path) -> Path:
    """Records 0 to 15 have an image, 16 to 31 are text, 32 to 39 cannot be read."""
    rows = []
    for k in range(40):
        shown = k < 16 or k >= 32
        image = _picture(k) if k < 16 else b"no picture"
        rows.append(
            {
                "id": f"record-{k}",
                "messages": [
                    {"role": "user", "content": f"{'<image> ' * shown}what is {'the odd digit ' * (k % 3)}"},
                    {"role": "assistant", "content": ("one", "two or three digits and a row", "even")[k % 3]},
                ],
                "images": [{"bytes": image, "path": None}] if shown else [],
            }
        )
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file


def mixed_run(settings: Callable[..., dict[str, Any]], folder: Path) -> Callable[..., dict[str, Any]]:
    """Writes a mixed pool, three anchors with an image, three of text, and a tiny model.

    Returns:
        What makes the configuration of a run with them from its name and selector.
    """
    pool = write_mixed_pool(folder / "pool.parquet")
    anchors = folder / "anchors.parquet"
    rows = pq.read_table(pool).to_pylist()
    pq.write_table(pa.Table.from_pylist([*rows[:3], *rows[16:19]]), anchors)
    model = tiny_families.save("qwen2_5_vl", folder / "model")
    warmup = {"fraction": 0.6, "training": {"steps": 4, "batch_size": 4, "lr": 1e-3}}

    def config_of(name: str, selector: dict[str, Any]) -> dict[str, Any]:
        return settings(name=name, selector=selector, budget={"count": 8}) | {
            "pool": {"path": str(pool)},
            "anchors": {"path": str(anchors)},
            "proxy": {"path": str(model), "dtype": "float64", "warmup": warmup},
        }

    return config_of

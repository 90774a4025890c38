"""A run that selected from a pool with all that a conversation can hold."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import ostlight

SHADES = (10, 60, 110, 160, 210)
TOOL = {"type": "function", "function": {"name": "add", "description": "adds", "parameters": {"type": "object"}}}
CALL = {"type": "function", "id": "c1", "function": {"name": "add", "arguments": {"a": 1, "b": [2, 3]}}}


def png(shade: int) -> bytes:
    file = BytesIO()
    Image.new("RGB", (16, 16), (shade,) * 3).save(file, "PNG")
    return file.getvalue()


def records(folder: Path) -> list[dict[str, Any]]:
    """One record of each kind; the images of ``SHADES`` lie in ``folder``."""
    for shade in SHADES:
        (folder / f"{shade}.png").write_bytes(png(shade))
    address = f"data:image/png;base64,{base64.b64encode(png(33)).decode()}"
    return [
        {
            "id": "plain",
            "source": "web",
            "license": "mit",
            "conversations": [
                {"from": "system", "value": "Be short."},
                {"from": "human", "value": "<image>\nWhich shade?"},
                {"from": "gpt", "value": "dark"},
                {"from": "human", "value": "And <image> against <image>?"},
                {"from": "gpt", "value": "brighter"},
            ],
            "images": ["10.png", "60.png", "110.png"],
        },
        {
            "id": "parts",
            "source": "web",
            "license": "cc-by-4.0",
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "before "},
                        {"type": "image_url", "image_url": {"url": address}},
                        {"type": "text", "text": " after"},
                    ],
                },
                {"role": "assistant", "content": "grey ü"},
            ],
        },
        {
            "id": "tools",
            "source": "agents",
            "tools": [TOOL],
            "messages": [
                {"role": "user", "content": "1 + 2?"},
                {"role": "assistant", "content": "", "tool_calls": [CALL]},
                {"role": "tool", "content": "3", "name": "add", "tool_call_id": "c1"},
                {"role": "tool", "content": "three", "name": "add", "tool_call_id": "c1"},
                {"role": "assistant", "content": "It is 3."},
            ],
        },
        {
            "id": "muted",
            "messages": [
                {"role": "developer", "content": "Be kind."},
                {"role": "user", "content": "hello"},
                {"role": "assistant", "content": "what?", "weight": 0},
                {"role": "user", "content": "hello again"},
                {"role": "assistant", "content": "hello"},
            ],
        },
        {"id": "text", "score": 7, "instruction": "say", "input": "a\nb", "output": "c"},
    ]


@pytest.fixture
def select(settings: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., Path]:
    """Selects all records given, or the first ``count`` by chance, and returns the run folder."""

    def make(given: list[dict[str, Any]] | None = None, count: int | None = None, **sections: Any) -> Path:
        pool = tmp_path / "pool"
        pool.mkdir(exist_ok=True)
        rows = records(pool) if given is None else given
        (pool / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        config = settings(**{"budget": {"count": count or len(rows)}} | sections)
        config["pool"] = {"path": str(pool / "pool.jsonl")} | sections.get("pool", {})
        return Path(ostlight.select(config).folder.path)

    return make

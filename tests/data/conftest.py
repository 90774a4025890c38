from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ostlight.data.sample import ImageRef


def _png(shade: int = 0) -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, 0, 0)).save(encoded, "PNG")
    return encoded.getvalue()


@pytest.fixture
def png() -> Callable[[int], bytes]:
    """Bytes of a small image of the given shade."""
    return _png


@pytest.fixture
def shade() -> Callable[[ImageRef], int]:
    """The shade a image was made with."""

    def of(image: ImageRef) -> int:
        red, green, blue = np.asarray(image.open())[0, 0]
        assert (green, blue) == (0, 0)
        return int(red)

    return of


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """``tmp_path`` with ``pics/0.png`` to ``pics/3.png``, each of another shade."""
    (tmp_path / "pics").mkdir()
    for shade in range(4):
        (tmp_path / "pics" / f"{shade}.png").write_bytes(_png(shade))
    return tmp_path


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Writes records (or lines as they stand) to a JSON lines file."""

    def write(*records: Any, name: str = "pool.jsonl") -> Path:
        lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
        path = tmp_path / name
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return path

    return write


@pytest.fixture
def chat() -> Callable[..., dict]:
    """A LLaVA record of one question and its answer."""

    def make(question: str = "<image>\nWhat?", answer: str = "That.", **fields: Any) -> dict:
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        return {**fields, "conversations": turns}

    return make

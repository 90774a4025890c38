from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ostlight.digitmath import DigitMath, Files, build
from ostlight.digitmath.digits import CELL_PIXELS, GRID, INK_STEP, load


@dataclass(frozen=True)
class Seen:
    """A record as a reader of the file meets it, with the digit images found again from the pixels alone."""

    id: str
    task: str
    question: str
    answer: str
    png: bytes
    images: tuple[int, ...]

    @property
    def digits(self) -> tuple[int, ...]:
        labels = load()[1]
        return tuple(int(labels[index]) for index in self.images)


def read_back(path: Path) -> list[Seen]:
    known = {ink.tobytes(): index for index, ink in enumerate(load()[0])}
    rows = []
    for row in pq.read_table(path).to_pylist():
        grey = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))).astype(float)
        ink = np.rint(grey / INK_STEP).astype(np.uint8)
        cells = ink.reshape(GRID, CELL_PIXELS, GRID, CELL_PIXELS).transpose(0, 2, 1, 3).reshape(-1, 8, 8)
        human, answer = row["conversations"]
        assert (human["from"], answer["from"]) == ("human", "gpt")
        question = human["value"].removeprefix("<image>\n")
        assert question != human["value"]
        images = tuple(known[np.ascontiguousarray(cell).tobytes()] for cell in cells)
        rows.append(Seen(row["id"], row["task"], question, answer["value"], row["image"]["bytes"], images))
    return rows


@pytest.fixture(scope="session")
def config() -> DigitMath:
    return DigitMath(pool=700, anchors=100, dev=70, test=140)


@pytest.fixture(scope="session")
def files(config: DigitMath, tmp_path_factory: pytest.TempPathFactory) -> Files:
    return build(config, tmp_path_factory.mktemp("digitmath"))


@pytest.fixture(scope="session")
def parts(files: Files) -> dict[str, list[Seen]]:
    return {name: read_back(getattr(files, name)) for name in ("pool", "anchors", "dev", "test")}


@pytest.fixture(scope="session")
def defect_of(files: Files) -> dict[str, str]:
    return {row["id"]: row["defect"] for row in pq.read_table(files.defect_labels).to_pylist()}

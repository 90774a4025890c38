"""The images of a page: each stored once, at most 7 MB in all."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _report_run import write_run
from PIL import Image as PILImage

from ostlight.data.sample import ImageRef
from ostlight.reporting import images
from ostlight.reporting.images import SIDE, ImageStore
from ostlight.reporting.page import write_report

MOST_BYTES = 300_000


@pytest.fixture
def small_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MOST_BYTES", MOST_BYTES)


def noise(seed: int, width: int = 400, height: int = 300) -> bytes:
    """A JPEG of noise: the largest file for its size in pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    out = io.BytesIO()
    PILImage.fromarray(pixels).save(out, "jpeg")
    return out.getvalue()


def sizes(urls: list[str]) -> list[tuple[int, int]]:
    return [PILImage.open(io.BytesIO(base64.b64decode(a.partition(",")[2]))).size for a in urls]


def store_of(*files: bytes) -> ImageStore:
    store = ImageStore()
    for data in files:
        assert store[ImageRef(data=data)].problem is None
    return store


@pytest.mark.usefixtures("small_page")
def test_too_many_large_images_are_all_scaled_down():
    files = [*map(noise, range(12)), noise(12, 24, 32)]
    urls = store_of(*files).data_urls()
    assert MOST_BYTES / 2 < sum(map(len, urls)) <= MOST_BYTES
    *large, small = sizes(urls)
    ((width, height),) = set(large)
    assert 32 < width < SIDE
    assert height == pytest.approx(0.75 * width, abs=1)
    assert small == (24, 32)
    assert store_of(*files).data_urls() == urls


@pytest.mark.usefixtures("small_page")
def test_images_that_fit_keep_their_size():
    assert sizes(store_of(noise(0)).data_urls()) == [(SIDE, SIDE * 3 // 4)]


def test_identical_images_are_stored_once(tmp_path: Path):
    (tmp_path / "copy.jpg").write_bytes(noise(0))
    images = store_of(noise(0), noise(1), noise(0))
    assert images[ImageRef(path=tmp_path / "copy.jpg")].number == 0
    assert len(images.data_urls()) == 2


def of_four(folder: Path, image: Callable[[int], str]) -> Callable[[int, dict[str, Any]], dict[str, Any]]:
    """Gives each record four images, by their numbers among all."""

    def change(place: int, record: dict[str, Any]) -> dict[str, Any]:
        names = [image(4 * place + k) for k in range(4)]
        for k, name in enumerate(names):
            file = folder / "pool" / name
            if not file.exists():
                file.write_bytes(noise(4 * place + k, 240, 180))
        record["conversations"][0]["value"] = "<image>" * 4 + f"\nQuestion {place}: what do these have in common?"
        return record | {"image": names}

    return change


@pytest.mark.usefixtures("small_page")
def test_page_holds_four_photographs_of_each_sample(tmp_path: Path):
    run = write_run(tmp_path, records=8, probes=4, change=of_four(tmp_path, "noise-{}.jpg".format), images=1)
    page = write_report(run).read_text()
    stored = re.findall(r"data:image/webp;base64,[\w+/=]+", page)
    assert len(stored) == len(set(stored)) == 32
    assert len(page) < MOST_BYTES + 200_000
    assert len(set(re.findall(r'data-image="(\d+)"', page))) == 32


def test_image_shared_by_all_samples_is_stored_once(tmp_path: Path):
    run = write_run(tmp_path, records=8, probes=4, change=of_four(tmp_path, lambda _: "same.jpg"), images=1)
    page = write_report(run).read_text()
    assert page.count('data-image="0"') >= 32
    assert page.count("data:image/webp") == 1

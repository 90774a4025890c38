"""The images of a page: scaled down, encoded again, and as data of the page."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _report_run import write_run
from PIL import Image as PILImage

from ostlight.data.sample import ImageRef
from ostlight.reporting.images import SIDE, ReportImage, load_image
from ostlight.reporting.page import write_report


def noise(seed: int, width: int = 400, height: int = 300) -> bytes:
    """A JPEG of noise: the largest file for its size in pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    out = io.BytesIO()
    PILImage.fromarray(pixels).save(out, "jpeg")
    return out.getvalue()


def decoded(image: ReportImage) -> PILImage.Image:
    assert image.problem is None
    return PILImage.open(io.BytesIO(base64.b64decode(image.url.partition(",")[2])))


def test_a_large_image_is_scaled_down_and_a_small_one_kept():
    large, small = (load_image(ImageRef(data=data)) for data in (noise(0), noise(1, 24, 32)))
    assert (large.width, large.height, large.coarse) == (400, 300, False)
    assert decoded(large).size == (SIDE, SIDE * 3 // 4)
    assert decoded(small).size == (24, 32)
    assert small.coarse


@pytest.mark.parametrize("data", [b"", b"no image", noise(0)[:100]])
def test_an_image_that_cannot_be_read_is_shown_as_its_problem(data: bytes):
    image = load_image(ImageRef(data=data))
    assert image.problem
    assert image.url == ""


def test_only_pixels_enter_the_page():
    out = io.BytesIO()
    PILImage.open(io.BytesIO(noise(0, 60, 40))).save(out, "jpeg", comment=b"alert(1)", exif=b"Exif\0\0secret")
    assert not {"exif", "comment"} & decoded(load_image(ImageRef(data=out.getvalue()))).info.keys()


def test_page_holds_four_photographs_of_each_sample(tmp_path: Path):
    def change(place: int, record: dict[str, Any]) -> dict[str, Any]:
        names = [f"noise-{4 * place + k}.jpg" for k in range(5)]
        for k, name in enumerate(names):
            (tmp_path / "pool" / name).write_bytes(noise(4 * place + k, 240, 180))
        record["conversations"][0]["value"] = "<image>" * 5 + f"\nQuestion {place}: what do these have in common?"
        return record | {"image": names}

    page = write_report(write_run(tmp_path, records=8, probes=4, change=change, images=1)).read_text()
    assert len(set(re.findall(r'src="data:image/webp;base64,[\w+/=]+"', page))) == 32
    assert page.count("<small>1 more</small>") == 8


def test_images_beyond_what_a_page_holds_are_left_out_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ostlight.reporting.sample_cards.PAGE_BYTES", 100_000)

    def change(place: int, record: dict[str, Any]) -> dict[str, Any]:
        (tmp_path / "pool" / f"noise-{place}.jpg").write_bytes(noise(place, 240, 180))
        return record | {"image": f"noise-{place}.jpg"}

    page = write_report(write_run(tmp_path, records=8, probes=4, change=change, images=1)).read_text()
    urls = re.findall(r'src="(data:image/webp;base64,[\w+/=]+)"', page)
    assert 0 < sum(map(len, urls)) <= 100_000
    assert page.count("left out: the page holds") == 8 - len(urls) > 0

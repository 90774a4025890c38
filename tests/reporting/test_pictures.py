"""The pictures of a page: each once, and no more of them than the page has room for."""

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
from ostlight.reporting import pictures
from ostlight.reporting.page import write_report
from ostlight.reporting.pictures import SIDE, Album

ROOM = 300_000


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MOST_BYTES", ROOM)


def noise(seed: int, width: int = 400, height: int = 300) -> bytes:
    """The heaviest picture there is of its size, as a record may hold it."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    out = io.BytesIO()
    PILImage.fromarray(pixels).save(out, "jpeg")
    return out.getvalue()


def sizes(addresses: list[str]) -> list[tuple[int, int]]:
    return [PILImage.open(io.BytesIO(base64.b64decode(a.partition(",")[2]))).size for a in addresses]


def filled(*held: bytes) -> Album:
    album = Album()
    for data in held:
        assert album[ImageRef(data=data)].problem is None
    return album


@pytest.mark.usefixtures("room")
def test_heavy_pictures_are_made_smaller_all_alike_until_there_is_room():
    held = [*map(noise, range(12)), noise(12, 24, 32)]
    found = filled(*held).addresses()
    assert ROOM / 2 < sum(map(len, found)) <= ROOM
    *large, small = sizes(found)
    ((width, height),) = set(large)
    assert 32 < width < SIDE
    assert height == pytest.approx(0.75 * width, abs=1)
    assert small == (24, 32)
    assert filled(*held).addresses() == found


@pytest.mark.usefixtures("room")
def test_pictures_there_is_room_for_stay_as_they_are():
    assert sizes(filled(noise(0)).addresses()) == [(SIDE, SIDE * 3 // 4)]


def test_pictures_that_look_the_same_are_carried_once(tmp_path: Path):
    (tmp_path / "copy.jpg").write_bytes(noise(0))
    album = filled(noise(0), noise(1), noise(0))
    assert album[ImageRef(path=tmp_path / "copy.jpg")].number == 0
    assert len(album.addresses()) == 2


def of_four(folder: Path, picture: Callable[[int], str]) -> Callable[[int, dict[str, Any]], dict[str, Any]]:
    """Gives each record four pictures, by their numbers among all."""

    def change(place: int, record: dict[str, Any]) -> dict[str, Any]:
        names = [picture(4 * place + k) for k in range(4)]
        for k, name in enumerate(names):
            file = folder / "pool" / name
            if not file.exists():
                file.write_bytes(noise(4 * place + k, 240, 180))
        record["conversations"][0]["value"] = "<image>" * 4 + f"\nQuestion {place}: what do these have in common?"
        return record | {"image": names}

    return change


@pytest.mark.usefixtures("room")
def test_a_page_of_samples_with_four_photographs_each_has_room_for_them(tmp_path: Path):
    run = write_run(tmp_path, records=8, probes=4, change=of_four(tmp_path, "noise-{}.jpg".format), pictures=1)
    page = write_report(run).read_text()
    carried = re.findall(r"data:image/webp;base64,[\w+/=]+", page)
    assert len(carried) == len(set(carried)) == 32
    assert len(page) < ROOM + 200_000
    assert len(set(re.findall(r'data-picture="(\d+)"', page))) == 32


def test_a_picture_that_all_samples_share_is_carried_once(tmp_path: Path):
    run = write_run(tmp_path, records=8, probes=4, change=of_four(tmp_path, lambda _: "same.jpg"), pictures=1)
    page = write_report(run).read_text()
    assert page.count('data-picture="0"') >= 32
    assert page.count("data:image/webp") == 1

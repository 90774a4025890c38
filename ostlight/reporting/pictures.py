"""Pictures small enough to be carried in a page, whatever came in the record."""

from __future__ import annotations

import base64
import io
import warnings
from dataclasses import dataclass

from PIL import Image as PILImage

from ostlight.data.sample import ImageRef
from ostlight.errors import BadRecord

SIDE = 360
"""Longest side in pixels; larger pictures are scaled down, smaller ones kept."""
MOST_BYTES = 7_000_000
"""Bytes of a page that are pictures; where they would be more, all are made smaller."""
QUALITY = 80
COARSE = 128
"""Below this a picture is drawn with visible pixels instead of a blur."""


@dataclass(frozen=True)
class Picture:
    """A picture of a page, or why there is none.

    Attributes:
        source: where it lies.
        number: its place among the album's addresses; pictures that look the same have the same.
        width, height: of the original.
        problem: why it cannot be shown, ``None`` where it can.
    """

    source: str
    number: int = -1
    width: int = 0
    height: int = 0
    problem: str | None = None

    @property
    def coarse(self) -> bool:
        return max(self.width, self.height) < COARSE


def described(image: ImageRef) -> str:
    """Where a picture lies, for people."""
    return str(image.path) if image.path is not None else f"{len(image.data or b''):,} bytes in the record"


class Album:
    """The pictures of a page, each once, however many samples share it."""

    def __init__(self) -> None:
        self._known: dict[ImageRef, Picture] = {}
        self._numbers: dict[bytes, int] = {}

    def __getitem__(self, image: ImageRef) -> Picture:
        if image not in self._known:
            self._known[image] = self._taken_in(image)
        return self._known[image]

    def addresses(self) -> list[str]:
        """``data:image/webp;base64,...`` by number, at most ``MOST_BYTES`` in all; always encoded anew, so that nothing
        but pixels comes along."""
        side, found = SIDE, [_address(encoded) for encoded in self._numbers]
        while (size := sum(map(len, found))) > MOST_BYTES and side > 1:
            # A little more than the area says: the smaller a picture, the more each of its pixels takes.
            side = max(1, int(0.9 * side * (MOST_BYTES / size) ** 0.5))
            found = [_address(_smaller(encoded, side)) for encoded in self._numbers]
        return found

    def _taken_in(self, image: ImageRef) -> Picture:
        """The picture scaled down; one that cannot be read or decoded says so."""
        source = described(image)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a large picture, or odd metadata, is no reason to leave it out
                opened = PILImage.open(io.BytesIO(image.read_bytes()))
                width, height = opened.size
                opened.draft("RGB", (SIDE, SIDE))  # a large JPEG is decoded small
                small = opened.convert("RGB")
            encoded = _encoded(small, SIDE, lossless=max(width, height) < COARSE)
        except (BadRecord, OSError, SyntaxError, ValueError, PILImage.DecompressionBombError) as error:
            return Picture(source, problem=str(error))
        return Picture(source, self._numbers.setdefault(encoded, len(self._numbers)), width, height)


def _encoded(picture: PILImage.Image, side: int, lossless: bool = False) -> bytes:
    picture.thumbnail((side, side))
    out = io.BytesIO()
    picture.save(out, "webp", lossless=lossless, quality=QUALITY)
    return out.getvalue()


def _smaller(encoded: bytes, side: int) -> bytes:
    return _encoded(PILImage.open(io.BytesIO(encoded)).convert("RGB"), side)


def _address(encoded: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(encoded).decode()}"

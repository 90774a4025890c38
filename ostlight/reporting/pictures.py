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
COARSE = 128
"""Below this a picture is drawn with visible pixels instead of a blur."""


@dataclass(frozen=True)
class Picture:
    """A picture as an address, or why there is none.

    Attributes:
        address: ``data:image/webp;base64,...``, always encoded anew, so that nothing but pixels comes along.
        width, height: of the original.
        source: where it lies.
        problem: why it cannot be shown, ``None`` where it can.
    """

    source: str
    address: str = ""
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
    """The pictures of a page; one that several samples share is decoded once."""

    def __init__(self) -> None:
        self._made: dict[ImageRef, Picture] = {}

    def __getitem__(self, image: ImageRef) -> Picture:
        if image not in self._made:
            self._made[image] = thumbnail(image)
        return self._made[image]


def thumbnail(image: ImageRef) -> Picture:
    """The picture scaled down; one that cannot be read or decoded says so."""
    source = described(image)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a large picture, or odd metadata, is no reason to leave it out
            opened = PILImage.open(io.BytesIO(image.read_bytes()))
            width, height = opened.size
            opened.draft("RGB", (SIDE, SIDE))  # a large JPEG is decoded small
            small = opened.convert("RGB")
        small.thumbnail((SIDE, SIDE))
        out = io.BytesIO()
        small.save(out, "webp", lossless=max(width, height) < COARSE, quality=80)
    except (BadRecord, OSError, SyntaxError, ValueError, PILImage.DecompressionBombError) as error:
        return Picture(source, problem=str(error))
    address = f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"
    return Picture(source, address, width, height)

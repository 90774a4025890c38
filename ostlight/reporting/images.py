"""The images of a page: scaled down, each carried once, and never more of them than the page can hold."""

from __future__ import annotations

import base64
import io
import warnings
from dataclasses import dataclass

from PIL import Image

from ostlight.data.sample import ImageRef
from ostlight.errors import BadRecord

SIDE = 360
"""Longest side in pixels; larger images are scaled down, smaller ones kept."""
MOST_BYTES = 7_000_000
"""Bytes of a page that are images; where they would be more, all are made smaller."""
QUALITY = 80
PIXEL_ART = 128
"""Sides below this are enlarged with visible pixels instead of a blur."""


@dataclass(frozen=True)
class ReportImage:
    """An image of a page, or the reason it cannot be shown.

    Attributes:
        source: its file, or its size within the record.
        number: its index in the ``ImageStore``; images that look the same share it.
        width, height: pixels of the original.
        problem: why it cannot be shown, ``None`` where it can.
    """

    source: str
    number: int = -1
    width: int = 0
    height: int = 0
    problem: str | None = None

    @property
    def coarse(self) -> bool:
        return max(self.width, self.height) < PIXEL_ART


def image_source(image: ImageRef) -> str:
    """The file of an image, or its size within the record."""
    return str(image.path) if image.path is not None else f"{len(image.data or b''):,} bytes in the record"


class ImageStore:
    """Loads the images of a page, each once, however many samples share it."""

    def __init__(self) -> None:
        self._loaded: dict[ImageRef, ReportImage] = {}
        self._numbers: dict[bytes, int] = {}

    def __getitem__(self, image: ImageRef) -> ReportImage:
        if image not in self._loaded:
            self._loaded[image] = self._load(image)
        return self._loaded[image]

    def data_urls(self) -> list[str]:
        """``data:image/webp;base64,...`` by number, at most ``MOST_BYTES`` in all.

        Every image is encoded again, so that nothing but pixels enters the page.
        """
        side, urls = SIDE, [_data_url(encoded) for encoded in self._numbers]
        while (size := sum(map(len, urls))) > MOST_BYTES and side > 1:
            # 0.9: the smaller an image, the more bytes each of its pixels takes.
            side = max(1, int(0.9 * side * (MOST_BYTES / size) ** 0.5))
            urls = [_data_url(_encode(Image.open(io.BytesIO(e)).convert("RGB"), side)) for e in self._numbers]
        return urls

    def _load(self, image: ImageRef) -> ReportImage:
        source = image_source(image)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a large image, or odd metadata, is no reason to leave it out
                opened = Image.open(io.BytesIO(image.read_bytes()))
                width, height = opened.size
                opened.draft("RGB", (SIDE, SIDE))  # a large JPEG is decoded small
                small = opened.convert("RGB")
            encoded = _encode(small, SIDE, lossless=max(width, height) < PIXEL_ART)
        except (BadRecord, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            return ReportImage(source, problem=str(error))
        return ReportImage(source, self._numbers.setdefault(encoded, len(self._numbers)), width, height)


def _encode(image: Image.Image, side: int, lossless: bool = False) -> bytes:
    image.thumbnail((side, side))
    out = io.BytesIO()
    image.save(out, "webp", lossless=lossless, quality=QUALITY)
    return out.getvalue()


def _data_url(encoded: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(encoded).decode()}"

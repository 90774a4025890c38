"""The images of a page: scaled down, and encoded again, so that nothing but pixels enters it."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

from ostlight.data.sample import ImageRef
from ostlight.errors import BadRecord

SIDE = 360
"""Longest side in pixels; larger images are scaled down, smaller ones kept."""
QUALITY = 80
PIXEL_ART = 128
"""Sides below this are enlarged with visible pixels instead of a blur."""


@dataclass(frozen=True)
class ReportImage:
    """An image of a page, or the reason it cannot be shown.

    Attributes:
        source: its file, or its size within the record.
        url: ``data:image/webp;base64,...``; empty where it cannot be shown.
        width, height: pixels of the original.
        problem: why it cannot be shown, ``None`` where it can.
    """

    source: str
    url: str = ""
    width: int = 0
    height: int = 0
    problem: str | None = None

    @property
    def coarse(self) -> bool:
        return max(self.width, self.height) < PIXEL_ART


def image_source(image: ImageRef) -> str:
    """The file of an image, or its size within the record."""
    return str(image.path) if image.path is not None else f"{len(image.data or b''):,} bytes in the record"


def load_image(image: ImageRef) -> ReportImage:
    """Reads an image and scales it down; one that cannot be read is returned with the reason."""
    source = image_source(image)
    try:
        small = image.open()
    except BadRecord as error:
        return ReportImage(source, problem=str(error))
    width, height = small.size
    small.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    small.save(out, "webp", lossless=max(width, height) < PIXEL_ART, quality=QUALITY)
    url = f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"
    return ReportImage(source, url, width, height)

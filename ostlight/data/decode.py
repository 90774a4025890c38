"""An encoded image as a viewer shows it, in RGB: by an allow-list of decoders, within limits checked first."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image as PILImage
from PIL import ImageCms, ImageOps, PngImagePlugin

from ostlight.errors import BadRecord, rejecting

DECODERS = ("PNG", "JPEG", "MPO", "GIF", "WEBP", "AVIF", "BMP", "TIFF", "JPEG2000", "PPM", "QOI")
"""Formats that are decoded, by Pillow's names. None of them starts a program or reads another file."""

_BEGINNINGS = (
    *(b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"BM", b"qoif"),
    *(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n"),
    *(b"P" + digit + space for digit in (b"1", b"2", b"3", b"4", b"5", b"6", b"F", b"f") for space in (b"\n", b" ")),
)
HEAD_BYTES = 16
"""Bytes that tell an image from anything else."""

_OTHER_FORMATS = {
    b"\0\0\1\0": "ICO", b"\0\0\2\0\1\0": "CUR", b"DDS ": "DDS", b"8BPS": "PSD", b"icns": "ICNS", b"%!PS": "EPS",
    b"\xc5\xd0\xd3\xc6": "EPS", b"%PDF": "PDF", b"<svg": "SVG", b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL", b"\x76\x2f\x31\x01": "EXR", b"#?RADIANCE": "HDR", b"\x0a\x05\x01": "PCX",
    b"\xd7\xcd\xc6\x9a": "WMF", b"\x93NUMPY": "NumPy", b"version https://": "a pointer of Git LFS (git lfs pull)",
    b"<!DOCTYPE html": "HTML", b"<!doctype html": "HTML", b"<html": "HTML",
}  # fmt: skip
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_TGA_TYPES = (b"\1\1", b"\0\2", b"\0\3", b"\1\x09", b"\0\x0a", b"\0\x0b")
"""Second and third byte: with a palette or not, and how pixels are stored; a format without a signature."""

PILImage.init()  # or only the commonest formats are known
_LOADED = [name for name in DECODERS if name in PILImage.OPEN]  # MPO goes by JPEG's; AVIF may be missing in a build
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # a colour profile of 2 MB is no attack


@dataclass(frozen=True, slots=True)
class ImageRules:
    """How images are decoded, and what they may hold.

    Attributes:
        pixels: of one image, width x height.
        record_pixels: of all images of a record.
        encoded_bytes: of one image, as its file or record holds it.
        background: colour behind transparent pixels, by name or ``#rrggbb``.
    """

    pixels: int = 64_000_000
    record_pixels: int = 256_000_000
    encoded_bytes: int = 50_000_000
    background: str = "white"


DEFAULT_RULES = ImageRules()


def is_image(head: bytes) -> bool:
    """Whether a file that begins with ``head`` (``HEAD_BYTES``) is of a format that is decoded."""
    if head.startswith(_BEGINNINGS):
        return True
    return (head[:4] == b"RIFF" and head[8:12] == b"WEBP") or (
        head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis")
    )


def other_format(head: bytes) -> str | None:
    """The name of a format that is not decoded, by the first bytes (``HEAD_BYTES``); ``None`` where it is not known."""
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS:
        return "HEIC"
    named = next((name for begin, name in _OTHER_FORMATS.items() if head.startswith(begin)), None)
    return named or ("TGA" if head[1:3] in _TGA_TYPES and head[8:12] == bytes(4) else None)


def size_of(encoded: bytes, where: str, rules: ImageRules) -> tuple[int, int]:
    """Width and height of an image, from its header alone; as stored, before any rotation.

    Raises:
        BadRecord: ``corrupt_image``; ``image_too_large``.
    """
    with _opened(encoded, where, rules) as image:
        return image.size


def decode(encoded: bytes, where: str, rules: ImageRules) -> PILImage.Image:
    """The image in RGB, as a viewer shows it.

    Rotated as its EXIF says; transparent pixels on the background; 16-bit and floating-point pixels scaled to 8 bit;
    CMYK, LAB and palettes in their colours; of an animation the first frame.

    Args:
        where: what the image is called in messages.

    Raises:
        BadRecord: ``corrupt_image``: not a whole image of the formats in ``DECODERS``; ``image_too_large``.
    """
    with _opened(encoded, where, rules) as image:
        image.load()
        with _no_fault():
            ImageOps.exif_transpose(image, in_place=True)
        return _in_rgb(image, rules.background)


@contextmanager
def _opened(encoded: bytes, where: str, rules: ImageRules) -> Iterator[PILImage.Image]:
    """The image with its header read; errors of decoders inside the block become ``corrupt_image``."""
    if len(encoded) > rules.encoded_bytes:
        raise too_large(where, f"{len(encoded):,} bytes", f"{rules.encoded_bytes:,} (limits.image_bytes)")
    try:
        with rejecting("corrupt_image", f"cannot decode {where}", "images"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an image with metadata Pillow dislikes is still an image
            if encoded and not is_image(encoded[:HEAD_BYTES]):
                head = encoded[:HEAD_BYTES]
                raise not_an_image(where, head, reason="not_an_image" if other_format(head) else "corrupt_image")
            with PILImage.open(io.BytesIO(encoded), formats=_LOADED) as image:
                width, height = image.size
                if width * height > rules.pixels:
                    raise too_large(where, f"{width:,} x {height:,} pixels", f"{rules.pixels:,} (limits.image_pixels)")
                yield image
    except (MemoryError, OSError) as error:  # all is in memory and within limits, so it is what a decoder says of bytes
        raise BadRecord("corrupt_image", f"cannot decode {where}: {error or 'out of memory'}", "images") from error


def too_large(where: str, found: str, limit: str) -> BadRecord:
    """The error for an image that passes a limit."""
    return BadRecord(
        "image_too_large", f"{where} has {found}, the limit is {limit}; raise it, or scale it down", "images"
    )


def not_an_image(where: str, head: bytes, *, reason: str = "not_an_image", field: str = "images") -> BadRecord:
    """The error for something that is no image by its content."""
    named = other_format(head)
    found = f"it is {named}" if named else f"it begins {head!r}"
    detail = f"{where} is no image of a format that is read ({', '.join(DECODERS)}); {found}"
    return BadRecord(reason, detail, field)


@contextmanager
def _no_fault() -> Iterator[None]:
    """Broken metadata is no fault of the pixels."""
    try:
        yield
    except Exception:  # EXIF is parsed by hand, and raises whatever its bytes lead to
        return


def _in_rgb(image: PILImage.Image, background: str) -> PILImage.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        return _scaled(image).convert("RGB")
    if image.has_transparency_data:
        behind = PILImage.new("RGBA", image.size, background)
        return PILImage.alpha_composite(behind, image.convert("RGBA")).convert("RGB")
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        transformed = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert transformed is not None, "only an operation in place returns nothing"
        return transformed
    return image.convert("RGB")


def _scaled(image: PILImage.Image) -> PILImage.Image:
    """An image of 16-bit, 32-bit or floating-point pixels in 8 bit.

    Unsigned 16-bit values are scaled from their whole range, floats between 0 and 1 from that range. Floats between 0
    and 255 stay. Anything else has no agreed range, so its lowest value becomes black and its highest white.
    """
    values = np.asarray(image).astype(np.float32)
    finite = np.isfinite(values)
    low, high = (float(values[finite].min()), float(values[finite].max())) if finite.any() else (0.0, 0.0)
    is_16_bit = image.mode.startswith("I;16") or image.format in ("PNG", "PPM", "JPEG2000")
    if image.mode != "F" and is_16_bit and low >= 0 and high <= 65_535:
        low, high = 0.0, 65_535.0
    elif image.mode == "F" and low >= 0 and high <= 255:
        low, high = 0.0, 1.0 if high <= 1 else 255.0
    values[~finite] = low
    scaled = np.clip((values - low) * (255 / ((high - low) or 1.0)), 0, 255)
    return PILImage.fromarray(np.rint(scaled).astype(np.uint8))

"""Images of every mode come out as a viewer shows them; what is no image, or too large, is refused before decoding."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from ostlight.config.schema import Limits
from ostlight.data.decode import DEFAULT_RULES, ImageRules, decode, is_image
from ostlight.data.pool import Pool
from ostlight.data.sample import open_images
from ostlight.errors import BadRecord, DataError

RED, WHITE, BLACK, GRAY = (255, 0, 0), (255, 255, 255), (0, 0, 0), (128, 128, 128)


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def pixels(data: bytes, rules: ImageRules = DEFAULT_RULES) -> list[tuple[int, ...]]:
    image = decode(data, "it", rules)
    assert image.mode == "RGB"
    return [tuple(pixel) for row in np.asarray(image).tolist() for pixel in row]


def rotated(format: str) -> bytes:
    """Red above black, to be turned clockwise: red on the right."""
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = np.zeros((16, 16, 3), np.uint8)
    upright[:8] = RED
    options = {"lossless": True} if format == "WEBP" else {}
    return encoded(Image.fromarray(upright), format, exif=exif, **options)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_exif_rotation(format: str) -> None:
    image = np.asarray(decode(rotated(format), "it", DEFAULT_RULES)).astype(int)
    assert image[:, 12:, 0].min() > 200
    assert image[:, :4].max() < 60


def test_broken_exif_is_no_fault_of_the_pixels() -> None:
    plain = encoded(Image.new("RGB", (2, 2), RED))
    chunk = b"eXIf" + b"MM\0*\0\0\0\x08\xff\xff\x01\x12\xff\xff"
    broken = plain[:33] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + plain[33:]
    assert pixels(broken) == [RED] * 4


def palette(transparent: bool) -> bytes:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLACK])
    image.putdata([0, 1])
    return encoded(image, transparency=1) if transparent else encoded(image)


def gray16(values: list[int], dtype: Any = np.uint16, format: str = "PNG") -> bytes:
    return encoded(Image.fromarray(np.array([values], dtype)), format)


def lab(colour: tuple[int, int, int]) -> bytes:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    image = ImageCms.profileToProfile(Image.new("RGB", (1, 1), colour), *profiles, outputMode="LAB")
    assert image is not None
    return encoded(image, "TIFF")


TABLE = {
    "RGB": (encoded(Image.new("RGB", (1, 1), RED)), [RED]),
    "RGBA": (encoded(Image.fromarray(np.array([[[255, 0, 0, 255], [0, 0, 0, 0]]], np.uint8))), [RED, WHITE]),
    "LA": (encoded(Image.fromarray(np.array([[[128, 255], [0, 0]]], np.uint8), "LA")), [GRAY, WHITE]),
    "P": (palette(False), [RED, BLACK]),
    "P with a transparent colour": (palette(True), [RED, WHITE]),
    "L with a transparent value": (
        encoded(Image.fromarray(np.array([[128, 0]], np.uint8)), transparency=0),
        [GRAY, WHITE],
    ),
    "RGB with a transparent colour": (
        encoded(Image.fromarray(np.array([[RED, BLACK]], np.uint8)), transparency=BLACK),
        [RED, WHITE],
    ),
    "1": (encoded(Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")), [BLACK, WHITE]),
    "16-bit PNG": (gray16([0, 257 * 128, 65535]), [BLACK, GRAY, WHITE]),
    "16-bit TIFF": (gray16([0, 257 * 128, 65535], format="TIFF"), [BLACK, GRAY, WHITE]),
    "16-bit PPM": (gray16([0, 257 * 128, 65535], format="PPM"), [BLACK, GRAY, WHITE]),
    "dark 16-bit": (gray16([0, 257], format="PNG"), [BLACK, (1, 1, 1)]),
    "32-bit TIFF": (gray16([-1000, 0, 1000], np.int32, "TIFF"), [BLACK, GRAY, WHITE]),
    "float to 1": (gray16([0, 0.5, 1], np.float32, "TIFF"), [BLACK, GRAY, WHITE]),
    "float to 255": (gray16([0, 128, 255], np.float32, "TIFF"), [BLACK, GRAY, WHITE]),
    "float of any range": (gray16([-2, 0, 2, np.nan], np.float32, "TIFF"), [BLACK, GRAY, WHITE, BLACK]),
    "CMYK": (
        encoded(Image.fromarray(np.array([[[0, 255, 255, 0], [0, 0, 0, 0]]], np.uint8), "CMYK"), "TIFF"),
        [RED, WHITE],
    ),
    "LAB": (lab(GRAY), [GRAY]),
    "first frame": (
        encoded(Image.new("RGB", (1, 1), RED), "GIF", save_all=True, append_images=[Image.new("RGB", (1, 1), BLACK)]),
        [RED],
    ),
    "first frame of WebP": (
        encoded(
            *(Image.new("RGB", (1, 1), RED), "WEBP"),
            save_all=True, lossless=True, append_images=[Image.new("RGB", (1, 1), BLACK)],
        ),
        [RED],
    ),
}  # fmt: skip


@pytest.mark.parametrize("mode", TABLE)
def test_images_as_a_viewer_shows_them(mode: str) -> None:
    data, expected = TABLE[mode]
    assert is_image(data[:16])
    found = pixels(data)
    assert np.abs(np.array(found) - np.array(expected)).max() <= 1


def test_a_jpeg_in_cmyk() -> None:
    image = Image.fromarray(np.full((8, 8, 4), [0, 255, 255, 0], np.uint8), "CMYK")
    assert np.abs(np.array(pixels(encoded(image, "JPEG", quality=100))) - RED).max() < 8


def test_the_background_is_a_setting(jsonl: Callable, chat: Callable, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(TABLE["RGBA"][0])
    pool = Pool.open(jsonl(chat(image="a.png")), background="#102030")
    assert pool[0].images[0].open().getpixel((1, 0)) == (0x10, 0x20, 0x30)
    with pytest.raises(DataError):
        Pool.open(pool.files[0], background="no colour")


def test_a_large_colour_profile_is_no_fault() -> None:
    image = Image.new("RGB", (1, 1), RED)
    assert pixels(encoded(image, icc_profile=os.urandom(100) * 20_000)) == [RED]


def bomb(width: int, height: int) -> bytes:
    """A PNG that claims more pixels than it could ever hold."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    parts = (struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("size", [(13_000, 13_000), (1, 2**31 - 1), (2**31 - 1, 2**31 - 1), (64_000_001, 1)])
def test_too_many_pixels_are_refused_before_decoding(size: tuple[int, int]) -> None:
    with pytest.raises(BadRecord) as caught:
        decode(bomb(*size), "it", DEFAULT_RULES)
    assert caught.value.reason in ("image_too_large", "corrupt_image")
    assert caught.value.field == "images"


def test_limits_hold_for_each_image_and_for_all_of_a_record(
    jsonl: Callable, chat: Callable, png: Callable, images: Path
) -> None:
    four = chat("q", image=[f"pics/{k}.png" for k in range(4)])
    path = jsonl(four)
    assert len(open_images(Pool.open(path)[0].images)) == 4
    for limits in (Limits(image_pixels=15), Limits(record_pixels=63), Limits(image_bytes=len(png(0)) - 1)):
        with pytest.raises(BadRecord) as caught:
            open_images(Pool.open(path, limits=limits)[0].images)
        assert caught.value.reason == "image_too_large"
    (_, bad), *_ = Pool.open(path, limits=Limits(characters=20)).read([0])
    assert isinstance(bad, BadRecord)
    assert bad.reason == "text_too_long"


@pytest.mark.parametrize(
    "data",
    [
        b"not an image",
        b"\x89PNG\r\n\x1a\n",
        encoded(Image.new("RGB", (8, 8)), "AVIF")[:-20],
        encoded(Image.new("RGB", (8, 8)), "PNG")[:-30],
        encoded(Image.new("RGB", (8, 8)), "TIFF")[:60],
    ],
)
def test_anything_else_is_a_corrupt_image(data: bytes) -> None:
    with pytest.raises(BadRecord) as caught:
        decode(data, "it", DEFAULT_RULES)
    assert (caught.value.reason, caught.value.field) == ("corrupt_image", "images")


def in_format(format: str, mode: str = "RGB") -> bytes:
    return encoded(Image.new(mode, (16, 16)), format)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (in_format("ICO"), "ICO"), (in_format("DDS", "RGBA"), "DDS"), (in_format("TGA"), "TGA"),
        (in_format("EPS"), "EPS"), (in_format("PDF"), "PDF"), (in_format("PCX"), "PCX"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(50), "HEIC"), (b"<!DOCTYPE html>", "HTML"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"), (b"\xff\x0a" + bytes(30), "JPEG XL"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)  # fmt: skip
def test_other_formats_are_rejected_by_name(
    images: Path, jsonl: Callable, chat: Callable, data: bytes, name: str
) -> None:
    (images / "pics" / "x.bin").write_bytes(data)
    (_, in_a_file), *_ = Pool.open(jsonl(chat(image="pics/x.bin"))).read([0])
    with pytest.raises(BadRecord) as in_the_record:
        decode(data, "it", DEFAULT_RULES)
    for bad in (in_a_file, in_the_record.value):
        assert isinstance(bad, BadRecord)
        assert (bad.reason, bad.field) == ("not_an_image", "images")
        assert name in bad.detail


def test_the_words_of_a_decoder_are_the_same_in_every_run() -> None:
    for data in (b"", b"\x89PNG\r\n\x1a\n"):
        with pytest.raises(BadRecord) as caught:
            decode(data, "it", DEFAULT_RULES)
        assert " at 0x" not in caught.value.detail


def reason_of(path: Path) -> tuple[str, str | None]:
    (_, bad), *_ = Pool.open(path).read([0])
    assert isinstance(bad, BadRecord)
    return bad.reason, bad.field


def test_only_images_are_opened(images: Path, jsonl: Callable, chat: Callable) -> None:
    (images / ".env").write_text("TOKEN=secret")
    os.mkfifo(images / "pipe.png")
    (images / "cycle.png").symlink_to("cycle.png")
    (images / "dangling.png").symlink_to("nowhere.png")
    (images / "inside.png").symlink_to("pics/1.png")
    expected = {
        ".env": "not_an_image",
        "pool.jsonl": "not_an_image",
        "pipe.png": "missing_image",
        "cycle.png": "missing_image",
        "dangling.png": "missing_image",
    }
    for name, reason in expected.items():
        assert reason_of(jsonl(chat(image=name))) == (reason, "images")
    assert Pool.open(jsonl(chat(image="inside.png")))[0].images[0].open().size == (4, 4)
    with pytest.raises(DataError, match="FIFO"):
        Pool.open(images / "pipe.png")

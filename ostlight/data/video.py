"""Videos as sampled frames: a few images, evenly spaced over the video, in the place of its placeholder."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from ostlight.data.decode import ImageRules, too_large
from ostlight.data.sample import IMAGE_PLACEHOLDER, ImageRef
from ostlight.data.turns import IMAGE_PARTS, image_of_part, images_of
from ostlight.errors import BadRecord

VIDEO_PLACEHOLDER = "<video>"
FIELDS = ("videos", "video")
PARTS = ("video", "video_url")
HEAD_BYTES = 16
MAX_DECODED = 20_000
"""Frames decoded of a video that does not say how long it is."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame of a video, as a record names the video.

    Attributes:
        video: path, bytes, or ``{"bytes", "path"}``.
        number: of the frame, from 0.
        of: frames that are taken of the video.
    """

    video: Any
    number: int
    of: int


@dataclass(frozen=True, slots=True)
class FrameRef(ImageRef):
    """A frame of a video file, or of a video in the record; decoded only when it is needed.

    Attributes:
        number: of the frame, from 0.
        of: frames that are taken of the video.
    """

    number: int = 0
    of: int = 1

    def read_bytes(self) -> bytes:
        """The frame as a PNG file.

        Raises:
            BadRecord: ``missing_image``, ``corrupt_video``, ``image_too_large``.
        """
        if self.path is None:
            return _frames(self.data or b"", 0, self.of, self.rules)[self.number]
        try:
            return _frames(self.path, self.path.stat().st_mtime_ns, self.of, self.rules)[self.number]
        except OSError as error:
            raise BadRecord("missing_image", f"cannot read {self.path}: {error.strerror or error}", "videos") from error


def with_frames(record: Mapping[str, Any], frames: int) -> Mapping[str, Any]:
    """The record with ``frames`` images in the place of every video; as it is where it has none.

    Raises:
        BadRecord: ``video_count`` where placeholders and videos do not match.
    """
    videos = _listed(record)
    kinds: list[Any] = []
    replaced = {
        name: _replaced(value, frames, kinds) if name not in (*FIELDS, "image", "images") else value
        for name, value in record.items()
    }
    named = sum(kind is None for kind in kinds)
    if not videos and named == len(kinds) - sum(kind == IMAGE_PLACEHOLDER for kind in kinds):
        return record  # the word <video> in a text, and no video
    images = images_of(record)
    if named == 0 and videos and IMAGE_PLACEHOLDER not in kinds:
        ordered = [frame for video in videos for frame in _frames_of(video, frames)] + images
    elif named != len(videos):
        detail = f"{named} {VIDEO_PLACEHOLDER} placeholders but {len(videos)} videos; write one for each, or none"
        raise BadRecord("video_count", detail, "videos")
    else:
        ordered = []
        next_video, next_image = iter(videos), iter(images)
        for kind in kinds:
            if kind == IMAGE_PLACEHOLDER:
                ordered += [image for image in [next(next_image, None)] if image is not None]
            elif kind is None:
                ordered += _frames_of(next(next_video), frames)
            else:
                ordered += _frames_of(kind, frames)
        ordered += next_image
    rest = {name: value for name, value in replaced.items() if name not in (*FIELDS, "image")}
    return rest | {"images": ordered}


def _listed(record: Mapping[str, Any]) -> list[Any]:
    value: Any = next((record[name] for name in FIELDS if record.get(name)), [])
    return list(value) if isinstance(value, list | tuple) else [value]


def _frames_of(video: Any, frames: int) -> list[Frame]:
    return [Frame(video, number, frames) for number in range(frames)]


def _replaced(value: Any, frames: int, kinds: list[Any]) -> Any:
    """A value with the placeholders of images in the place of those of videos.

    ``kinds`` gets, in order, ``IMAGE_PLACEHOLDER`` for an image, ``None`` for a video that the record lists, and what a
    content part names for its own video.
    """
    if isinstance(value, str):
        if VIDEO_PLACEHOLDER not in value and IMAGE_PLACEHOLDER not in value:
            return value
        parts = []
        for n, part in enumerate(value.split(VIDEO_PLACEHOLDER)):
            kinds.extend([None] if n else [])
            kinds.extend([IMAGE_PLACEHOLDER] * part.count(IMAGE_PLACEHOLDER))
            parts.append(part)
        return (IMAGE_PLACEHOLDER * frames).join(parts)
    if isinstance(value, list):
        return [_replaced(one, frames, kinds) for one in value]
    if not isinstance(value, dict):
        return value
    if value.get("type") in PARTS:
        own = next((value[name] for name in ("video", "video_url", "path", "url", "value") if value.get(name)), None)
        kinds.append(own.get("url", own) if isinstance(own, dict) else own)
        return {"type": "text", "text": IMAGE_PLACEHOLDER * frames}
    if value.get("type") in IMAGE_PARTS:
        if image_of_part(value) is None:
            kinds.append(IMAGE_PLACEHOLDER)
        return value
    return {name: _replaced(one, frames, kinds) for name, one in value.items()}


def is_video(head: bytes) -> bool:
    """Whether a file that begins with ``head`` (``HEAD_BYTES``) is of a format that is decoded."""
    return _container(head) is not None


def _container(head: bytes) -> str | None:
    """FFmpeg's name of the format; given to it, so that no file can have it read others (playlists, lists of files)."""
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free"):
        return "mov"
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "matroska"
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return "avi"
    return "mpeg" if head.startswith(b"\x00\x00\x01\xba") else "flv" if head.startswith(b"FLV") else None


@lru_cache(maxsize=4)
def _frames(video: Path | bytes, modified: int, count: int, rules: ImageRules) -> list[bytes]:
    """The frames of a video as PNG files, at the middle of ``count`` equal parts of its time."""
    where = str(video) if isinstance(video, Path) else f"{len(video):,} bytes in the record"
    with io.BytesIO(video) if isinstance(video, bytes) else open(os.fspath(video), "rb") as file:
        container = _container(file.read(HEAD_BYTES))
        file.seek(0)
        if container is None:
            raise BadRecord("corrupt_video", f"{where} is no video of a format that is read (MP4, MKV, AVI)", "videos")
        try:
            return [_png(frame) for frame in _sampled(file, container, count, rules, where)]
        except BadRecord:
            raise
        except Exception as error:  # FFmpeg's errors, and what PyAV makes of damaged files
            raise BadRecord("corrupt_video", f"cannot decode {where}: {str(error)[:300]}", "videos") from error


def _sampled(file: BinaryIO, container: str, count: int, rules: ImageRules, where: str) -> list[Any]:
    import av

    opened: Any
    with av.open(file, format=container) as opened:
        stream = opened.streams.video[0]
        pixels = stream.codec_context.width * stream.codec_context.height
        if pixels > rules.pixels:
            raise too_large(where, f"{pixels:,} pixels", f"{rules.pixels:,} (limits.image_pixels)")
        duration, start = stream.duration, stream.start_time or 0
        if not duration:
            return _by_number(opened, stream, count)
        found = []
        for k in range(count):
            wanted = start + int(duration * (2 * k + 1) / (2 * count))
            opened.seek(wanted, stream=stream)
            found.append(_last_until(opened.decode(stream), wanted))
        return found


def _last_until(frames: Iterator[Any], wanted: int) -> Any:
    """The frame that is shown at a time."""
    shown = None
    for frame in frames:
        if shown is not None and frame.pts is not None and frame.pts > wanted:
            break
        shown = frame
    if shown is None:
        raise ValueError("no frame is there")
    return shown


def _by_number(opened: Any, stream: Any, count: int) -> list[Any]:
    """Evenly spaced frames of a video that does not say how long it is: counted first, then decoded again."""
    total = sum(1 for _, _ in zip(opened.decode(stream), range(MAX_DECODED), strict=False))
    if not total:
        raise ValueError("no frame is there")
    wanted = [int(total * (2 * k + 1) / (2 * count)) for k in range(count)]
    opened.seek(0)
    chosen = {n: frame for n, frame in zip(range(total), opened.decode(stream), strict=False) if n in wanted}
    return [chosen[n] for n in wanted]


def _png(frame: Any) -> bytes:
    encoded = io.BytesIO()
    frame.to_image().convert("RGB").save(encoded, "PNG", compress_level=1)
    return encoded.getvalue()

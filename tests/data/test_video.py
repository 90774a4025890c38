"""Videos as sampled frames."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ostlight.data.pool import Pool
from ostlight.data.subset import write_subset
from ostlight.data.video import with_frames
from ostlight.errors import BadRecord

av = pytest.importorskip("av")

SECONDS = 8


def write_video(path: Path, container: str = "mp4") -> Path:
    """Eight seconds of four frames each; the shade is the number of the second times 30."""
    with av.open(str(path), "w", format=container) as opened:
        stream = opened.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for k in range(4 * SECONDS):
            image = np.full((32, 32, 3), 30 * (k // 4), np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                opened.mux(packet)
        for packet in stream.encode():
            opened.mux(packet)
    return path


@pytest.fixture
def pool_of(tmp_path: Path, images: Path) -> Callable[..., Pool]:
    """A pool of these records beside ``v.mp4`` and ``pics/0.png`` to ``pics/3.png``."""
    write_video(tmp_path / "v.mp4")

    def make(*records: dict[str, Any], frames: int | None = 4) -> Pool:
        (tmp_path / "pool.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        return Pool.open(tmp_path / "pool.jsonl", frames=frames)

    return make


def chat(content: Any, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "a"}], **fields}


def shades(pool: Pool, i: int = 0) -> list[int]:
    return [round(float(np.asarray(image.open())[16, 16].mean())) for image in pool[i].images]


@pytest.mark.parametrize("frames", [1, 4, 8])
def test_frames_are_evenly_spaced(pool_of: Any, frames: int) -> None:
    pool = pool_of(chat("<video>What?", videos=["v.mp4"]), frames=frames)
    assert pool[0].turns[0].text == "<image>" * frames + "What?"
    middles = [SECONDS * (2 * k + 1) / (2 * frames) for k in range(frames)]
    assert shades(pool) == pytest.approx([30 * int(middle) for middle in middles], abs=6)


@pytest.mark.parametrize("container", ["matroska", "avi"])
def test_other_containers(pool_of: Any, tmp_path: Path, container: str) -> None:
    write_video(tmp_path / "other", container)
    assert shades(pool_of(chat("<video>", videos=["other"]))) == pytest.approx([30, 90, 150, 210], abs=6)


@pytest.mark.parametrize(
    ("record", "text", "kinds"),
    [
        (chat("<image>, <video>!", images=["pics/1.png"], videos=["v.mp4"]), "<image>, <image><image>!", "ivv"),
        (chat("<video><image>", images=["pics/1.png"], videos=["v.mp4"]), "<image><image><image>", "vvi"),
        (chat("what?", videos=["v.mp4"]), "<image>\n<image>\nwhat?", "vv"),
        (chat([{"type": "video", "video": "v.mp4"}, {"type": "text", "text": "?"}]), "<image><image>?", "vv"),
        (
            chat([{"type": "image"}, {"type": "video"}], images=["pics/1.png"], videos=["v.mp4"]),
            "<image><image><image>",
            "ivv",
        ),
        ({"question": "<video>?", "answer": "a", "video": "v.mp4"}, "<image><image>?", "vv"),
        (chat("the word <video> alone"), "the word <video> alone", ""),
    ],
)
def test_videos_and_images_keep_their_order(pool_of: Any, record: Any, text: str, kinds: str) -> None:
    sample = pool_of(record, frames=2)[0]
    assert sample.turns[0].text == text
    assert "".join("v" if image.path.suffix == ".mp4" else "i" for image in sample.images) == kinds


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (chat("<video><video>", videos=["v.mp4"]), "video_count"),
        (chat("<video>", videos=["none.mp4"]), "missing_image"),
        (chat("<video>", videos=["../v.mp4"]), "image_outside_root"),
        (chat("<video>", videos=["https://host/v.mp4"]), "remote_image"),
        (chat("<video>", videos=["pics/0.png"]), "corrupt_video"),
        (chat("<video>", videos=["list.m3u8"]), "corrupt_video"),
        (chat("q", audio="a.wav"), "unsupported_media"),
    ],
)
def test_what_is_no_video_is_rejected(pool_of: Any, record: Any, reason: str, tmp_path: Path) -> None:
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n/etc/passwd\n")
    with pytest.raises(BadRecord) as caught:
        _ = pool_of(record)[0]
    assert caught.value.reason == reason


def test_a_damaged_video_is_rejected_when_it_is_read(pool_of: Any, tmp_path: Path) -> None:
    pool = pool_of(chat("<video>", videos=["v.mp4"]))
    (tmp_path / "v.mp4").write_bytes((tmp_path / "v.mp4").read_bytes()[:200])
    with pytest.raises(BadRecord) as caught:
        pool[0].images[0].open()
    assert caught.value.reason == "corrupt_video"


def test_without_the_setting_videos_are_rejected(pool_of: Any) -> None:
    with pytest.raises(BadRecord) as caught:
        _ = pool_of(chat("<video>", videos=["v.mp4"]), frames=None)[0]
    assert caught.value.reason == "unsupported_media"


def test_a_subset_holds_the_videos(pool_of: Any, tmp_path: Path) -> None:
    pool = pool_of(chat("<video>", videos=["v.mp4"]))
    written = write_subset(pool, [0], tmp_path / "subset")
    assert (tmp_path / "subset" / "v.mp4").read_bytes() == (tmp_path / "v.mp4").read_bytes()
    assert written == [tmp_path / "subset" / "pool.jsonl"]  # LLaMA-Factory gets no entry that leaves the videos out
    assert pool.fingerprint() != pool_of(chat("<video>", videos=["v.mp4"]), frames=3).fingerprint()


def test_a_record_without_videos_stays_as_it_is() -> None:
    record = chat("<image> and text", images=["a.png"])
    assert with_frames(record, 4) is record

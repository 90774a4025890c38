from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ostlight.data.overlap import overlaps
from ostlight.data.pool import Pool


def test_same_texts_and_images_are_found_whatever_their_names(images: Path, jsonl: Callable, chat: Callable) -> None:
    (images / "pics" / "copy.png").write_bytes((images / "pics" / "1.png").read_bytes())
    anchors = Pool.open(
        jsonl(
            chat("<image>q", "a", id="v0", image="pics/0.png"),
            chat("<image>q", "a", id="v1", image="pics/1.png"),
            chat("text", "b", id="v2"),
            chat("alone", "c", id="v3"),
            name="anchors.jsonl",
        )
    )
    other = Pool.open(
        jsonl(
            chat("<image>q", "a", id="same image, other file", image="pics/copy.png"),
            chat("<image>q", "a", id="other image", image="pics/2.png"),
            chat("<image>q", "a", id="no image", image="pics/gone.png"),
            "{broken",
            {"messages": [{"role": "user", "content": "text"}, {"role": "assistant", "content": " b"}], "id": "m"},
            chat("other content", "c", id="v3"),
            name="other.jsonl",
        )
    )
    expected = [("v1", "same image, other file"), ("v2", "m")]
    assert overlaps([anchors[n] for n in range(4)], other) == expected
    assert overlaps([], other) == []


def test_every_pair_of_repeats_is_named(jsonl: Callable, chat: Callable) -> None:
    anchors = Pool.open(jsonl(chat("q", "a", id="v0"), chat("q", "a", id="v1"), name="anchors.jsonl"))
    other = Pool.open(jsonl(chat("q", "a", id="p0"), chat("q", "a", id="p1"), name="other.jsonl"))
    assert overlaps([anchors[0], anchors[1]], other) == [("v0", "p0"), ("v1", "p0"), ("v0", "p1"), ("v1", "p1")]

from __future__ import annotations

from collections.abc import Callable

from ostlight.data.pool import Pool
from ostlight.data.record import MAX_TAG_CHARACTERS


def test_a_long_text_is_no_tag(jsonl: Callable, chat: Callable) -> None:
    longest = "x" * MAX_TAG_CHARACTERS
    record = chat("q", "a", id="r", caption=longest + "x", title=longest, meta={"source": "web", "page": longest * 8})
    assert Pool.open(jsonl(record))[0].tags == {"title": longest, "source": "web"}

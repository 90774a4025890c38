"""The scanner of top-level elements against the standard library's parser."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ostlight.data.formats.json_array import top_level_elements
from ostlight.data.pool import Pool
from ostlight.data.sample import Sample
from ostlight.errors import BadRecord, DataError

AWKWARD = ['"', "\\", '\\"', "[", "]", "{", "}", ",", "é", "\U0001f600", "\n", "a", "\\\\", "[]{},"]


def _value(rng: random.Random, depth: int) -> Any:
    kind = rng.randrange(5 if depth else 3)
    if kind == 0:
        return rng.choice([None, True, -1.5e3, 7])
    if kind in (1, 2):
        return "".join(rng.choices(AWKWARD, k=rng.randrange(12)))
    if kind == 3:
        return [_value(rng, depth - 1) for _ in range(rng.randrange(4))]
    return {str(n) + rng.choice(AWKWARD): _value(rng, depth - 1) for n in range(rng.randrange(4))}


@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 7, 64, 1 << 20])
@pytest.mark.parametrize("indent", [None, 0, 2])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_finds_the_exact_bytes_of_every_element(chunk_bytes: int, indent: int | None, ascii_only: bool) -> None:
    rng = random.Random(f"{indent}{ascii_only}")
    values = [_value(rng, 3) for _ in range(60)]
    written = b"\xef\xbb\xbf \n" + json.dumps(values, indent=indent, ensure_ascii=ascii_only).encode() + b"\n"
    found = list(top_level_elements(io.BytesIO(written), chunk_bytes))
    assert [json.loads(element) for _, element in found] == values
    assert all(written[start : start + len(element)] == element for start, element in found)
    assert all(element == element.strip() for _, element in found)


@pytest.mark.parametrize(
    ("written", "words"),
    [
        (b'[{"a": 1}, {"b": 2}', "the end is missing"),
        (b'[{"a": "never closed', "the end is missing"),
        (b'[{"a": 1}] {"b": 2}', "outside the array"),
        (b'[{"a": 1}] cut 123', "outside the array"),
        (b'[{"a": 1}]' + b"\n" * 9 + b"\0", "outside the array"),
        (b'{"data": [1]}', "outside the array"),
    ],
)
def test_a_damaged_array_is_refused_with_the_place(written: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        list(top_level_elements(io.BytesIO(written), 4))


def test_a_broken_element_does_not_stop_the_rest(tmp_path: Path, chat: Callable) -> None:
    good = json.dumps(chat("a", "b"))
    path = tmp_path / "pool.json"
    path.write_text(f"[{good}, {{'single': quotes}}, {good},\n]")
    found = [record for _, record in Pool.open(path).read(range(3))]
    assert isinstance(found[0], Sample)
    assert isinstance(found[1], BadRecord)
    assert found[1].reason == "bad_json"
    assert isinstance(found[2], Sample)


def test_a_cut_file_is_refused_naming_it(tmp_path: Path, chat: Callable) -> None:
    path = tmp_path / "pool.json"
    path.write_text(json.dumps([chat("a", "b")] * 3)[:-20])
    with pytest.raises(DataError) as caught:
        Pool.open(path)
    assert caught.value.path == path


@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 7, 64])
@pytest.mark.parametrize(
    "large", ['"' + '\\"[]{},' * 40 + '"', "[" + "1, " * 100 + "[]]", '{"a": "' + "\\\\" * 99 + '"}']
)
def test_an_element_beyond_the_limit_is_counted_and_not_kept(chunk_bytes: int, large: str) -> None:
    written = f'[{{"a": 1}}, {large}, "b\\"", {large}]'.encode()
    found = list(top_level_elements(io.BytesIO(written), chunk_bytes, max_bytes=50))
    assert [element if isinstance(element, int) else json.loads(element) for _, element in found] == [
        {"a": 1},
        len(large) + 1,
        'b"',
        len(large) + 1,
    ]
    assert json.loads(written[found[1][0] : found[1][0] + len(large) + 1]) == json.loads(large)

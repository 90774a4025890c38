from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from ostlight.data.pool import Pool
from ostlight.data.sample import Sample
from ostlight.data.subset import write_subset
from ostlight.errors import BadRecord


@pytest.fixture
def tar(tmp_path: Path, png: Callable, chat: Callable) -> Path:
    long_key = "deep/" + "k" * 120  # does not fit a plain header
    members = {
        "a/0001.json": json.dumps(chat("<image>one?", "1", image="0001.png")).encode(),
        "a/0001.png": png(1),
        "a/0002.2.png": png(4),
        "a/0002.10.png": png(5),
        "a/0002.0.PNG": png(3),
        "a/0002.json": json.dumps(chat("<image><image><image>many?", "2", id="named", task="t")).encode(),
        "a/0003.txt": b"no conversation",
        "a/0004.mp4": b"film",
        "a/0004.json": json.dumps(chat("text?", "4")).encode(),
        f"{long_key}.json": json.dumps(chat("text?", "5")).encode(),
        "a/0001.cls": b"0",
    }
    path = tmp_path / "pool.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as written:
        written.addfile(_header("a", 0, tarfile.DIRTYPE))
        for name, content in members.items():
            written.addfile(_header(name, len(content)), io.BytesIO(content))
    return path


def _header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.size, header.type, header.mtime = size, kind, 12345.5
    return header


def test_neighbours_with_one_key_are_a_record(shade: Callable, tar: Path) -> None:
    one, many, no_json, film, text, again = (record for _, record in Pool.open(tar).read(range(6)))
    assert isinstance(one, Sample)
    assert one.id == "a/0001"
    assert [shade(image) for image in one.images] == [1]
    assert isinstance(many, Sample)
    assert (many.id, dict(many.tags)) == ("named", {"task": "t"})
    assert [shade(image) for image in many.images] == [3, 4, 5]
    assert isinstance(no_json, BadRecord)
    assert (no_json.reason, no_json.field) == ("bad_field", "json")
    assert isinstance(film, BadRecord)
    assert film.reason == "unsupported_media"
    assert isinstance(text, Sample)
    assert text.id == "deep/" + "k" * 120
    assert isinstance(again, BadRecord)


def test_a_subset_keeps_members_byte_for_byte(tar: Path, tmp_path: Path) -> None:
    (written,) = write_subset(Pool.open(tar), [4, 1], tmp_path / "subset")
    with tarfile.open(tar) as source, tarfile.open(written) as subset:
        before, after = _contents(source), _contents(subset)
    assert list(after) == [f"deep/{'k' * 120}.json", "a/0002.2.png", "a/0002.10.png", "a/0002.0.PNG", "a/0002.json"]
    assert after == {name: before[name] for name in after}
    assert written.read_bytes()[:-1024] in _pieces(tar)
    assert [Pool.open(written)[n].id for n in range(2)] == ["deep/" + "k" * 120, "named"]


def _contents(tar: tarfile.TarFile) -> dict[str, tuple[float, bytes]]:
    found = {}
    for member in tar:
        file = tar.extractfile(member)
        if file is not None:
            found[member.name] = (member.mtime, file.read())
    return found


def _pieces(tar: Path) -> list[bytes]:
    """The two records' bytes, cut out of the file by where their headers stand."""
    whole = tar.read_bytes()
    with tarfile.open(tar) as source:
        offsets = {member.name: member.offset for member in source}
    many = whole[offsets["a/0002.2.png"] : offsets["a/0003.txt"]]
    text = whole[offsets[f"deep/{'k' * 120}.json"] : offsets["a/0001.cls"]]
    return [text + many]

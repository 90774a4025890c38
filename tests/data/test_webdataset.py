from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from ostlight.config.schema import Columns, Duplicates
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
        "a/0009.cls": b"0",
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
    text = whole[offsets[f"deep/{'k' * 120}.json"] : offsets["a/0009.cls"]]
    return [text + many]


def _tar(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as written:
        for header, content in members:
            header.size = len(content)
            written.addfile(header, io.BytesIO(content))
    return path


def _link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    header = _header(name, 0, kind)
    header.linkname = target
    return header, b""


def _file(name: str, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
    return _header(name, len(content)), content


def test_links_are_followed_inside_the_archive_only(
    tmp_path: Path, shade: Callable, png: Callable, chat: Callable
) -> None:
    question = json.dumps(chat("<image>?", "!")).encode()
    targets = {
        "hard": ("./x/a.png", tarfile.LNKTYPE),
        "soft": ("a.png", tarfile.SYMTYPE),
        "chain": ("soft.png", tarfile.SYMTYPE),
        "cycle": ("cycle.png", tarfile.SYMTYPE),
        "out": ("../../etc/passwd", tarfile.SYMTYPE),
        "root": ("/etc/passwd", tarfile.SYMTYPE),
        "gone": ("nowhere.png", tarfile.SYMTYPE),
    }
    members = [_file("./x/a.json", question), _file("./x/a.png", png(6))]
    for name, (target, kind) in targets.items():
        members += [_file(f"./x/{name}.json", question), _link(f"./x/{name}.png", target, kind)]
    pool = Pool.open(_tar(tmp_path / "pool.tar", members))
    found = dict(pool.read(range(len(pool))))
    assert [shade(found[n].images[0]) for n in range(4)] == [6] * 4  # type: ignore[union-attr]
    assert [getattr(found[n], "reason", None) for n in range(4, 8)] == ["bad_link"] * 4

    (written,) = write_subset(pool, [3, 1], tmp_path / "subset")
    again = Pool.open(written)
    assert [shade(again[n].images[0]) for n in range(2)] == [6, 6]
    with tarfile.open(written) as subset:
        assert all(member.isfile() for member in subset)


def test_a_member_that_claims_more_than_there_is_takes_no_memory(tmp_path: Path, png: Callable, chat: Callable) -> None:
    good = [_file(f"{name}.json", json.dumps(chat("?", "!")).encode()) for name in "ac"]
    path = _tar(tmp_path / "pool.tar", good)
    for kind in (tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
        claims = _header("b.json", 999_999_999_999, kind)
        whole = path.read_bytes()[:2048] + claims.tobuf(tarfile.GNU_FORMAT) + bytes(2048)
        (tmp_path / "claims.tar").write_bytes(whole)
        pool = Pool.open(tmp_path / "claims.tar")
        (_, first), *_, (_, last) = pool.read(range(len(pool)))
        assert isinstance(first, Sample)
        assert isinstance(last, BadRecord)
        assert last.reason == "damaged_archive"
        write_subset(pool, [0], tmp_path / "subset")


@pytest.mark.parametrize("damage", ["cut", "header", "appended"])
def test_what_cannot_be_read_of_an_archive_is_not_lost_in_silence(
    tmp_path: Path, chat: Callable, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    members = [_file(f"{n}.json", json.dumps(chat("?", str(n))).encode()) for n in range(4)]
    path = _tar(tmp_path / "pool.tar", members)
    whole = bytearray(path.read_bytes())
    if damage == "cut":
        del whole[2048 + 600 :]
    elif damage == "header":
        whole[2048:2060] = b"\xff" * 12
    else:
        whole += path.read_bytes()
    path.write_bytes(whole)
    pool = Pool.open(path)
    found = [record for _, record in pool.read(range(len(pool)))]
    assert [s.answer for s in found[:-1] if isinstance(s, Sample)] == [str(n) for n in range(len(found) - 1)]
    assert isinstance(found[-1], BadRecord)
    assert found[-1].reason == "damaged_archive"
    assert str(path) in caplog.text


def test_a_caption_without_a_conversation_is_a_column(tmp_path: Path, shade: Callable, png: Callable) -> None:
    path = _tar(tmp_path / "pool.tar", [_file("a.png", png(2)), _file("a.txt", b"A cat.")])
    pool = Pool.open(path, columns=Columns(answer="txt", images="images"))
    assert [turn.text for turn in pool[0].turns] == ["<image>\n", "A cat."]
    assert shade(pool[0].images[0]) == 2


def test_numbers_in_names_order_images_and_content_tells_them(
    tmp_path: Path, shade: Callable, png: Callable, chat: Callable
) -> None:
    three = json.dumps(chat("<image><image><image>?", "a")).encode()
    members = [
        *[_file("a.json", three), *[_file(f"a.image{n}.png", png(n)) for n in (10, 2, 1)]],
        *[_file("b.JSON", three), *[_file(f"b.{n}.PNG", png(n)) for n in (10, 9, 11)]],
        *[_file("c.json", three), _file("c.jfif", png(1)), _file("c.img", png(2)), _file("c.x.1", png(3))],
        *[_file("d.json", json.dumps(chat("?", "a")).encode()), _file("d.heic", b"\0\0\0\x18ftypheic" + bytes(50))],
    ]
    a, b, c, d = (sample for _, sample in Pool.open(_tar(tmp_path / "pool.tar", members)).read(range(4)))
    assert isinstance(a, Sample)
    assert isinstance(b, Sample)
    assert isinstance(c, Sample)
    assert [shade(image) for image in a.images] == [1, 2, 10]
    assert [shade(image) for image in b.images] == [9, 10, 11]
    assert sorted(shade(image) for image in c.images) == [1, 2, 3]
    assert isinstance(d, Sample)
    with pytest.raises(BadRecord, match="HEIC"):
        d.images[0].open()


def test_a_video_is_one_of_the_record(tmp_path: Path, chat: Callable) -> None:
    film = json.dumps(chat("<video>?", "a", video="a.mp4")).encode()
    path = _tar(
        tmp_path / "pool.tar", [_file("a.json", film), _file("a.mp4", b"\0\0\0\x18ftypisom"), _file("b.wav", b"x")]
    )
    with_video, sound = (bad for _, bad in Pool.open(path).read(range(2)))
    assert isinstance(with_video, BadRecord)
    assert (with_video.reason, with_video.field) == ("unsupported_media", "videos")
    assert isinstance(sound, BadRecord)
    assert sound.reason == "unsupported_media"
    pytest.importorskip("av")
    sample = Pool.open(path, frames=2)[0]
    assert [turn.text for turn in sample.turns] == ["<image><image>?", "a"]
    assert len(sample.images) == 2


TEXT = b'{"question": "?", "answer": "a"}'


def found_in(path: Path) -> list[Sample | BadRecord]:
    pool = Pool.open(path)
    return [record for _, record in pool.read(range(len(pool)))]


@pytest.mark.parametrize("folder", ["", "images/"])
def test_the_json_orders_the_images_that_it_names(
    tmp_path: Path, shade: Callable, png: Callable, chat: Callable, folder: str
) -> None:
    listed = [f"{folder}0001.front.png", f"{folder}0001.back.png"]
    question = json.dumps(chat("front <image> back <image>", "a", images=listed)).encode()
    members = [_file("0001.json", question), *[_file(f"0001.{n}.png", png(k)) for k, n in enumerate(("back", "front"))]]
    (sample,) = found_in(_tar(tmp_path / "pool.tar", [*members, _file("0001.mask.png", png(7))]))
    assert isinstance(sample, Sample)
    assert [shade(image) for image in sample.images] == [1, 0]


@pytest.mark.parametrize(
    ("listed", "members"),
    [
        (["0001.a.png", "0001.b.png", "0001.c.png"], ["0001.a.png", "0001.c.png"]),
        (["x/7.jpg", "x/8.jpg"], ["0001.0.jpg", "0001.1.jpg"]),
        (["x/7.jpg"], ["0001.0.jpg", "0001.1.jpg"]),
    ],
)
def test_a_list_of_images_that_are_not_the_members_is_rejected(
    tmp_path: Path, png: Callable, chat: Callable, listed: list[str], members: list[str]
) -> None:
    question = json.dumps(chat("?", "a", images=listed)).encode()
    shard = [_file("0001.json", question), *[_file(name, png(1)) for name in members], _file("2.json", TEXT)]
    bad, good = found_in(_tar(tmp_path / "pool.tar", shard))
    assert isinstance(good, Sample)
    assert isinstance(bad, BadRecord)
    assert (bad.reason, bad.field) == ("other_members", "images")


def test_one_image_may_have_had_another_name(tmp_path: Path, shade: Callable, png: Callable, chat: Callable) -> None:
    question = json.dumps(chat("<image>?", "a", image="coco/train/7.jpg")).encode()
    (sample,) = found_in(_tar(tmp_path / "pool.tar", [_file("0001.json", question), _file("0001.png", png(3))]))
    assert isinstance(sample, Sample)
    assert [shade(image) for image in sample.images] == [3]


@pytest.mark.parametrize("twice", ["0001.png", "0001.json"])
def test_a_name_that_is_there_twice_is_rejected(tmp_path: Path, png: Callable, chat: Callable, twice: str) -> None:
    contents = {"0001.json": json.dumps(chat("?", "a")).encode(), "0001.png": png(1)}
    members = [*contents.items(), (twice, contents[twice]), ("2.json", TEXT)]
    bad, good = found_in(_tar(tmp_path / "pool.tar", [_file(*member) for member in members]))
    assert isinstance(good, Sample)
    assert isinstance(bad, BadRecord)
    assert bad.reason == "repeated_member"


def test_a_key_at_several_places_is_rejected_at_each(tmp_path: Path, png: Callable, chat: Callable) -> None:
    question = json.dumps(chat("?", "a")).encode()
    names = ["0001.json", "0002.json", "0001.png", "0003.json", "0003.png"]
    members = [_file(name, question if name.endswith("json") else png(1)) for name in names]
    path = _tar(tmp_path / "pool.tar", members)
    for _ in range(2):
        pool = Pool.open(path, index=tmp_path / "index")
        found = [record for _, record in pool.read(range(len(pool)))]
        assert [getattr(one, "reason", "read") for one in found] == ["split_record", "read", "split_record", "read"]
    assert "'0001'" in str(found[0])


def test_what_macos_adds_is_no_member(tmp_path: Path, shade: Callable, png: Callable, chat: Callable) -> None:
    question, added = json.dumps(chat("<image>?", "a")).encode(), b"\0\5\x16\7" + bytes(60)
    members = {"._0001.json": added, "0001.json": question, "._0001.png": added, "0001.png": png(2)}
    members |= {"__MACOSX/._0001.png": added}
    path = _tar(tmp_path / "pool.tar", [_file(*member) for member in members.items()])
    (written,) = write_subset(Pool.open(path), [0], tmp_path / "subset")
    for one in (path, written):
        (sample,) = found_in(one)
        assert isinstance(sample, Sample)
        assert [shade(image) for image in sample.images] == [2]


@pytest.mark.parametrize("duplicates", ["keep", "reject"])
def test_a_key_is_the_id_of_a_record_whose_id_is_null(tmp_path: Path, chat: Callable, duplicates: Duplicates) -> None:
    paths = [
        _tar(tmp_path / f"{n}.tar", [_file("0001.json", json.dumps(chat("?", str(n), id=None)).encode())])
        for n in range(2)
    ]
    found = [record for _, record in Pool.open(paths, duplicates=duplicates).read(range(2))]
    if duplicates == "keep":
        assert [getattr(sample, "id", "") for sample in found] == ["0001", "0001#2"]
    else:
        assert [getattr(bad, "reason", "") for bad in found] == ["duplicate_id"] * 2


def test_json_behind_a_link_names_its_record(tmp_path: Path, chat: Callable) -> None:
    question = json.dumps(chat("?", "a", id="x")).encode()
    links = [_link("0002.json", "0001.json", tarfile.LNKTYPE), _link("0003.json", "0001.json"), _link("4.json", "no")]
    *found, bad = found_in(_tar(tmp_path / "pool.tar", [_file("0001.json", question), *links]))
    assert [getattr(sample, "id", "") for sample in found] == ["x", "x#2", "x#3"]
    assert isinstance(bad, BadRecord)
    assert bad.reason == "bad_link"


def test_an_id_that_cannot_be_used_rejects_the_record(tmp_path: Path, chat: Callable) -> None:
    question = json.dumps(chat("?", "a", id=[1])).encode()
    bad, good = found_in(_tar(tmp_path / "pool.tar", [_file("0001.json", question), _file("2.json", TEXT)]))
    assert isinstance(good, Sample)
    assert isinstance(bad, BadRecord)
    assert bad.field == "id"

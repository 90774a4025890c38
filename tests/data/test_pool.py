from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ostlight.config.schema import Duplicates, Piece
from ostlight.data.pool import Pool
from ostlight.data.sample import Sample
from ostlight.data.subset import write_subset
from ostlight.errors import BadRecord, DataError


def answers(pool: Pool, positions: range | list[int] | None = None) -> list[str]:
    found = pool.read(range(len(pool)) if positions is None else positions)
    return [sample.answer for _, sample in found if isinstance(sample, Sample)]


def test_files_of_several_formats_make_one_numbering(tmp_path: Path, jsonl: Callable, chat: Callable) -> None:
    first = jsonl(chat("q", "0"), chat("q", "1"), name="b.jsonl")
    second = tmp_path / "a.json"
    second.write_text(json.dumps([chat("q", "2"), {"instruction": "q", "output": "3"}], indent=1))
    pool = Pool.open([first, second])
    assert len(pool) == 4
    assert pool.files == (first, second)
    assert answers(pool) == ["0", "1", "2", "3"]
    assert answers(pool, [3, 0, 2]) == ["3", "0", "2"]
    assert pool[2].position == 2
    assert pool.record_name(3) == "a.json:record 2"
    assert pool.locate(1) == (first, 2)
    with pytest.raises(IndexError, match="record 4 of a pool of 4"):
        pool[4]


def test_a_folder_and_a_pattern_read_in_the_order_of_names(tmp_path: Path, jsonl: Callable, chat: Callable) -> None:
    jsonl(chat("q", "1"), name="b.jsonl")
    jsonl(chat("q", "0"), name="a.jsonl")
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("not data")
    assert answers(Pool.open(tmp_path)) == ["0", "1"]
    assert answers(Pool.open(f"{tmp_path}/*.jsonl")) == ["0", "1"]
    assert answers(Pool.open(str(tmp_path / "b.jsonl"))) == ["1"]


def test_blank_lines_a_byte_order_mark_and_carriage_returns_are_no_records(tmp_path: Path, chat: Callable) -> None:
    line = json.dumps(chat("q", "a")).encode()
    path = tmp_path / "pool.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n  \n" + line)
    assert answers(Pool.open(path)) == ["a", "a"]


def test_records_without_an_id_are_named_by_their_content(jsonl: Callable, chat: Callable) -> None:
    path = jsonl(chat("q", "a"), chat("q", "b"), chat("q", "a"), chat("q", "a", id=None), chat("q", "a"))
    pool = Pool.open(path)
    ids = [pool[i].id for i in range(5)]
    assert ids[2] == f"{ids[0]}-2"
    assert ids[4] == f"{ids[0]}-3"
    assert len(set(ids)) == 5
    assert [pool[i].id for i in range(5)] == [Pool.open(path)[i].id for i in range(5)]


def test_random_positions_depend_on_the_records_and_the_seed_and_not_on_their_order(
    jsonl: Callable, chat: Callable
) -> None:
    chats = [chat("q", str(k), id=f"r{k}") if k % 2 else chat("q", str(k)) for k in range(60)]
    pool, backwards = (Pool.open(jsonl(*some, name=n)) for some, n in ((chats, "a.jsonl"), (chats[::-1], "b.jsonl")))
    drawn = answers(pool, pool.random_positions(40, seed=3))
    assert drawn == answers(backwards, backwards.random_positions(40, seed=3))
    assert drawn[:7] == answers(pool, pool.random_positions(7, seed=3))
    assert len(set(drawn)) == 40
    assert drawn != answers(pool, pool.random_positions(40, seed=4)) != answers(pool, range(40))
    assert sorted(pool.random_positions(1000, seed=-1)) == list(range(60))


def test_every_record_is_drawn_as_often_as_another(jsonl: Callable, chat: Callable) -> None:
    pool = Pool.open(jsonl(*(chat("q", str(k)) for k in range(20))))
    times = np.bincount([position for seed in range(4000) for position in pool.random_positions(5, seed)], minlength=20)
    chi_squared = float(((times - 1000) ** 2 / 1000).sum())
    assert chi_squared < 44, times  # 19 degrees of freedom: chance exceeds this once in a thousand


def test_the_fingerprint_follows_the_bytes_and_not_the_place(tmp_path: Path, jsonl: Callable, chat: Callable) -> None:
    path = jsonl(chat("q", "a"))
    fingerprint = Pool.open(path).fingerprint()
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(path, tmp_path / "elsewhere" / "other.jsonl")
    assert Pool.open(tmp_path / "elsewhere").fingerprint() == fingerprint
    jsonl(chat("q", "b"))
    assert Pool.open(path).fingerprint() != fingerprint


def test_the_fingerprint_knows_whether_file_name_is_an_image(images: Path, jsonl: Callable, chat: Callable) -> None:
    paths = [jsonl(chat("q", "a", file_name="pics/0.png"), name=name) for name in ("metadata.jsonl", "other.jsonl")]
    named, unnamed = map(Pool.open, paths)
    assert (len(named[0].images), len(unnamed[0].images)) == (1, 0)
    assert named.fingerprint() != unnamed.fingerprint()


def test_a_pool_goes_to_another_process(jsonl: Callable, chat: Callable) -> None:
    pool = Pool.open(jsonl(*[chat("q", str(n), id=n) for n in range(50)]))
    assert pool[7].answer == "7"
    assert len(pickle.dumps(pool)) < 5_000
    assert answers(pickle.loads(pickle.dumps(pool)), [3]) == ["3"]
    with ProcessPoolExecutor(1, get_context("spawn")) as workers:
        assert workers.submit(Pool.__getitem__, pool, 49).result() == pool[49]


def test_more_files_than_are_kept_open(jsonl: Callable, chat: Callable, tmp_path: Path) -> None:
    for n in range(30):
        jsonl(chat("q", str(n)), name=f"{n:02}.jsonl")
    pool = Pool.open(tmp_path)
    order = [*range(30), *range(29, -1, -1)]
    assert answers(pool, order) == [str(n) for n in order]


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        ("", "is empty; remove it"),
        ('{"data": "\0"}', "zero bytes"),
        ("id,question\n1,what", r"'id,question\\n1,what'.*jsonl, json, parquet, hf, webdataset, csv"),
        ('{"data": [\n', r"'{\"data\": \[\\n'"),
        ("[]", r"\(json\)"),
        ('{"query_text": "a", "reply_text": "b"}', r"query_text, reply_text.*sharegpt \(conversations"),
        ("\x1f\x8b\x08", "compressed"),
        ("\x28\xb5\x2f\xfd....", "compressed"),
        ("version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        ("\xff\xfe{\0", "UTF-16"),
        ('{\0"\0', "UTF-16"),
        ("\xff\xfe\0\0{\0\0\0", "UTF-32"),
        ("ARROW1\0\0", "save_to_disk"),
        ("PK\3\4", "ZIP"),
        ("<!DOCTYPE html><html>403</html>", "web page"),
        ("\0" * 600, "zeros"),
        ('{\n"question": "q",\n"answer": "a"\n}', "several lines"),
        ("data/other.jsonl", "name that file"),
    ],
)
def test_a_file_of_an_unknown_format_is_refused_with_what_it_holds(tmp_path: Path, content: str, shown: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "other.jsonl").write_text("")
    for name in (
        ("pool.json", "pool.jsonl") if content.startswith(("\x28", "version", "\xff", "<!")) else ("pool.json",)
    ):
        path = tmp_path / name
        path.write_bytes(content.encode("latin-1"))
        with pytest.raises(DataError, match=shown) as caught:
            Pool.open(path)
        assert caught.value.path == path


def test_what_is_not_there_is_refused_by_name(tmp_path: Path, jsonl: Callable, chat: Callable) -> None:
    path = jsonl(chat("q", "a"))
    (tmp_path / "empty").mkdir()
    for missing, image_root in (("gone.jsonl", None), ("empty", None), ("pool.jsonl", tmp_path / "gone")):
        with pytest.raises(DataError) as caught:
            Pool.open(tmp_path / missing, image_root=image_root)
        assert caught.value.path == (image_root or tmp_path / missing)
    with pytest.raises(DataError):
        Pool.open([])
    with pytest.raises(DataError, match=r"'orc'.*auto, jsonl"):
        Pool.open(path, format="orc")


def test_a_file_that_is_named_twice_is_refused_by_name(
    tmp_path: Path, jsonl: Callable, chat: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = jsonl(chat("q", "a"))
    link = tmp_path / "folder" / "link.jsonl"
    link.parent.mkdir()
    link.symlink_to(path)
    monkeypatch.chdir(tmp_path)
    for again in (path, "pool.jsonl", f"{tmp_path}/*.jsonl", f"{tmp_path}/folder/../pool.jsonl"):
        with pytest.raises(DataError) as caught:
            Pool.open([path, again])
        assert caught.value.path is not None
        assert caught.value.path.resolve() == path
    with pytest.raises(DataError, match="link.jsonl"):
        Pool.open([path, link], image_root=tmp_path)
    other = Piece(str(path), image_root=str(tmp_path / "folder"))
    assert len(Pool.open([path, other])) == 2


def test_a_named_format_reads_what_cannot_be_recognized(tmp_path: Path, chat: Callable) -> None:
    path = tmp_path / "pool.txt"
    path.write_text("broken\n" * 3 + json.dumps(chat("q", "a")) + "\n")
    with pytest.raises(DataError):
        Pool.open(path)
    pool = Pool.open(path, format="jsonl")
    assert len(pool) == 4
    assert answers(pool) == ["a"]


def test_a_file_cut_after_it_was_indexed_is_not_read_as_if_whole(jsonl: Callable, chat: Callable) -> None:
    path = jsonl(chat("q", "a"), chat("q", "b"))
    pool = Pool.open(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match="record 2") as caught:
        pool[1]
    assert caught.value.path == path


def test_an_open_pool_is_silent_at_the_interpreters_end(jsonl: Callable, chat: Callable) -> None:
    program = f"from ostlight.data.pool import Pool; pool = Pool.open({str(jsonl(chat('q', 'a')))!r}); pool[0]"
    ended = subprocess.run([sys.executable, "-X", "dev", "-c", program], capture_output=True, text=True, check=True)
    assert "Exception ignored" not in ended.stderr
    assert "ostlight" not in ended.stderr


@pytest.mark.parametrize("duplicates", ["keep", "first", "reject"])
def test_an_id_is_found_however_its_name_is_spelled(jsonl: Callable, duplicates: Duplicates) -> None:
    lines = [f'{{"\\u0069\\u0064": "x", "question": "{n}", "answer": "a"}}' for n in range(2)]
    found = [record for _, record in Pool.open(jsonl(*lines), duplicates=duplicates).read(range(2))]
    named = [record.reason if isinstance(record, BadRecord) else record.id for record in found]
    assert (
        named
        == {
            "keep": ["x", "x#2"],
            "first": ["x", "duplicate_id"],
            "reject": ["duplicate_id", "duplicate_id"],
        }[duplicates]
    )


@pytest.mark.parametrize("ids", [True, False])
@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_a_record_in_the_place_of_another_is_refused(tmp_path: Path, suffix: str, ids: bool) -> None:
    rows = [{"question": f"q{n}", "answer": "a"} | ({"id": f"r{n}"} if ids else {}) for n in range(2)]
    path = tmp_path / f"pool.{suffix}"

    def write(rows: list[dict]) -> None:
        if suffix == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        elif suffix == "csv":
            path.write_text("".join(",".join(cells) + "\n" for cells in [[*rows[0]], *(row.values() for row in rows)]))
        else:
            text = "".join(json.dumps(row) + "\n" for row in rows)
            path.write_text(text if suffix == "jsonl" else json.dumps(rows))

    write(rows)
    pool = Pool.open(path)
    assert [turn.text for turn in pool[0].turns] == ["q0", "a"]
    write(rows[::-1])
    pool = pickle.loads(pickle.dumps(pool))
    with pytest.raises(DataError, match="record 1") as caught:
        pool[0]
    assert caught.value.path == path


def test_a_name_twice_in_a_record_rejects_it(jsonl: Callable, chat: Callable) -> None:
    twice = '{"question": "q", "answer": "right", "answer": "wrong"}'
    nested = '{"messages": [{"role": "user", "content": "q", "content": "p"}, {"role": "assistant", "content": "a"}]}'
    found = [record for _, record in Pool.open(jsonl(chat("q", "a"), twice, nested)).read(range(3))]
    assert [getattr(record, "reason", "read") for record in found] == ["read", "bad_json", "bad_json"]
    assert "'answer'" in str(found[1])


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("zeros", [bytes(20), bytes(20) + b'{"a": 1}', b'{"question": "q\0", "answer": "a"}'])
def test_a_line_of_zero_bytes_is_one_bad_record(tmp_path: Path, chat: Callable, place: int, zeros: bytes) -> None:
    lines = [json.dumps(chat("q", "a")).encode()] * 3
    lines.insert(place, zeros)
    (tmp_path / "pool.jsonl").write_bytes(b"\n".join(lines))
    pool = Pool.open(tmp_path / "pool.jsonl")
    assert len(pool) == 4
    assert [i for i, record in pool.read(range(4)) if isinstance(record, BadRecord)] == [place]


def test_joined_files_keep_no_byte_order_mark(tmp_path: Path, chat: Callable) -> None:
    line = b"\xef\xbb\xbf" + json.dumps(chat("q", "a")).encode() + b"\n"
    (tmp_path / "pool.jsonl").write_bytes(line + line)
    (written, _) = write_subset(Pool.open(tmp_path / "pool.jsonl"), [0, 1], tmp_path / "subset")
    assert written.read_bytes() == line[3:] * 2

"""Kept records go out as they came in, with their images, and others can read them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from ostlight.data.pool import Pool
from ostlight.data.subset import MANIFEST, write_subset
from ostlight.errors import DataError


def test_json_lines_keep_their_bytes_and_order(images: Path, chat: Callable) -> None:
    lines = [
        json.dumps(chat("<image>a", "1", image="pics/0.png")).replace(" ", "  "),
        "",
        json.dumps(chat("ü", "2"), ensure_ascii=False) + "\r",
        "{broken",
        '{"instruction":"c"  , "output":"3","n":1e0}',
    ]
    (images / "pool.jsonl").write_bytes("\n".join(lines).encode())
    pool = Pool.open(images / "pool.jsonl")
    out = images / "subset"
    written = write_subset(pool, [3, 0, 1], out)
    assert written == [out / "pool.jsonl"]  # mixed layouts fit no dataset_info.json
    assert written[0].read_bytes() == (lines[4] + "\n" + lines[0] + "\n" + lines[2] + "\n").encode()
    assert sorted(p.name for p in (out / "pics").iterdir()) == ["0.png"]
    assert (out / "pics" / "0.png").read_bytes() == (images / "pics" / "0.png").read_bytes()
    subset = Pool.open(out)
    assert [subset[n].turns for n in range(3)] == [pool[n].turns for n in (3, 0, 1)]
    assert [subset[n].id for n in range(3)] == [pool[n].id for n in (3, 0, 1)]
    assert subset[1].images[0].open().size == (4, 4)


def test_array_elements_keep_their_bytes(images: Path, chat: Callable) -> None:
    elements = [json.dumps(chat("ü[,]", str(n), id=n), indent=n, ensure_ascii=n == 1) for n in range(4)]
    (images / "pool.json").write_text("[" + " ,\n".join(elements) + "]", encoding="utf-8")
    written = write_subset(Pool.open(images / "pool.json"), [2, 0], images / "subset")
    assert [path.name for path in written] == ["pool.json", "dataset_info.json"]
    assert written[0].read_text(encoding="utf-8") == f"[\n{elements[2]},\n{elements[0]}\n]\n"


def test_the_whole_of_an_array_round_trips(tmp_path: Path, chat: Callable) -> None:
    values = [chat("q", str(n)) for n in range(5)]
    (tmp_path / "pool.json").write_text(json.dumps(values, indent=2))
    written = write_subset(Pool.open(tmp_path / "pool.json"), range(5), tmp_path / "subset")
    assert json.loads(written[0].read_text()) == values


def test_files_of_several_folders_keep_their_places(images: Path, png: Callable, chat: Callable) -> None:
    for part in ("one", "two"):
        (images / part).mkdir()
        (images / part / "x.png").write_bytes(png(len(part)))
        (images / part / "pool.jsonl").write_text(json.dumps(chat(f"<image>{part}", part, image="x.png")) + "\n")
    pool = Pool.open(f"{images}/*/pool.jsonl")
    out = images / "subset"
    write_subset(pool, [1, 0], out)
    assert sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file() and p.name != MANIFEST) == [
        "dataset_info.json",
        "one/pool.jsonl",
        "one/x.png",
        "two/pool.jsonl",
        "two/x.png",
    ]
    assert [s.id for _, s in Pool.open(f"{out}/*/pool.jsonl").read(range(2))] == [pool[0].id, pool[1].id]  # type: ignore[union-attr]


def test_a_stated_image_root_holds_for_the_subset_folder(shade: Callable, images: Path, chat: Callable) -> None:
    (images / "lists").mkdir()
    path = images / "lists" / "pool.jsonl"
    path.write_text(json.dumps(chat(image="./lists/../pics/1.png")) + "\n")
    out = images / "subset"
    write_subset(Pool.open(path, image_root=images), [0], out)
    assert shade(Pool.open(out / "pool.jsonl")[0].images[0]) == 1


def test_editing_a_subset_never_edits_the_pool(images: Path, jsonl: Callable, chat: Callable) -> None:
    before = (images / "pics" / "2.png").read_bytes()
    pool = Pool.open(jsonl(chat(image="pics/2.png")))
    copy = images / "subset" / "pics" / "2.png"
    copy.parent.mkdir(parents=True)
    os.link(images / "pics" / "2.png", copy)  # as earlier versions wrote it
    for _ in range(2):  # writing again changes nothing
        write_subset(pool, [0], images / "subset")
        assert not copy.is_symlink()
        assert not copy.samefile(images / "pics" / "2.png")
        assert copy.read_bytes() == before
    with copy.open("r+b") as opened:
        opened.write(b"edited")
    assert (images / "pics" / "2.png").read_bytes() == before
    write_subset(pool, [0], images / "subset")
    assert copy.read_bytes() == before


def test_images_are_copied_where_the_kernel_cannot(
    images: Path, jsonl: Callable, chat: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    write_subset(Pool.open(jsonl(chat(image="pics/2.png"))), [0], images / "subset")
    assert (images / "subset" / "pics" / "2.png").read_bytes() == (images / "pics" / "2.png").read_bytes()


def test_a_smaller_subset_in_the_same_folder_leaves_nothing_of_the_larger(images: Path, chat: Callable) -> None:
    for name in "xy":
        records = [chat(f"<image>{name}{n}", "a", image=f"pics/{n}.png") for n in range(2)]
        (images / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    out = images / "subset"
    pool = Pool.open([images / "x.jsonl", images / "y.jsonl"])
    write_subset(pool, range(4), out)
    (out / "note.txt").write_text("mine")
    write_subset(pool, [2], out)
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file() and path.name != MANIFEST}
    assert names == {"y.jsonl", "pics/0.png", "dataset_info.json", "note.txt"}
    assert len(Pool.open(out)) == 1


def test_what_cannot_be_written_is_refused(tmp_path: Path, jsonl: Callable, chat: Callable) -> None:
    path = jsonl(chat("q", "a"), chat("q", "b", image="gone.png"))
    pool, before = Pool.open(path), path.read_bytes()
    with pytest.raises(DataError):
        write_subset(pool, [], tmp_path / "subset")
    with pytest.raises(DataError, match=r"pool\.jsonl:record 2 .*missing_image"):
        write_subset(pool, [1], tmp_path / "subset")
    with pytest.raises(ValueError, match="twice"):
        write_subset(pool, [0, 0], tmp_path / "subset")
    with pytest.raises(DataError) as caught:
        write_subset(pool, [0], tmp_path)
    assert caught.value.path == tmp_path
    assert path.read_bytes() == before


LLAVA_TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "system_tag": "system",
    "observation_tag": "observation",
    "function_tag": "function_call",
}


def entry_of(folder: Path, path: Path, positions: list[int]) -> dict | None:
    info = write_subset(Pool.open(path), positions, folder)[-1]
    if info.name != "dataset_info.json":
        return None
    entries = json.loads(info.read_text())
    assert list(entries) == ["pool"]
    return entries["pool"]


def test_dataset_info_names_columns_and_tags(images: Path, jsonl: Callable, chat: Callable) -> None:
    path = jsonl(chat(image="pics/0.png", id=1), chat("text", "a", system="S", id=2))
    assert entry_of(images / "subset", path, [0, 1]) == {
        "file_name": "pool.jsonl",
        "formatting": "sharegpt",
        "columns": {"messages": "conversations", "system": "system", "images": "image"},
        "tags": LLAVA_TAGS,
    }


def test_dataset_info_of_messages(images: Path, jsonl: Callable) -> None:
    turns = [{"role": "user", "content": "<image>a"}, {"role": "assistant", "content": "b"}]
    path = jsonl({"messages": turns, "images": ["pics/0.png"]})
    entry = entry_of(images / "subset", path, [0])
    assert entry is not None
    assert entry["columns"] == {"messages": "messages", "images": "images"}
    spoken = {"user_tag": "user", "assistant_tag": "assistant", "role_tag": "role", "content_tag": "content"}
    assert entry["tags"] == {**LLAVA_TAGS, **spoken}


def test_dataset_info_of_alpaca_names_only_columns_that_exist(tmp_path: Path, jsonl: Callable) -> None:
    path = jsonl({"instruction": "a", "output": "b"}, {"instruction": "a", "input": "i", "output": "c"})
    assert entry_of(tmp_path / "both", path, [0, 1]) == {
        "file_name": "pool.jsonl",
        "formatting": "alpaca",
        "columns": {"prompt": "instruction", "query": "input", "response": "output"},
    }
    entry = entry_of(tmp_path / "first", path, [0])
    assert entry is not None
    assert "query" not in entry["columns"]
    loaded = datasets.load_dataset("json", data_files=str(tmp_path / "first" / "pool.jsonl"), cache_dir=str(tmp_path))
    assert set(entry["columns"].values()) <= set(loaded["train"].column_names)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"messages": [{"role": "assistant", "content": [{"type": "text", "text": "a"}]}]}, "lists of parts"),
        (
            {"conversations": [{"from": "user", "value": "a"}, {"from": "gpt", "value": "b"}], "image": "pics/0.png"},
            "placeholder",
        ),
    ],
)
def test_a_file_that_does_not_fit_gets_no_entry_and_a_word_why(
    images: Path, jsonl: Callable, record: dict, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert entry_of(images / "subset", jsonl(record), [0]) is None
    assert words in caplog.text


def test_two_names_for_one_role_do_not_fit(tmp_path: Path, jsonl: Callable, caplog: pytest.LogCaptureFixture) -> None:
    turns = [[{"from": who, "value": "a"}, {"from": "gpt", "value": "b"}] for who in ("human", "user")]
    path = jsonl(*({"conversations": two} for two in turns))
    assert entry_of(tmp_path / "both", path, [0, 1]) is None
    assert "names for the user: human, user" in caplog.text
    entry = entry_of(tmp_path / "one", path, [1])
    assert entry is not None
    assert entry["tags"]["user_tag"] == "user"


def test_results_of_map_are_those_of_the_subset_that_is_there(tmp_path: Path) -> None:
    rows = {"question": [f"q{n}" for n in range(6)], "answer": ["a"] * 6}
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "pool"))
    pool = Pool.open(tmp_path / "pool")
    for kept in ([0, 1, 2], [3, 4, 5], [5, 4, 3], [0, 1, 2]):
        (written,) = write_subset(pool, kept, tmp_path / "subset")
        mapped = datasets.load_from_disk(str(written)).map(_upper)
        assert mapped["upper"][:] == [f"Q{n}" for n in kept]


def _upper(row: dict) -> dict:
    return {"upper": row["question"].upper()}

"""An export opens elsewhere with the ids, turns and images of the pool, and is replaced whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
from PIL import Image

import ostlight
from ostlight.data.pool import Pool
from ostlight.errors import ConfigError, DataError, RunInUseError
from ostlight.pipeline.lock import RUN, locked
from ostlight.sharing import dataset
from ostlight.sharing.dataset import OWN_COLUMNS, tag_columns
from ostlight.sharing.folder import MANIFEST, size_of

Select = Callable[..., Path]


@pytest.fixture
def load(tmp_path: Path) -> Callable[[Path], Any]:
    """The data set in a folder, as ``datasets`` opens it."""
    return lambda folder: datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))


def text_of(content: Any) -> str:
    return "".join("<image>" if part["type"] == "image" else part["text"] for part in content)


def test_datasets_opens_what_the_pool_holds(select: Select, load: Callable[[Path], Any], tmp_path: Path) -> None:
    exported = ostlight.export(select())
    rows = load(exported.folder)
    pool = Pool.open(tmp_path / "pool" / "pool.jsonl")
    assert (exported.records, exported.images) == (len(rows), 4) == (len(pool), 4)
    assert exported.bytes == size_of(exported.folder)
    for row, sample in zip(rows, (pool[i] for i in range(len(pool))), strict=True):
        assert row["id"] == sample.id
        assert [(m["role"], text_of(m["content"])) for m in row["messages"]] == [(t.role, t.text) for t in sample.turns]
        calls = [m["tool_calls"] or [] for m in row["messages"]]
        assert calls == [[dict(call) for call in turn.tool_calls] for turn in sample.turns]
        assert [(m["name"], m["tool_call_id"]) for m in row["messages"]] == [
            (turn.name, turn.tool_call_id) for turn in sample.turns
        ]
        assert [m["weight"] for m in row["messages"] if m["role"] == "assistant"] == [
            int(turn.trained) for turn in sample.turns if turn.role == "assistant"
        ]
        assert (row["tools"] or []) == [dict(tool) for tool in sample.tools]
        assert [image.getpixel((0, 0)) for image in row["images"]] == [
            image.open().getpixel((0, 0)) for image in sample.images
        ]
        assert row["source"] == sample.tags.get("source")
    assert sorted(rows["rank"]) == list(range(len(pool)))
    assert rows["tag_score"] == [None, None, None, None, "7"]


def test_tags_of_taken_names_have_columns_of_their_own() -> None:
    overview = SimpleNamespace(tags={"score": 1, "tag_score": 1, "rank": 1, "task": 1})
    columns = tag_columns(overview)
    assert len({*columns.values(), *OWN_COLUMNS}) == len(columns) + len(OWN_COLUMNS)
    assert (columns["task"], columns["tag_score"], columns["rank"]) == ("task", "tag_score", "tag_rank")


def test_the_images_are_the_pools_to_the_byte(select: Select, tmp_path: Path) -> None:
    table = pq.read_table(ostlight.export(select()).folder / "data")
    images = table["images"].to_pylist()[0]
    assert [image["path"] for image in images] == ["10.png", "60.png", "110.png"]
    assert [image["bytes"] for image in images] == [(tmp_path / "pool" / i["path"]).read_bytes() for i in images]


def test_an_export_is_a_pool_of_its_own(select: Select, tmp_path: Path) -> None:
    exported, pool = Pool.open(ostlight.export(select()).folder / "data"), Pool.open(tmp_path / "pool" / "pool.jsonl")
    for i in range(len(pool)):
        assert exported[i].content_key() == pool[i].content_key()
        assert exported[i].turns == pool[i].turns


def test_records_without_images_have_texts_as_content(select: Select, load: Callable[[Path], Any]) -> None:
    given = [{"id": f"{k}", "question": f"q{k}", "answer": f"a{k}"} for k in range(9)]
    run = select(given, count=4)
    rows = load(ostlight.export(run).folder)
    kept = pq.read_table(run / "selection.parquet").to_pylist()
    assert dict(zip(rows["id"], rows["rank"], strict=True)) == {r["id"]: r["rank"] for r in kept if r["kept"]}
    assert dict(zip(rows["id"], rows["score"], strict=True)) == {r["id"]: r["score"] for r in kept if r["kept"]}
    assert set(rows.column_names) == {"id", "messages", "score", "rank"}
    assert rows[0]["messages"][1] == {"role": "assistant", "content": f"a{rows[0]['id']}"}


def test_another_export_in_the_same_place_is_not_taken_from_a_cache(
    select: Select, load: Callable[[Path], Any], tmp_path: Path
) -> None:
    for answer in ("one", "two"):
        run = select([{"id": "a", "question": "q", "answer": answer}], name=f"run-{answer}")
        rows = load(ostlight.export(run, tmp_path / "out").folder)
        assert rows[0]["messages"][1]["content"] == answer


def test_frames_of_videos_are_images(select: Select, load: Callable[[Path], Any], tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    (tmp_path / "pool").mkdir()
    with av.open(str(tmp_path / "pool" / "v.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width = stream.height = 16
        for shade in (0, 80, 160, 240):
            container.mux(stream.encode(av.VideoFrame.from_image(Image.new("RGB", (16, 16), (shade,) * 3))))
        container.mux(stream.encode())
    run = select(
        [{"id": "v", "question": "<video>what?", "answer": "light", "videos": ["v.mp4"]}], pool={"video": {"frames": 2}}
    )
    (row,) = load(ostlight.export(run).folder)
    assert text_of(row["messages"][0]["content"]) == "<image><image>what?"
    dark, light = (image.convert("L").getpixel((8, 8)) for image in row["images"])
    assert dark < 100 < light


def test_many_records_go_to_several_files(
    select: Select, load: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "FILE_BYTES", 2_000)
    monkeypatch.setattr(dataset, "GROUP_RECORDS", 10)
    given = [{"id": f"{k:03d}", "question": "q" * 100, "answer": "a"} for k in range(95)]
    exported = ostlight.export(select(given))
    files = sorted(file.name for file in (exported.folder / "data").iterdir())
    assert len(files) == int(files[0].split("-")[3]) > 3
    assert load(exported.folder)["id"] == [row["id"] for row in given]


def test_an_export_is_replaced_whole(select: Select, tmp_path: Path) -> None:
    run, out = select(), tmp_path / "out"
    ostlight.export(run, out, tools=["ms-swift"])
    assert (out / "ms-swift").is_dir()
    stale = tmp_path / ".out.0123456789ab.tmp"
    stale.mkdir()
    ostlight.export(run, out)
    assert sorted(file.name for file in out.iterdir()) == [MANIFEST, "README.md", "data"]
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize("named", ["mine.txt", "data/mine.parquet"])
def test_a_folder_with_other_files_is_refused_and_stays(select: Select, tmp_path: Path, named: str) -> None:
    run, out = select(), tmp_path / "out"
    ostlight.export(run, out)
    (out / named).write_text("mine")
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    with pytest.raises(DataError) as error:
        ostlight.export(run, out)
    assert error.value.path == out / named
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before


def test_nothing_is_exported_while_another_process_selects(select: Select) -> None:
    run = select()
    with locked(run, RUN, "`ostlight train`", "", shared=True):
        ostlight.export(run)
    with (
        locked(run, RUN, "`ostlight select`", ""),
        pytest.raises(RunInUseError, match="in use by `ostlight select` .*export later"),
    ):
        ostlight.export(run)


def test_a_failed_export_leaves_the_one_before(select: Select, tmp_path: Path) -> None:
    run = select()
    exported = ostlight.export(run)
    before = {file: file.read_bytes() for file in exported.folder.rglob("*") if file.is_file()}
    (tmp_path / "pool" / "60.png").unlink()
    with pytest.raises(DataError):
        ostlight.export(run)
    assert {file: file.read_bytes() for file in exported.folder.rglob("*") if file.is_file()} == before
    assert not list(run.glob(".export*"))


def test_another_pool_than_it_was_selected_from_is_refused(select: Select, tmp_path: Path) -> None:
    run = select()
    file = tmp_path / "pool" / "pool.jsonl"
    file.write_text(file.read_text().replace("dark", "pale"))
    with pytest.raises(DataError):
        ostlight.export(run)


def test_the_card_says_what_the_selection_was_made_with_and_not_a_later_refused_one(select: Select) -> None:
    run = select()
    config = run / "config.yaml"
    with pytest.raises(DataError, match="no record is kept"):
        ostlight.select(config, "budget={threshold: 1.0e9}")
    assert "threshold" in config.read_text()
    card = (ostlight.export(run).folder / "README.md").read_text()
    assert "1000000000" not in card
    with pytest.raises(DataError, match="no record is kept"):
        ostlight.select(config, "budget={threshold: 1.0e9}", "pool.unsupported=keep")
    with pytest.raises(DataError, match=r"selected with other settings than .*config.yaml says now: pool.unsupported"):
        ostlight.export(run)


def test_kept_records_that_are_no_conversation_are_counted(
    settings: Callable[..., dict[str, Any]], select: Select, load: Callable[[Path], Any]
) -> None:
    given = [
        {"id": "text", "question": "q", "answer": "a"},
        {"id": "video", "question": "<video>q", "answer": "a", "videos": ["v.mp4"]},
    ]
    exported = ostlight.export(select(given, pool={"unsupported": "keep"}))
    assert dict(exported.left_out) == {"unsupported_media": 1}
    assert load(exported.folder)["id"] == ["text"]


def test_what_is_no_selection_is_refused(tmp_path: Path, settings: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(DataError):
        ostlight.export(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(json.dumps({"pool": {"path": "x.jsonl"}}))
    with pytest.raises(DataError):
        ostlight.export(tmp_path / "run")


def test_an_unknown_trainer_is_refused_before_anything_is_written(select: Select) -> None:
    run = select()
    with pytest.raises(ConfigError) as error:
        ostlight.export(run, tools=["llama-factory,swift"])
    assert len(error.value.problems) == 1
    assert not (run / "export").exists()


def test_an_image_keeps_its_format(select: Select, tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    file = BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "JPEG")
    (tmp_path / "pool" / "a.jpg").write_bytes(file.getvalue())
    run = select([{"id": "j", "question": "<image>q", "answer": "a", "image": "a.jpg"}])
    exported = ostlight.export(run, tools=["ms-swift"])
    (image,) = (exported.folder / "images").iterdir()
    assert image.suffix == ".jpg"
    assert image.read_bytes() == file.getvalue()

"""What is written for other trainers holds the pool's conversations as these trainers read them."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

import ostlight
from ostlight.errors import DataError

Select = Callable[..., Path]


def rows_of(folder: Path) -> dict[str, Any]:
    lines = (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["id"]: row for row in map(json.loads, lines)}


def test_llama_factory_gets_alternating_turns_and_a_description(select: Select, tmp_path: Path) -> None:
    exported = ostlight.export(select(), tools=["llama-factory"])
    folder = exported.folder / "llama-factory"
    rows = rows_of(folder)
    assert set(rows) == {"plain", "parts", "tools", "text"}
    assert exported.recipes[0].left_out.total() == 1
    assert rows["plain"]["system"] == "Be short."
    for row in rows.values():
        speakers = [turn["from"] for turn in row["conversations"]]
        assert {*speakers[::2]} <= {"human", "observation"}
        assert {*speakers[1::2]} <= {"gpt", "function_call"}
        assert "".join(turn["value"] for turn in row["conversations"]).count("<image>") == len(row["images"])
    named = [(exported.folder / image).read_bytes() for image in rows["plain"]["images"]]
    assert named == [(tmp_path / "pool" / f"{shade}.png").read_bytes() for shade in (10, 60, 110)]
    assert json.loads(rows["tools"]["conversations"][1]["value"]) == [
        {"name": "add", "arguments": {"a": 1, "b": [2, 3]}}
    ]
    (described,) = json.loads(rows["tools"]["tools"])
    assert described["parameters"]["properties"] == {}  # it fails without
    settings = yaml.safe_load((folder / "train.yaml").read_text())
    (name, entry), *others = json.loads((folder / "dataset_info.json").read_text()).items()
    assert (others, settings["dataset"], entry["file_name"]) == ([], name, "train.jsonl")
    assert set(entry["columns"].values()) <= set(rows["plain"])


def test_ms_swift_gets_messages_and_what_is_not_trained_on(select: Select) -> None:
    exported = ostlight.export(select(), tools=["ms-swift"])
    rows = rows_of(exported.folder / "ms-swift")
    assert len(rows) == exported.records
    assert [m.get("loss") for m in rows["muted"]["messages"]] == [None, None, False, None, None]
    roles = [message["role"] for message in rows["tools"]["messages"]]
    assert roles == ["user", "tool_call", "tool", "tool", "assistant"]
    settings = yaml.safe_load((exported.folder / "ms-swift" / "train.yaml").read_text())
    assert [(exported.folder / file).is_file() for file in settings["dataset"]] == [True]
    assert (settings["max_steps"], settings["learning_rate"]) == (3, 1e-4)


def test_the_script_for_trl_holds_the_targets_settings(select: Select, settings: Callable[..., dict[str, Any]]) -> None:
    target = settings()["target"] | {"lora": {"rank": 4}, "freeze": ["vision"]}
    exported = ostlight.export(select(target=target), tools=["trl"])
    assert not (exported.folder / "images").exists()
    tree = ast.parse((exported.folder / "trl" / "train.py").read_text())
    values = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    assert values["SETTINGS"]["max_steps"] == 3
    assert values["SETTINGS"]["assistant_only_loss"] is True
    assert values["LORA"]["r"] == 4
    assert values["FREEZE"] == ("vision",)
    assert not Path(values["MODEL"]).is_absolute()
    assert exported.recipes[0].command.endswith(str(Path(target["path"]).resolve()))


def test_a_trainer_that_can_take_no_record_is_refused(select: Select) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]
    run = select([{"id": "m", "messages": [*turns, *turns[:1], {"role": "assistant", "content": "c"}]}])
    with pytest.raises(DataError):
        ostlight.export(run, tools=["trl"])
    assert not (run / "export").exists()


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def test_trainers_see_the_pixels_that_the_run_saw(select: Select, tmp_path: Path) -> None:
    turned, chart, plain = (
        Image.new("RGB", (40, 20), (200, 0, 0)),
        Image.new("RGBA", (20, 20)),
        Image.new("L", (8, 8), 9),
    )
    chart.putpixel((3, 3), (0, 0, 0, 255))
    exif = Image.Exif()
    exif[274] = 6
    data = {"t": encoded(turned, "JPEG", exif=exif), "c": encoded(chart, "PNG"), "p": encoded(plain, "PNG")}
    rows = []
    (tmp_path / "pool").mkdir()
    for name, content in data.items():
        (tmp_path / "pool" / f"{name}.img").write_bytes(content)
        turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "x"}]
        rows.append({"id": name, "conversations": turns, "images": [f"{name}.img"]})
    run = select(rows)
    exported = ostlight.export(run, tools=["llama-factory"])
    written = {k: exported.folder / row["images"][0] for k, row in rows_of(exported.folder / "llama-factory").items()}
    opened = {name: Image.open(path).convert("RGB") for name, path in written.items()}
    assert opened["t"].size == (20, 40)
    assert opened["c"].getpixel((0, 0)) == (255, 255, 255)
    assert opened["c"].getpixel((3, 3)) == (0, 0, 0)
    assert written["p"].read_bytes() == data["p"]
    assert "2 images as PNG files" in exported.recipes[0].note


def test_what_a_trainer_would_read_otherwise_is_left_out(select: Select, tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "10.png").write_bytes(encoded(Image.new("RGB", (8, 8)), "PNG"))

    def record(id: str, *turns: tuple[str, str], **more: Any) -> dict[str, Any]:
        return {"id": id, "messages": [{"role": r, "content": c} for r, c in turns]} | more

    call = {"type": "function", "function": {"name": "put", "arguments": {"what": "<image> <video>"}}}
    asked, answered = ("user", "q"), ("assistant", "a")
    with_call = record("call", asked)
    with_call["messages"] += [{"role": "assistant", "content": "", "tool_calls": [call]}]
    rows = [
        record("fine", asked, answered),
        record("system", ("system", "<image> guide"), asked, answered, images=["10.png"]),
        record("twice", asked, answered, answered),
        record("first", answered, asked, answered),
        with_call,
    ]
    muted = record("muted", asked, answered, asked)
    muted["messages"].append({"role": "assistant", "content": "b", "weight": 0})
    run = select([*rows, muted])
    exported = ostlight.export(run, tools=["llama-factory", "ms-swift"])
    assert set(rows_of(exported.folder / "llama-factory")) == {"fine", "muted"}
    swift = rows_of(exported.folder / "ms-swift")
    assert set(swift) == {"fine", "system", "muted"}
    assert len(swift["muted"]["messages"]) == 2, "the muted answer's end would be trained"


def test_settings_are_carried_over_or_named(select: Select, settings: Callable[..., dict[str, Any]]) -> None:
    modules = ".*(q_proj|v_proj)"
    target = settings()["target"] | {"lora": {"modules": modules}, "max_pixels": 200_704, "precision": "32-true"}
    exported = ostlight.export(select(target=target), tools=["llama-factory", "ms-swift", "trl"])
    factory, swift = ((exported.folder / tool / "train.yaml").read_text() for tool in ("llama-factory", "ms-swift"))
    assert f"Not carried over: the adapted modules (target.lora.modules={modules})" in factory
    read = yaml.safe_load(factory)
    assert (read["image_max_pixels"], read["bf16"]) == (200_704, False)
    read = yaml.safe_load(swift)
    assert (read["target_regex"], read["max_pixels"]) == (modules, 200_704)
    assert (read["truncation_strategy"], read["torch_dtype"]) == ("right", "float32")
    script = (exported.folder / "trl" / "train.py").read_text()
    assert "Not carried over: the size of images" in script
    # Adapters are added with the trainer; those of a frozen part must not train.
    assert script.index("SFTTrainer(") < script.index("freeze(trainer.model)") < script.index("trainer.train()")


def test_an_image_that_cannot_be_decoded_leaves_its_record_out(select: Select, tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    whole = encoded(Image.new("RGB", (8, 8)), "PNG")
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "x"}]
    rows = [{"id": name, "conversations": turns, "images": [f"{name}.png"]} for name in ("whole", "cut")]
    (tmp_path / "pool" / "whole.png").write_bytes(whole)
    (tmp_path / "pool" / "cut.png").write_bytes(whole[:40])
    exported = ostlight.export(select(rows, selector={"name": "length"}), tools=["llama-factory"])
    assert set(rows_of(exported.folder / "llama-factory")) == {"whole"}
    assert exported.recipes[0].left_out == {"an image that cannot be decoded": 1}

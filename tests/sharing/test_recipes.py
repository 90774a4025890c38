"""What is written for other trainers holds the pool's conversations as these trainers read them."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

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

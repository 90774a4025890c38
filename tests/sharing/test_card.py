"""The card is one that the Hub reads, and holds nothing that should stay on this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import DatasetCard

import ostlight
from ostlight.sharing.card import cell, clean, model_name

Select = Callable[..., Path]


def card_of(run: Path, **options: Any) -> DatasetCard:
    return DatasetCard.load(ostlight.export(run, **options).folder / "README.md")


def test_the_hub_reads_its_front_matter(select: Select) -> None:
    run = select()
    card = card_of(run)
    (config,) = card.data.to_dict()["configs"]
    (files,) = config["data_files"]
    assert (config["config_name"], files["split"]) == ("default", "train")
    assert [*(run / "export").glob(files["path"])] == [*(run / "export" / "data").iterdir()]
    assert card.data.license == ["cc-by-4.0", "mit", "unknown"]
    assert card.data.size_categories == ["n<1K"]
    assert card.data.task_categories == ["image-text-to-text"]
    assert "random" in card.data.tags


def test_it_says_where_the_records_come_from_how_they_were_chosen_and_what_it_cost(select: Select) -> None:
    run = select(count=4)
    text = card_of(run).text
    assert "| pool.jsonl |" in text
    assert "| score |" in text
    for row in ("selector | random", "budget | count: 4", "rank agreement | not measured", "seed | 0"):
        assert f"| {row}" in text, text
    assert "| pool fingerprint | " in text
    shares = {line.split(" | ")[0].strip("| "): line.split(" | ")[-1].strip("| ") for line in text.splitlines()}
    assert (shares["web"], shares["agents"], shares["pool.jsonl"]) == ("40%", "20%", "40%")


@pytest.mark.parametrize(
    ("given", "front"),
    [
        (["cc-by-4.0"], {"license": "cc-by-4.0"}),
        (["MIT", "apache-2.0"], {"license": ["mit", "apache-2.0"]}),
        (["Our own terms"], {"license": "other", "license_name": "Our own terms"}),
    ],
)
def test_licences_are_those_that_are_named(select: Select, given: list[str], front: dict[str, Any]) -> None:
    data = card_of(select(), license=given).data.to_dict()
    assert {name: value for name, value in data.items() if name.startswith("license")} == front


def test_the_setting_names_the_licence(select: Select) -> None:
    assert card_of(select(pool={"license": "cc0-1.0"})).data.license == "cc0-1.0"


def test_nothing_of_this_machine_is_in_it(select: Select, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "sk-0123456789abcdefghij"
    monkeypatch.setenv("SOME_API_KEY", key)
    given = [
        {"id": "a", "question": "q", "answer": "a", "source": f"x\x1b[31m|<script>{key}\n# head", "license": key},
        {"id": "b", "question": "q", "answer": "b", "source": str(tmp_path / "deep" / "crawl.jsonl")},
    ]
    run = select(given, name="run")
    exported = ostlight.export(run, tools=["llama-factory", "ms-swift", "trl"], license=[f"/home/me/{key}"])
    for file in exported.folder.rglob("*"):
        if file.suffix in (".md", ".yaml", ".py", ".txt") or file.name == "dataset_info.json":
            text = file.read_text()
            assert key not in text
            assert str(tmp_path) not in text
            assert str(Path.cwd()) not in text
            assert "/home/me" not in text
            assert "\x1b" not in text
            assert "<script>" not in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("see /home/me/data/a.json, please", "see a.json, please"),
        ("~/data/a.json", "a.json"),
        (r"C:\Users\me\a.json", "a.json"),
        ("['/srv/x/y', 2]", "['y', 2]"),
        ("org/name and 3/4", "org/name and 3/4"),
        ("https://host/a/b", "https://host/a/b"),
        ("a\x1b[2Jb\nc", r"a\x1b[2Jb c"),
    ],
)
def test_text_is_cleaned(value: str, text: str) -> None:
    assert clean(value) == text


def test_a_cell_cannot_end_its_table() -> None:
    assert cell("a|b\n`c`<i>") == r"a\|b \`c\`\<i\>"


def test_models_are_called_as_others_know_them(tmp_path: Path) -> None:
    (tmp_path / "proxy").mkdir()
    assert model_name("Qwen/Qwen3-VL-2B-Instruct") == "Qwen/Qwen3-VL-2B-Instruct"
    assert model_name(str(tmp_path / "proxy")) == "proxy"
    assert model_name("./models/mine/proxy") == "proxy"

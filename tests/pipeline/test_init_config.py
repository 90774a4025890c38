"""``ostlight init``: what it finds in a user's data, and the configuration it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image as PILImage

import ostlight
from ostlight.config import load_config
from ostlight.data.pool import Pool
from ostlight.errors import DataError, OstlightError, UnknownLayoutError
from ostlight.pipeline.init_config import summarize_pool
from ostlight.selection.registry import find


def write_records(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def chat(question: str, answer: str | None = "yes", **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    messages += [{"role": "assistant", "content": answer}] if answer is not None else []
    return {"messages": messages, **fields}


def test_the_configuration_loads_and_names_the_pool(digits, tmp_path: Path):
    file = ostlight.init_config(digits.pool, tmp_path / "mine.yaml")
    config = load_config(file)
    assert config.pool.path == str(digits.pool)
    assert config.budget.stratify_by == "task"
    assert config.selector.name == "ost"
    text = file.read_text()
    assert "# 48 records: parquet" in text
    assert "# record layout: sharegpt (48)" in text
    assert "48 have an answer, 48 have images" in text
    assert "# first sample (id pool-00000):" in text
    assert "#   assistant: digits" in text


def test_an_existing_file_is_not_overwritten(digits, tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text("mine")
    with pytest.raises(OstlightError, match="not overwritten"):
        ostlight.init_config(digits.pool, file)
    assert file.read_text() == "mine"


def test_a_text_pool_with_rejected_records(tmp_path: Path):
    records = [chat(f"question {n}", source=f"s{n % 3}", page=n) for n in range(30)]
    records += [chat("empty", ""), chat("no answer", None)]
    data = write_records(tmp_path / "odd name #1.jsonl", records)
    summary = summarize_pool(Pool.open(data, require_answer=False))
    assert len(summary.samples) == 31
    assert summary.rejected == {"empty_answer": 1}
    file = ostlight.init_config(data, tmp_path / "text.yaml")
    assert load_config(file).pool.path == str(data)
    text = file.read_text()
    assert "# of 32 records read, 31 are well-formed:\n#   30 have an answer, 0 have images\n" in text
    assert "#   rejected: empty_answer (1)\n" in text
    assert "paths are relative to" not in text


def test_only_a_tag_with_few_repeated_values_is_suggested(tmp_path: Path):
    records = [chat(f"q{n}", page=n, language="en", source=f"s{n % 3}") for n in range(30)]
    summary = summarize_pool(Pool.open(write_records(tmp_path / "pool.jsonl", records)))
    assert summary.stratify_by == "source", "page is different everywhere, language is the same everywhere"


def test_a_pool_without_answers_gets_a_selector_that_needs_none(tmp_path: Path):
    data = write_records(tmp_path / "pool.jsonl", [chat(f"q{n}", None) for n in range(5)])
    config = load_config(ostlight.init_config(data, tmp_path / "unlabelled.yaml"))
    selector = find(config.selector.name).cls
    assert selector is not None
    assert not selector.needs_answers


def test_text_in_the_data_cannot_break_the_configuration(tmp_path: Path):
    nasty = "a\nname: evil\r\x1b[31m: {[ # \u2028"
    data = write_records(tmp_path / "pool.jsonl", [chat(nasty, nasty, source=f"{nasty}{n % 2}") for n in range(12)])
    file = ostlight.init_config(data, tmp_path / "nasty.yaml")
    assert load_config(file).name == "pool"
    assert yaml.safe_load(file.read_text())["budget"]["stratify_by"] == "source"


@pytest.mark.parametrize(
    ("name", "content"), [("empty.jsonl", ""), ("what.bin", "\x00\x01 nothing known"), ("a.jsonl", '{"x": 1}\n')]
)
def test_files_that_hold_no_pool_are_refused(tmp_path: Path, name: str, content: str):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=name):
        ostlight.init_config(tmp_path / name, tmp_path / "x.yaml")
    assert not (tmp_path / "x.yaml").exists()


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="does not exist"):
        ostlight.init_config(tmp_path / "nowhere.jsonl", tmp_path / "x.yaml")


def test_a_table_of_other_columns_gets_a_mapping_to_check(tmp_path: Path):
    (tmp_path / "pool.csv").write_text("image,query,response\n,what?,that\n,who?,them\n")
    file = ostlight.init_config(tmp_path / "pool.csv", tmp_path / "mine.yaml")
    columns = load_config(file).pool.columns
    assert columns is not None
    assert (columns.question, columns.answer, columns.images) == ("query", "response", "image")
    assert "# record layout: columns (2)" in file.read_text()
    assert "columns:" in next(line for line in file.read_text().splitlines() if "TODO check" in line)


def test_a_table_that_suggests_no_mapping_is_refused(tmp_path: Path):
    write_records(tmp_path / "pool.jsonl", [{"weird": "a", "odd": "b"}] * 2)
    with pytest.raises(UnknownLayoutError) as caught:
        ostlight.init_config(tmp_path / "pool.jsonl", tmp_path / "mine.yaml")
    assert caught.value.columns is None


def test_images_that_do_not_open_are_told(tmp_path: Path, logged: Any):
    PILImage.new("RGB", (8, 8)).save(tmp_path / "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "bad.png").write_bytes(whole[:40])
    names = ["good.png", "bad.png"] * 30
    pool = write_records(tmp_path / "pool.jsonl", [chat("<image>what?", image=name) for name in names])
    summary = summarize_pool(Pool.open(pool))
    assert summary.images_opened == 20
    assert 5 <= len(summary.images_bad) <= 20
    assert all("corrupt_image" in problem and "pool.jsonl:record" in problem for problem in summary.images_bad)
    ostlight.init_config(pool, tmp_path / "mine.yaml")
    assert "corrupt_image" in logged()
    assert "corrupt_image" in (tmp_path / "mine.yaml").read_text()
    load_config(tmp_path / "mine.yaml")

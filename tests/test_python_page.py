"""Every snippet of docs/how-to/python.md runs, in order, in one program, as a reader would type it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import ostlight

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "python.md"


def test_the_snippets_run(
    settings: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(ostlight, "configure_logging", lambda: None)  # it would stay for the tests that follow
    monkeypatch.chdir(tmp_path)
    config = settings(selector={"name": "length"}, folder="runs", name="mine")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config))
    names: dict[str, Any] = {}
    snippets = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for number, snippet in enumerate(snippets):
        exec(compile(snippet, f"snippet {number}", "exec"), names)
    assert len(snippets) >= 8
    assert names["frame"]["kept"].sum() == len(names["dataset"]) == 10
    assert names["kept"] == names["selection"].subset.to_list()
    assert len(names["kept"]) == 8
    assert "override budget.fracton=0.2" in capsys.readouterr().out


def test_the_page_names_every_column_of_the_scores(settings: Callable[..., dict[str, Any]]) -> None:
    selection = ostlight.select(settings(selector={"name": "random"}))
    named = set(re.findall(r"`(\w+)`", PAGE.read_text()))
    assert {*selection.scores.column_names} <= named

"""Facts of a run, kept for the report."""

from __future__ import annotations

from pathlib import Path

import pytest

import ostlight
from ostlight.errors import DataError, SelectorError
from ostlight.selection.notes import FILE, read_notes, write_note


def test_notes_add_up_and_the_last_of_a_name_stands(tmp_path: Path):
    folder = tmp_path / "selector"
    assert read_notes(folder) == {}
    write_note(folder, "step_size", 0.5)
    write_note(folder, "groups", ["a", "b"])
    write_note(folder, "step_size", 0.25)
    assert read_notes(folder) == {"step_size": 0.25, "groups": ["a", "b"]}


def test_only_the_first_rank_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RANK", "1")
    write_note(tmp_path, "step_size", 0.5)
    assert read_notes(tmp_path) == {}


def test_what_json_cannot_hold_is_refused(tmp_path: Path):
    for value in (float("nan"), {1, 2}, tmp_path):
        with pytest.raises(SelectorError, match="the note 'step_size' is no JSON .*use numbers"):
            write_note(tmp_path, "step_size", value)


@pytest.mark.parametrize("content", [b"[1]", b"{", b"", b"\xff\xfe"])
def test_damaged_notes_are_named(tmp_path: Path, content: bytes):
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_notes(tmp_path)
    assert caught.value.path == tmp_path / FILE


def test_ost_notes_what_the_report_asks_for_and_a_resumed_run_keeps_it(settings, digits):
    options = {"estimator": "second_order", "probes": 4, "step_size": 0.05, "parameters": "head"}
    ost = {"name": "ost", "options": options}
    config = settings(selector=ost, anchors={"path": str(digits.anchors), "group": "task"})
    selection = ostlight.select(config)
    notes = read_notes(selection.folder.path / "selector")
    assert notes["step_size"] == 0.05
    assert notes["groups"] == sorted(set(notes["groups"]))
    assert len(notes["groups"]) == 7
    assert notes["vector_bytes"] > 0
    assert notes["rank_agreement"]["estimator"] == "second_order"
    assert notes["rank_agreement"]["samples"] == 16
    assert -1 <= notes["rank_agreement"]["spearman"] <= 1
    write_note(selection.folder.path / "selector", "mine", "kept")
    (selection.folder.scores / "part-000001.parquet").unlink()
    ostlight.select(config)
    assert read_notes(selection.folder.path / "selector") == notes | {"mine": "kept"}

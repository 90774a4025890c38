"""Of a selector whose scores are no utilities nothing is said in nats, and nothing of harm."""

from __future__ import annotations

import re
from io import StringIO
from typing import ClassVar

import pytest
from rich.console import Console

import ostlight
from ostlight.reporting.explain import explain
from ostlight.reporting.finished_run import FinishedRun
from ostlight.reporting.score_columns import ScoreColumns
from ostlight.reporting.sources import sources
from ostlight.selection.registry import register
from ostlight.selection.selector import Selector

SAID_OF_UTILITIES = ("utility", "nats", "toxic", "help", "hurt")


@register("tests-clip")
class Clip(Selector):
    """Likeness of image and text, in columns whose names `ost` uses too."""

    def score(self, batch):
        scores = [(-1.0) ** s.position * (s.position % 7) for s in batch.samples]
        return {"score": scores, "alignment": scores, "cosine": scores, "utility_by_group": [[x, x] for x in scores]}


@register("tests-utility")
class Utility(Clip):
    """The same numbers, declared to be utilities."""

    scores_utility: ClassVar[bool] = True


def test_sources_show_scores_as_such(settings):
    folder = ostlight.select(settings(selector={"name": "length"})).folder.path
    printed = Console(file=StringIO(), width=200)
    matrix = sources(folder, "task", printed)
    assert matrix.columns == ["score"]
    text = printed.file.getvalue()
    for word in SAID_OF_UTILITIES:
        assert word not in text
    page = ostlight.report(folder).read_text()
    for word in ("millinats", "Which sources help"):
        assert word not in page


def test_names_of_columns_make_no_score_a_utility(settings, capsys: pytest.CaptureFixture[str]):
    folder = ostlight.select(settings(selector={"name": "tests-clip"})).folder.path
    printed = Console(file=StringIO(), width=200)
    assert sources(folder, "task", printed).columns == ["score"]
    columns = ScoreColumns.read(FinishedRun.open(folder))
    explain(folder, columns.ids[0])
    for word in (*SAID_OF_UTILITIES, "gradient points"):
        assert not re.search(rf"\b{word}", printed.file.getvalue() + capsys.readouterr().out.partition("--layers")[0])
    assert [line for line in columns.run.missing if line.startswith("Utilities by anchor group")]
    assert not columns.run.scores_utility


def test_a_selector_declares_that_its_score_is_a_utility(settings):
    folder = ostlight.select(settings(selector={"name": "tests-utility"})).folder.path
    columns = ScoreColumns.read(FinishedRun.open(folder))
    assert columns.is_utility
    assert columns.toxic.sum() == (columns.score < 0).sum() > 0
    assert len(columns.groups) == 2

"""Of a selector whose scores are no utilities nothing is said in nats, and nothing of harm."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

import ostlight
from ostlight.reporting.sources import sources


def test_sources_show_scores_as_such(settings):
    folder = ostlight.select(settings(selector={"name": "length"})).folder.path
    printed = Console(file=StringIO(), width=200)
    matrix = sources(folder, "task", printed)
    assert matrix.columns == ["score"]
    text = printed.file.getvalue()
    for word in ("utility", "nats", "toxic", "help", "hurt"):
        assert word not in text
    page = ostlight.report(folder).read_text()
    for word in ("millinats", "Which sources help"):
        assert word not in page

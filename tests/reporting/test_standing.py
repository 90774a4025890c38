"""How the lines of a benchmark stand: what names them, and what they are measured against."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ostlight.reporting.page import write_report
from ostlight.reporting.standing import read_standings


@pytest.fixture
def bench(made: Path, tmp_path: Path, results: Callable[..., None]) -> Callable[..., Path]:
    """A finished benchmark's folder, with the results asked for."""

    def write(**of: tuple[str, ...]) -> Path:
        (tmp_path / "config.yaml").write_text((made / "config.yaml").read_text())
        results(tmp_path, **of)
        return tmp_path

    return write


def test_two_protocols_and_mixed_budgets_are_told_apart(bench: Callable[..., Path]):
    folder = bench(protocols=("proportional", "fixed_compute"), budgets=("20%", "20% within task"))
    names = [s.name for s in read_standings(folder / "results.jsonl")]
    assert len(names) == len(set(names))
    assert {"base", "full fixed compute", "good 20% proportional", "good 20% within task proportional"} <= set(names)
    page = write_report(folder).read_text()
    assert "<th>protocol</th>" in page
    assert "<td><bdi>20% within task</bdi></td><td>fixed compute</td>" in page


def test_what_all_lines_share_is_said_once(bench: Callable[..., Path]):
    page = write_report(bench()).read_text()
    assert "All are trained by fixed compute. The budgets are spent within each <bdi>task</bdi>." in page
    assert "<th>protocol</th>" not in page
    assert "good 20%</bdi>" in page

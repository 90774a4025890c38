"""The notebook of the how-to runs as shipped."""

from __future__ import annotations

from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parent.parent / "docs" / "how-to" / "utility_scorer.ipynb"


@pytest.mark.slow  # a kernel of its own: half a minute
def test_the_utility_scorer_notebook_runs(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat", reason="notebooks are executed with nbformat and nbclient")
    nbclient = pytest.importorskip("nbclient", reason="notebooks are executed with nbformat and nbclient")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()

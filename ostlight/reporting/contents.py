"""What the page shows, gathered from a run."""

from __future__ import annotations

import base64
from typing import Any

from scipy.stats import binomtest

from ostlight.benchmarking.files import PLOT
from ostlight.benchmarking.names import shared_settings
from ostlight.benchmarking.results import ResultRow, pareto_optimal
from ostlight.data.checked_parquet import read_parquet
from ostlight.data.reasons import group_by_reason
from ostlight.evaluation.answers import ALL
from ostlight.models.cost import StageCost
from ostlight.pipeline.cost_log import total
from ostlight.pipeline.run_folder import SELECT_AGAIN
from ostlight.reporting.finished_run import FinishedRun
from ostlight.reporting.results_table import read_results
from ostlight.reporting.score_columns import ScoreColumns
from ostlight.reporting.utilities import utilities_section

EVALUATE_AGAIN = "remove it, or run `ostlight evaluate` again"


def page_contents(run: FinishedRun) -> dict[str, Any]:
    """Returns everything the template asks for; what the run holds nothing for is empty, and named in ``missing``."""
    rows = read_results(run.path) if run.is_benchmark else []
    if run.is_benchmark and not rows and run.config.benchmark is not None and run.config.benchmark.train:
        run.missing.append("Results: no training is finished; `ostlight benchmark` goes on.")
    scored = run.scored_runs[0] if run.scored_runs else None
    utilities = utilities_section(ScoreColumns.read(scored)) if scored is not None else None
    if scored is None:
        run.missing.append("Scores: the folder holds none.")
    elif not run.is_benchmark and not run.folder.selection.is_file():
        run.missing.append(f"Selection: {run.folder.selection.name} does not exist; {SELECT_AGAIN}.")
    answers = _answers(run)
    cost_log = _cost_log(run)
    return {
        "run": run,
        "results": rows,
        "common": shared_settings(rows),
        "metric": rows[0].compared_by if rows else None,
        "groups": list(dict.fromkeys(g for row in rows for g in row.values if g != ALL)),
        "baseline": _baseline(run, rows),
        "variants": list(dict.fromkeys(row.variant for row in rows if row.variant)),
        "pareto_optimal": pareto_optimal(rows),
        "plot": _plot(run),
        "scored": utilities,
        "score_folders": _score_folders(run),
        "rejected": _rejected_by_reason(scored or run),
        "answers": answers,
        "targets": _targets(run),
        "cost_log": cost_log,
        "total": total(cost_log, tuple({entry.stage for entry in cost_log})),
        "settings": (run.path / "config.yaml").read_text(),
        "missing": list(dict.fromkeys([*run.missing, *(scored.missing if scored else [])])),
    }


def _score_folders(run: FinishedRun) -> list[tuple[str, str]]:
    """A benchmark's folders of scores and the variants each serves: the one shown, then others with extra columns."""
    shown = []
    for k, scored in enumerate(run.scored_runs if run.is_benchmark else []):
        if k == 0 or scored.extra_columns:
            folder = str(scored.path.relative_to(run.path))
            variants = dict.fromkeys(row["variant"] for row in run.score_index if row["scores"] == folder)
            shown.append((folder, ", ".join(filter(None, variants))))
    return shown


def _baseline(run: FinishedRun, rows: list[ResultRow]) -> str | None:
    """What the selectors are compared to; ``None`` where none is."""
    settings = run.config.benchmark
    return settings.compared_to if settings and any(row.difference is not None for row in rows) else None


def _plot(run: FinishedRun) -> str | None:
    """The plot of a benchmark as a URL that holds it; ``None`` where there is none."""
    file = run.path / PLOT
    if not file.is_file():
        if run.is_benchmark and (run.path / "results.jsonl").is_file():
            run.missing.append(f"Plot: {file.name} does not exist; `ostlight benchmark` writes it where matplotlib is.")
        return None
    return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"


def _rejected_by_reason(run: FinishedRun) -> list[dict[str, Any]]:
    """Rejected records by reason, the most frequent first, with the first few of each and what to do."""
    return [vars(group) for group in group_by_reason(run.quarantine)]


def _cost_log(run: FinishedRun) -> list[StageCost]:
    """The run's cost log and, of a benchmark, its selectors' and that of what they need."""
    selectors = [*run.scored_runs, *run.dependency_runs] if run.is_benchmark else []
    return [*run.cost_log, *(entry for selector in selectors for entry in selector.cost_log)]


def _answers(run: FinishedRun) -> list[dict[str, Any]]:
    """Accuracy of the trained target by group, ``all`` first; empty where it was not evaluated."""
    if not run.folder.predictions.is_file():
        if not run.is_benchmark:
            run.missing.append("Accuracy: the target was not trained and evaluated in this folder.")
        return []
    table = read_parquet(run.folder.predictions, EVALUATE_AGAIN, ["group", "correct"])
    correct_by_group: dict[str, list[bool]] = {ALL: table["correct"].to_pylist()}
    for row in table.to_pylist():
        if row["group"]:
            correct_by_group.setdefault(row["group"], []).append(row["correct"])
    names = [ALL, *sorted(correct_by_group.keys() - {ALL})]
    return [_accuracy(name, correct_by_group[name]) for name in names]


def _targets(run: FinishedRun) -> list[dict[str, Any]]:
    """Accuracy of every trained target of the run; empty where there is but one."""
    found = []
    for file in sorted(run.folder.targets.glob("*/predictions.parquet")):
        correct = read_parquet(file, EVALUATE_AGAIN, ["correct"])["correct"].to_pylist()
        found.append(_accuracy(file.parent.name, correct))
    return found if len(found) > 1 else []


def _accuracy(group: str, correct: list[bool]) -> dict[str, Any]:
    """Share of correct answers and its 95% interval (Wilson, 1927): sound for few questions and shares near 0 and 1."""
    tested = binomtest(sum(correct), len(correct))
    low, high = tested.proportion_ci(0.95, method="wilson")
    return {"group": group, "count": tested.n, "share": tested.statistic, "low": low, "high": high}

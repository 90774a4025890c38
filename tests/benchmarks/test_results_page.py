"""A finished benchmark becomes its page; what was written below the last heading stays."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import results_page

import ostlight
from ostlight.benchmarking.results import RunResult, summarise
from ostlight.benchmarking.table import accuracy_table
from ostlight.config import load_config


def test_the_page_holds_the_tables_and_keeps_its_reading(settings, digits, tmp_path: Path):
    section = {
        "selectors": [{"name": "random"}, {"name": "loss"}],
        "budgets": [{"fraction": 0.25}],
        "seeds": [0],
        "defect_labels": str(digits.defect_labels),
        "workers": 1,
    }
    values = settings(benchmark=section)
    source = results_page.ROOT / "configs" / "benchmark" / "proxy.yaml"
    ostlight.benchmark(values)
    run = Path(values["folder"]) / "run"
    config = load_config(run / "config.yaml")
    first = results_page.page(run, config, source, "")
    assert (run / "table.md").read_text().strip() in first
    assert "    ostlight benchmark configs/benchmark/proxy.yaml" in first
    assert "| loss | 48 |" in first
    assert f"Made on {date.today()} on" in first
    assert first.endswith(f"{results_page.READING}\n")
    again = results_page.page(run, config, source, first + "\nIt is so.\n")
    assert again == first.rstrip() + "\n\nIt is so.\n"


def test_a_judges_accuracy_is_told_by_defect():
    said = results_page.judged(np.array([0.9, 0.2, 0.7, 0.1]), ["clean", "clean", "truncated", "near_duplicate"])
    assert said == "25.0% right (clean 50%, near_duplicate 0%, truncated 0%)"


def test_a_judges_lines_are_marked_with_its_own_accuracy(tmp_path: Path):
    folder, pool = tmp_path / "selectors" / "judge-1", tmp_path / "pool"
    (folder / "scores").mkdir(parents=True)
    pool.mkdir()
    (folder / "config.yaml").write_text(f"pool: {{path: {pool / 'pool.parquet'}}}")
    defects = {"id": ["a", "b", "c", "d"], "defect": ["clean", "clean", "truncated", "truncated"]}
    pq.write_table(pa.table(defects), pool / "defect_labels.parquet")
    pq.write_table(
        pa.table({"id": ["a", "b", "c", "d"], "score": [0.9, 0.1, 0.2, None]}),
        folder / "scores" / "part-000000.parquet",
    )
    rivals = [{"name": "random"}, {"name": "llm_judge", "label": "judge", "options": {"model": "runs"}}]
    config = load_config({"digitmath": {}, "benchmark": {"selectors": rivals, "budgets": [{"fraction": 0.5}]}})
    lines = [
        RunResult(label, "50%", "", 0, {"all": 0.5}, variant=v) for v in ("x", "y") for label in ("random", "judge")
    ]
    table = accuracy_table(summarise(lines), None).markdown().strip()
    users = {"random-1": [("x", "random"), ("y", "random")], "judge-1": [("y", "judge")]}
    right = results_page.judges(tmp_path, config, users)
    assert right == {("y", "judge"): "66.7% right"}
    marked = results_page.with_judges(table, right)
    assert "| y | judge (66.7% right) | 50% |" in marked
    assert marked.partition("\n\n")[0].replace(" (66.7% right)", "") == table


def test_the_comment_at_the_head_of_the_yaml_alone_asks_the_question(settings, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(results_page, "ROOT", tmp_path)
    source = tmp_path / "asked.yaml"
    source.write_text("# Is it so?\n# Run: ostlight benchmark asked.yaml\nname: asked\n# A step is a step.\n")
    for name in ("table.md", "costs.md"):
        (tmp_path / name).write_text("| selector |\n| --- |\n")
    (tmp_path / "selectors").mkdir()
    (tmp_path / "scored.jsonl").touch()
    (tmp_path / "trained").mkdir()
    (tmp_path / "trained" / "base.json").touch()
    section = {"selectors": [{"name": "random"}], "budgets": [{"fraction": 0.25}]}
    page = results_page.page(tmp_path, load_config(settings(name="asked", benchmark=section)), source, "")
    assert page.startswith("# Asked\n\nIs it so?\n\n    ostlight benchmark asked.yaml\n")
    assert "A step" not in page
    assert "Not in the totals: the training of the models that were there before" in page


def test_what_a_rivals_model_learnt_is_told_from_its_training(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(results_page, "ROOT", tmp_path)
    (tmp_path / "runs").mkdir()
    found = {"all": 0.625, "misread": 0.25, "right": 1.0}
    (tmp_path / "runs" / "training.json").write_text(json.dumps({"right_on_dev_digits": found}))
    rivals = [{"name": "random"}, {"name": "llm_judge", "label": "judge", "options": {"model": "runs"}}]
    section = {"selectors": rivals, "budgets": [{"fraction": 0.5}]}
    config = load_config({"digitmath": {}, "benchmark": section})
    (told,) = results_page.trained_accuracy(config)
    assert told == "\njudge on digits of neither pool nor test: 62.5% right (misread 25%; right 100%)."


def test_a_folder_of_an_earlier_version_is_refused_with_the_mend(tmp_path: Path):
    (tmp_path / "scored.jsonl").write_text('{"scores": "selectors/a", "selector": "ost", "variant": ""}\n')
    with pytest.raises(SystemExit, match="run `ostlight benchmark` once more"):
        results_page.folder_users(tmp_path)


def test_notes_tell_what_the_warm_up_kept(tmp_path: Path):
    folder = tmp_path / "proxies" / "proxy-1" / "proxy"
    folder.mkdir(parents=True)
    losses = [[0, 1.5], [4, 0.5]]
    said = {"samples": 100, "watched_on": "development set", "kept_step": 4, "losses": losses}
    (folder / "warmup.json").write_text(json.dumps(said))
    told = results_page.notes(tmp_path, {"proxy-1": "warm-up"})
    assert told.startswith("- warm-up: ")
    assert "kept at step 4; loss on the development set 1.500 before, 0.500 after" in told
    assert not results_page.notes(tmp_path, {}), "an earlier state of the code left it"


def test_variants_that_differ_in_seeds_alone_are_repetitions(tmp_path: Path):
    values = {"exact": (0.50, 0.60, 0.70), "ost": (0.55, 0.67, 0.73), "base": (0.1, 0.1, 0.1)}
    cells = [
        {"selector": s, "budget": "20%" * (s != "base"), "protocol": "", "seed": 0, "variant": f"pool {k}"}
        | {"group": "all", "metric": "accuracy", "value": value}
        for s, row in values.items()
        for k, value in enumerate(row)
    ]
    (tmp_path / "results.jsonl").write_text("\n".join(map(json.dumps, [*cells, cells[0] | {"group": "sum"}])))
    exact = {"name": "ost", "label": "exact", "options": {"estimator": "exact"}}
    section = {"selectors": [{"name": "ost"}, exact], "budgets": [{"fraction": 0.2}], "baseline": "exact"}
    variants = [{"label": f"pool {k}", "overrides": [f"digitmath.seed={k}", f"seed={k}"]} for k in range(3)]
    config = load_config({"digitmath": {}, "benchmark": section | {"variants": variants}})
    assert results_page.repetitions(config) == {"Over the repetitions": ["pool 0", "pool 1", "pool 2"]}
    told = results_page.over(["pool 0", "pool 1", "pool 2"], tmp_path, config).splitlines()
    assert told[2] == "| exact | 20% |  | 60.0 ± 24.8 |  |"
    assert told[3] == "| ost | 20% |  | 65.0 ± 22.8 | +5.0 ± 5.0 |"
    assert told[4] == "| base |  |  | 10.0 ± 0.0 |  |"


def test_pools_of_several_kinds_have_a_mean_of_their_own():
    def found(*overrides: list[str]) -> dict[str, list[str]]:
        variants = [{"label": str(k), "overrides": o} for k, o in enumerate(overrides)]
        section = {"selectors": [{"name": "random"}], "budgets": [{"fraction": 0.2}], "variants": variants}
        return results_page.repetitions(load_config({"digitmath": {}, "benchmark": section}))

    alike = [[f"seed={k}"] for k in range(3)]
    assert found(*alike) == {"Over the repetitions": ["0", "1", "2"]}
    several = found(*alike, ["seed=3", "digitmath.anchors=10"])
    assert several == {"Over the repetitions": ["0", "1", "2"], "Over all pools": ["0", "1", "2", "3"]}
    assert found(["digitmath.anchors=10"], ["seed=1"], ["seed=2"]) == {}

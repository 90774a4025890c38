"""A comparison from one configuration: every planned run once, resumed, with its cost."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from forks import run_script
from sklearn.metrics import roc_auc_score

import ostlight
from ostlight.benchmarking import benchmark as benchmark_module
from ostlight.benchmarking import resources
from ostlight.benchmarking import tasks as tasks_module
from ostlight.benchmarking.experiment import Experiment
from ostlight.benchmarking.files import WRITTEN
from ostlight.benchmarking.plan import plan_runs, run_training
from ostlight.benchmarking.results import Interval, RunResult, summarise
from ostlight.benchmarking.table import pairs_note, results_table
from ostlight.benchmarking.task_graph import build_train_tasks
from ostlight.benchmarking.tasks import SelectTask
from ostlight.config import load_config
from ostlight.config.budget import Budget
from ostlight.config.schema import Benchmark, SelectorChoice
from ostlight.errors import (
    BadRecord,
    BenchmarkError,
    ConfigError,
    DataError,
    PendingError,
    RunChangedError,
    RunInUseError,
    SelectorError,
)
from ostlight.pipeline.lock import RUN, locked
from ostlight.pipeline.run_folder import RunFolder
from ostlight.reporting.contents import page_contents
from ostlight.reporting.finished_run import FinishedRun
from ostlight.reporting.page import write_report
from ostlight.reporting.results_table import read_results
from ostlight.reporting.score_columns import ScoreColumns
from ostlight.selection import registry
from ostlight.selection.registry import load

pytestmark = pytest.mark.usefixtures("few_samples_compared")


@pytest.fixture
def experiment(settings, digits):
    section = {
        "selectors": [{"name": "full"}, {"name": "random"}],
        "budgets": [{"fraction": 0.25, "stratify_by": "task"}],
        "protocols": ["equal_steps"],
        "seeds": [0, 1],
        "defect_labels": str(digits.defect_labels),
        "workers": 1,
    }
    training = {"epochs": 0.25, "batch_size": 4, "lr": 1e-4}
    base = settings(benchmark=section)
    return base | {"target": base["target"] | {"training": training}}


def score_index(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "score_index.jsonl").read_text().splitlines()]


def figures(folder: Path) -> list[dict]:
    """All but the measured times."""
    records = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    return [r for r in records if not r["metric"].endswith("_s")]


def test_every_planned_run_is_trained_once_and_all_files_are_written(experiment, logged):
    rows = ostlight.benchmark(experiment)
    folder = Path(experiment["folder"]) / "run"
    assert [(row.label, row.budget) for row in rows] == [
        ("base", ""),
        ("oracle", "25% by task"),
        ("full", ""),
        ("random", "25% by task"),
    ]
    assert [p.name.rpartition("-")[0] for p in sorted((folder / "trained").iterdir())] == [
        "base-seed0",
        *(f"full-equal_steps-seed{s}" for s in (0, 1)),
        *(f"oracle-25%_by_task-equal_steps-seed{s}" for s in (0, 1)),
        *(f"random-25%_by_task-equal_steps-seed{s}" for s in (0, 1)),
    ]
    by_label = {row.label: row for row in rows}
    assert by_label["oracle"].defect_share == 0
    assert by_label["full"].defect_share == pytest.approx(25 / 48, abs=0.1)
    assert by_label["base"].training_flops == 0
    assert by_label["full"].training_flops > 0
    for name in WRITTEN:
        assert (folder / name).stat().st_size > 100, name
    records = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert set(records[0]) == {"selector", "budget", "protocol", "seed", "group", "metric", "value"}
    assert "difference to random, points (95%)" in (folder / "table.md").read_text()
    assert "random" in logged()


def test_a_rerun_changes_no_byte_and_trains_nothing(experiment):
    ostlight.benchmark(experiment)
    folder = Path(experiment["folder"]) / "run"
    before = {n: (folder / n).read_bytes() for n in WRITTEN}
    costs = (folder / "cost_log.jsonl").read_text()
    ostlight.benchmark(experiment)
    assert {n: (folder / n).read_bytes() for n in before} == before
    assert (folder / "cost_log.jsonl").read_text() == costs


@pytest.mark.slow
def test_the_same_seeds_elsewhere_give_the_same_tables_measured_times_aside(experiment, tmp_path):
    first, second = (experiment | {"folder": str(tmp_path / name)} for name in ("one", "two"))
    ostlight.benchmark(first)
    ostlight.benchmark(second)
    one, two = (Path(c["folder"]) / "run" for c in (first, second))
    for name in ("table.md", "table.csv", "table.jsonl"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    assert figures(one) == figures(two)


def test_defect_labels_given_later_apply_to_earlier_selections(experiment):
    section = experiment["benchmark"]
    ostlight.benchmark(experiment | {"benchmark": section | {"defect_labels": None}})
    later = {row.label: row.defect_share for row in ostlight.benchmark(experiment)}
    assert later["random"] > 0
    assert later["full"] == pytest.approx(25 / 48, abs=0.1)


def test_a_lost_run_is_repeated_with_the_same_result(experiment):
    ostlight.benchmark(experiment)
    folder = Path(experiment["folder"]) / "run"
    (planned,) = (folder / "trained").glob("random-25%_by_task-equal_steps-seed1-*.json")
    before = json.loads(planned.read_text())
    planned.unlink()
    ostlight.benchmark(experiment)
    after = json.loads(planned.read_text())
    assert after["items"] == before["items"]
    assert len(after["items"]) == 21
    assert after["values"]["all"] == pytest.approx(sum(after["items"]) / 21)


def test_a_failed_run_is_reported_and_the_rest_goes_on(experiment, monkeypatch, logged):
    real = tasks_module.fit

    def fails_once(model, data, job, cost):
        if job.stage.startswith("random") and job.stage.endswith("seed1"):
            raise MemoryError("no memory")
        return real(model, data, job, cost)

    monkeypatch.setattr(tasks_module, "fit", fails_once)
    with pytest.raises(BenchmarkError, match="1 task failed:\n  - random.*seed1: MemoryError: no memory"):
        ostlight.benchmark(experiment)
    folder = Path(experiment["folder"]) / "run"
    assert "failed: random" in logged()
    seeds = {r.split(",")[0]: r.split(",")[3] for r in (folder / "table.csv").read_text().splitlines()[1:]}
    assert seeds == {"base": "1", "oracle": "2", "full": "2", "random": "1"}
    monkeypatch.undo()
    rows = ostlight.benchmark(experiment)
    assert [row.seeds for row in rows] == [1, 2, 2, 2]


def test_a_judge_that_waits_for_replies_has_not_failed(experiment, logged):
    experiment["benchmark"] |= {
        "selectors": [{"name": "random"}, {"name": "llm_judge", "options": {"backend": "batch", "model": "m"}}],
        "budgets": [{"fraction": 0.25}],
    }
    with pytest.raises(PendingError, match=r"^1 waiting:\n  - .*requests wait for replies: .*3 more depend on it"):
        ostlight.benchmark(experiment)
    assert "waiting: " in logged()
    assert "failed" not in logged()
    folder = Path(experiment["folder"]) / "run"
    assert '"random"' in (folder / "results.jsonl").read_text()
    (batch,) = folder.glob("selectors/llm_judge-*/selector/batch")
    score = json.dumps({"reason": "r", "score": 4})
    body = {"choices": [{"message": {"content": score}, "finish_reason": "stop"}], "usage": {}}
    asked = [json.loads(line) for file in batch.glob("requests-*") for line in file.read_text().splitlines()]
    replies = [{"custom_id": one["custom_id"], "response": {"status_code": 200, "body": body}} for one in asked]
    (batch / "replies.jsonl").write_text("".join(json.dumps(reply) + "\n" for reply in replies))
    assert "llm_judge" in [row.label for row in ostlight.benchmark(experiment)]


def test_what_a_selector_asks_about_again_is_in_the_next_run_of_a_benchmark(experiment, monkeypatch):
    fails = {"now": True}

    class Flaky(registry.load("length")):
        """Long answers, where the server is not busy."""

        retried_reasons = ("busy",)

        def measure(self, batch):
            columns = super().measure(batch)
            failed = [fails["now"] and sample.position % 3 == 0 for sample in batch.samples]
            return columns | {"failure": [BadRecord("busy", "later") if one else None for one in failed]}

    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    registry.register("flaky")(Flaky)
    section = {"selectors": [{"name": "random"}, {"name": "flaky"}], "budgets": [{"fraction": 0.9}], "seeds": [0]}
    config = experiment | {"benchmark": experiment["benchmark"] | section}
    first = {row.label: row.kept for row in ostlight.benchmark(config)}
    fails["now"] = False
    second = {row.label: row.kept for row in ostlight.benchmark(config)}
    assert first["flaky"] == round(0.9 * 32)
    assert second["flaky"] == second["random"] == round(0.9 * 48)
    before = len(list((Path(config["folder"]) / "run" / "trained").iterdir()))
    ostlight.benchmark(config)
    assert len(list((Path(config["folder"]) / "run" / "trained").iterdir())) == before


def test_what_depends_on_failed_scores_is_counted(experiment, monkeypatch):
    def fails(*_: object, **__: object) -> None:
        raise DataError("the scorer is ill")

    monkeypatch.setattr(tasks_module, "score_pool", fails)
    with pytest.raises(BenchmarkError) as failed:
        ostlight.benchmark(experiment | {"benchmark": experiment["benchmark"] | {"selectors": [{"name": "full"}]}})
    assert "scores of full: the scorer is ill (3 more depend on it)" in str(failed.value)
    assert "base" in (Path(experiment["folder"]) / "run" / "table.md").read_text()


def test_variants_share_what_they_make_from_the_same(experiment):
    section = experiment["benchmark"] | {
        "selectors": [{"name": "random"}, {"name": "loss"}],
        "seeds": [0],
        "variants": [
            {"label": "as it is"},
            {"label": "warmed up", "overrides": ["proxy.warmup.fraction=0.5"]},
        ],
    }
    rows = ostlight.benchmark(experiment | {"benchmark": section})
    folder = Path(experiment["folder"]) / "run"
    assert [(row.variant, row.label) for row in rows] == [
        (variant, label) for variant in ("as it is", "warmed up") for label in ("base", "oracle", "random", "loss")
    ]
    assert len(list((folder / "selectors").glob("random-*"))) == 1
    assert len(list((folder / "selectors").glob("loss-*"))) == 2
    assert len(list((folder / "trained").glob("*random*"))) == 1
    assert len(list((folder / "proxies").iterdir())) == 1
    of = [(row["selector"], row["variant"]) for row in score_index(folder)]
    assert of == [(label, variant) for variant in ("as it is", "warmed up") for label in ("random", "loss")]
    assert len({row["scores"] for row in score_index(folder)}) == 3
    page = write_report(folder).read_text()
    assert "<b><bdi>loss</bdi></b> (<bdi>" in page
    assert "selectors/random" not in page, "its scores are no more than a number a sample"
    cold, warm = (row for row in rows if row.label == "loss")
    assert warm.selection_flops > cold.selection_flops > 0
    assert "variant" in json.loads((folder / "results.jsonl").read_text().splitlines()[0])
    shutil.copytree(next((folder / "selectors").glob("loss-*")), folder / "selectors" / "loss-of-older-code")
    assert len(FinishedRun.open(folder).scored_runs) == 3


def test_choices_that_differ_only_in_how_they_select_are_scored_once(experiment):
    options, as_set = {"selection": "top", "rank": 4}, {"selection": "set", "set_step_size": 1.0, "set_batch_size": 8}
    section = experiment["benchmark"] | {
        "selectors": [
            {"name": "ost", "options": options},
            {"name": "ost", "label": "set", "options": options | as_set},
        ],
        "seeds": [0],
        "baseline": "ost",
    }
    rows = ostlight.benchmark(experiment | {"benchmark": section})
    folder = Path(experiment["folder"]) / "run"
    assert [row.label for row in rows] == ["base", "oracle", "ost", "set"]
    (place,) = (folder / "selectors").iterdir()
    assert place.name.startswith("ost-")
    assert [(row["scores"], row["selector"]) for row in score_index(folder)] == [
        (f"selectors/{place.name}", label) for label in ("ost", "set")
    ]
    assert len(list((place / "selections").glob("*.json"))) == 2
    (run,) = FinishedRun.open(folder).scored_runs
    assert [p.budget for p in ScoreColumns.read(run).selections] == ["25% by task, ost", "25% by task, set"]
    alone, together = rows[2:]
    assert together.selection_flops == pytest.approx(alone.selection_flops, rel=0.2)
    reversed_rows = {"selectors": section["selectors"][::-1]}
    again = ostlight.benchmark(experiment | {"benchmark": section | reversed_rows})
    means = [{row.label: row.values["all"].mean for row in each} for each in (again, rows)]
    assert means[0] == means[1]
    assert list((folder / "selectors").iterdir()) == [place], "the order of the rows names no other folder"


def test_another_tag_that_groups_the_trials_is_another_selection(experiment):
    def selections(*overrides: str) -> set[str]:
        config = load_config(experiment, *overrides)
        tasks = build_train_tasks([Experiment(config, RunFolder.of(config))])
        return {task.selection.key for task in tasks if isinstance(task.selection, SelectTask)}

    plain, grouped = selections("evaluation.by=null"), selections("evaluation.by=task")
    assert len(plain) == len(grouped) == 3, "the whole pool, and a random subset for each seed"
    assert not plain & grouped


@pytest.mark.slow
def test_a_stochastic_selector_has_its_own_proxy_for_each_seed(experiment):
    parts = [{"name": "loss", "keep": 0.5}, {"name": "random"}]
    combined = {"name": "combine", "label": "half", "options": {"how": "cascade", "of": parts}}
    section = experiment["benchmark"] | {"selectors": [{"name": "random"}, combined, {"name": "loss"}]}
    warm = {"fraction": 0.25, "training": {"epochs": 1, "batch_size": 4, "lr": 1e-4}}
    rows = ostlight.benchmark(experiment | {"benchmark": section, "proxy": experiment["proxy"] | {"warmup": warm}})
    assert [(row.label, row.seeds) for row in rows][2:] == [("random", 2), ("half", 2), ("loss", 2)]
    folder = Path(experiment["folder"]) / "run"
    assert len(list((folder / "proxies").iterdir())) == 2, "the benchmark's own seed is one of them"


def test_an_unknown_tag_is_refused_before_anything_is_scored(experiment):
    with pytest.raises(ConfigError) as refused:
        ostlight.benchmark(experiment | {"evaluation": experiment["evaluation"] | {"by": "tusk"}})
    (problem,) = refused.value.problems
    assert problem.startswith("evaluation.by is 'tusk'")
    assert problem.endswith("task"), "the tags there are"
    assert not (Path(experiment["folder"]) / "run" / "selectors").exists()


def test_anchors_that_do_not_serve_an_option_are_refused_before_anything_is_scored(experiment):
    turns = {"name": "ost", "label": "in turn", "options": {"selection": "round_robin"}}
    section = experiment["benchmark"] | {"selectors": [{"name": "ost"}, {"name": "random"}, turns]}
    with pytest.raises(SelectorError, match="'in turn': selection=round_robin reads each anchor's utility"):
        ostlight.benchmark(experiment | {"benchmark": section})
    assert not (Path(experiment["folder"]) / "run" / "selectors").exists()


def test_all_bad_variants_and_baselines_are_reported_together(experiment):
    section = experiment["benchmark"] | {
        "baseline": "best",
        "workers": 0,
        "variants": [{"label": "a", "overrides": ["target.steps=3"]}, {"label": "a"}, {"label": ""}],
    }
    with pytest.raises(ConfigError) as error:
        ostlight.benchmark(experiment | {"benchmark": section})
    settings_named = [problem.split()[0].rstrip(":") for problem in error.value.problems]
    assert sorted(settings_named) == [
        "benchmark.baseline",
        "benchmark.variants",
        "benchmark.variants",
        "benchmark.workers",
    ]
    section = experiment["benchmark"] | {"variants": [{"label": "a", "overrides": ["target.steps=3"]}]}
    with pytest.raises(ConfigError, match="benchmark.variants, 'a': unknown key 'target.steps'"):
        ostlight.benchmark(experiment | {"benchmark": section})


def test_tasks_on_several_devices_are_refused_before_anything_is_written(experiment, monkeypatch):
    several = [{"label": "wide", "overrides": ["compute.num_nodes=2"]}]
    for change in (
        {"compute": experiment["compute"] | {"devices": 2, "strategy": "ddp"}},
        {"benchmark": experiment["benchmark"] | {"variants": several}},
    ):
        with pytest.raises(ConfigError) as refused:
            ostlight.benchmark(experiment | change)
        assert refused.value.problems[0].startswith(("compute.devices=2: ", "compute.num_nodes=2: "))
    for variable, value in (("WORLD_SIZE", "2"), ("SLURM_PROCID", "3")):
        with monkeypatch.context() as environment:
            environment.setenv(variable, value)
            with pytest.raises(ConfigError) as refused:
                ostlight.benchmark(experiment)
        assert refused.value.problems[0].startswith(f"{variable}={value}: ")
    assert not Path(experiment["folder"]).exists()


def test_a_selector_registered_by_this_program_runs_in_this_process(experiment, monkeypatch):
    class Registered(load("length")):
        """Longest answers first."""

    monkeypatch.setitem(registry._registered, "registered", Registered)
    ran = []
    monkeypatch.setattr(benchmark_module, "run_in_processes", lambda *_: ran.append("workers"))
    monkeypatch.setattr(benchmark_module, "run_here", lambda _: ran.append("here"))
    for named in ("length", "registered"):
        combined = f"{{name: combine, options: {{of: [{{name: {named}}}, {{name: loss}}]}}}}"
        varied = {"label": "it", "overrides": [f"benchmark.selectors=[{{name: random}}, {combined}]"]}
        section = experiment["benchmark"] | {"variants": [varied], "workers": 2}
        with pytest.raises(BenchmarkError):
            ostlight.benchmark(experiment | {"benchmark": section})
    assert ran == ["workers", "here"]


def test_tasks_in_this_process_use_the_threads_of_a_worker(experiment, monkeypatch):
    threads = []
    monkeypatch.setattr(resources, "_trainings_in_memory", lambda _: 1)
    monkeypatch.setattr(benchmark_module, "run_here", lambda _: threads.append(torch.get_num_threads()))
    torch.set_num_threads(3)
    with pytest.raises(BenchmarkError):
        ostlight.benchmark(experiment | {"benchmark": experiment["benchmark"] | {"workers": None}})
    assert threads == [1]
    assert torch.get_num_threads() == 3


def test_a_folder_in_use_is_refused(experiment):
    folder = Path(experiment["folder"]) / "run"
    folder.mkdir(parents=True)
    with locked(folder, RUN, "`ostlight select`", "wait"), pytest.raises(RunInUseError):
        ostlight.benchmark(experiment)
    assert not (folder / "trained").exists()


@pytest.mark.slow
def test_worker_processes_give_the_same_tables(experiment):
    ostlight.benchmark(experiment)
    section = experiment["benchmark"] | {"workers": 2}
    ostlight.benchmark(experiment | {"name": "in_workers", "benchmark": section})
    here, in_workers = (Path(experiment["folder"]) / name for name in ("run", "in_workers"))
    assert (in_workers / "table.csv").read_bytes() == (here / "table.csv").read_bytes()
    trained = [json.loads(line)["selector"] for line in (in_workers / "cost_log.jsonl").read_text().splitlines()]
    assert len(trained) == len(set(trained)) == 6


def test_scores_of_a_dependency_are_shared_with_the_selector_itself(experiment):
    parts = [{"name": "loss", "keep": 0.5}, {"name": "length"}]
    combined = {"name": "combine", "label": "half", "options": {"how": "cascade", "of": parts}}
    section = experiment["benchmark"] | {"selectors": [combined, {"name": "loss"}], "seeds": [0], "baseline": "base"}
    rows = ostlight.benchmark(experiment | {"benchmark": section})
    folder = Path(experiment["folder"]) / "run"
    flops = {row.label: row.selection_flops for row in rows}
    assert flops["half"] >= flops["loss"] > 0, "each row pays for what it needs, as if it were alone"
    (loss_folder,) = folder.glob("selectors/loss-*")
    stages = [json.loads(line)["stage"] for line in (loss_folder / "cost_log.jsonl").read_text().splitlines()]
    assert stages.count("score") == 1
    assert not list(folder.glob("selectors/*/dependencies")), "nothing is scored again for the combination"


RUN_WHOLE_THEN_KILL_ANOTHER_AND_RUN_IT_AGAIN = """
import os, signal, sys, time
from pathlib import Path
import ostlight
from forks import forked, status_of

whole, killed, folder = sys.argv[1:]
assert status_of(forked(lambda: ostlight.benchmark(whole))) == 0
job = forked(lambda: ostlight.benchmark(killed))
while not any(Path(folder, "trained").glob("*.json")):
    time.sleep(0.002)
os.kill(job, signal.SIGKILL)
assert status_of(job) == -signal.SIGKILL
assert not Path(folder, "table.md").exists()
assert status_of(forked(lambda: ostlight.benchmark(killed))) == 0
"""


@pytest.mark.slow
def test_killed_and_run_again_it_writes_what_an_undisturbed_run_does(experiment, tmp_path):
    training = {"epochs": 1, "batch_size": 4, "lr": 3e-3}
    section = experiment["benchmark"] | {"selectors": [{"name": "random"}, {"name": "loss"}]}
    common = experiment | {"benchmark": section, "target": experiment["target"] | {"training": training}}
    whole, killed = (Path(experiment["folder"]) / name for name in ("whole", "killed"))
    files = [tmp_path / f"{folder.name}.yaml" for folder in (whole, killed)]
    for file in files:
        file.write_text(json.dumps(common | {"name": file.stem}))
    script = tmp_path / "script.py"
    script.write_text(RUN_WHOLE_THEN_KILL_ANOTHER_AND_RUN_IT_AGAIN)
    ended = run_script(script, *files, killed)
    assert ended.returncode == 0, ended.stdout
    for name in ("table.md", "table.csv", "table.jsonl"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name
    assert figures(whole) == figures(killed)
    accuracies = {f["value"] for f in figures(whole) if (f["group"], f["metric"]) == ("all", "accuracy")}
    assert len(accuracies) > 2, "trainings that change something"


def test_a_missing_benchmark_section_is_refused(settings):
    with pytest.raises(ConfigError, match="the benchmark section is missing"):
        ostlight.benchmark(settings())


def test_protocols_fix_the_passes_or_the_steps(settings):
    config = load_config(settings(), "target.training.epochs=2", "target.training.batch_size=10")
    section = Benchmark(
        selectors=[SelectorChoice("random")],
        budgets=[Budget(fraction=0.2)],
        protocols=["equal_epochs", "equal_steps"],
        seeds=[0],
    )
    planned_runs = [c for c in plan_runs(section, with_oracle=False) if c.label == "random"]
    trainings = {c.protocol: run_training(config, c, pool_size=500) for c in planned_runs}
    assert (trainings["equal_epochs"].epochs, trainings["equal_epochs"].steps) == (2, None)
    assert (trainings["equal_steps"].epochs, trainings["equal_steps"].steps) == (None, 100)


def test_intervals_use_students_t():
    interval = Interval.of([0.5, 0.6, 0.7])
    assert interval.mean == pytest.approx(0.6)
    # t(0.975, 2 degrees of freedom) = 4.30265
    assert interval.half_width == pytest.approx(4.30265 * 0.1 / np.sqrt(3), rel=1e-4)
    assert np.isnan(Interval.of([0.5]).half_width)


def test_rows_average_over_seeds_only():
    results = [
        RunResult("ost", budget, "equal_steps", seed, {"all": seed / 10}, training_s=seed)
        for budget in ("20%", "50%")
        for seed in (1, 3)
    ]
    rows = summarise(results)
    assert [(row.budget, row.values["all"].mean, row.training_s) for row in rows] == [
        ("20%", pytest.approx(0.2), 2),
        ("50%", pytest.approx(0.2), 2),
    ]


@pytest.mark.slow
def test_best_of_reads_the_scores_of_ost_beside_it(experiment):
    ost = {"name": "ost", "options": {"estimator": "first_order", "step_size": 0.1}}
    candidates = [ost, {"name": "random"}, {"name": "loss"}]
    best_of = {"name": "best_of", "options": {"steps": 2, "candidates": candidates}}
    section = experiment["benchmark"] | {"selectors": [best_of, ost], "seeds": [0]}
    rows = {row.label: row for row in ostlight.benchmark(experiment | {"benchmark": section})}
    folders = (Path(experiment["folder"]) / "run" / "selectors").iterdir()
    assert sorted(folder.name.split("-")[0] for folder in folders) == ["best_of", "ost", "random"]
    assert rows["best_of"].selection_flops > rows["ost"].selection_flops > 0


def test_rows_can_be_compared_by_the_loss_of_the_expected_answers(experiment):
    section = experiment["benchmark"] | {"metric": "loss", "baseline": "base", "selectors": [{"name": "random"}]}
    evaluation = {"by": "task"}
    rows = ostlight.benchmark(experiment | {"benchmark": section, "evaluation": evaluation})
    folder = Path(experiment["folder"]) / "run"
    base = rows[0]
    assert base.metric == "loss"
    questions = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert {record["metric"] for record in questions if record["group"] == "read"} == {"loss"}
    trained = next(row for row in rows if row.label == "random")
    # The difference is over items, the values are means over them: they agree.
    difference = trained.values["all"].mean - base.values["all"].mean
    assert trained.difference.mean == pytest.approx(difference)
    assert difference < 0, "training lowers the loss"
    assert json.loads((folder / "table.jsonl").read_text().splitlines()[0])["loss"]["all"] == base.values["all"].mean
    assert "loss, nats" in write_report(folder).read_text()
    read = [{group: value.mean for group, value in row.values.items()} for row in read_results(folder)]
    assert read == [{group: value.mean for group, value in row.values.items()} for row in rows]


def test_without_training_it_scores_and_says_which_scores_separate_defects(experiment, digits):
    section = {
        "selectors": [{"name": "random"}, {"name": "loss"}, {"name": "full"}],
        "train": False,
        "auroc_within": ["task", "no such tag"],
    }
    assert ostlight.benchmark(experiment | {"benchmark": experiment["benchmark"] | section}) == []
    folder = Path(experiment["folder"]) / "run"
    assert not (folder / "trained").exists()
    assert not list((folder / "selections").glob("*")) if (folder / "selections").exists() else True
    rows = {row["selector"]: row for row in map(json.loads, (folder / "auroc.jsonl").read_text().splitlines())}
    entry = next(entry for entry in score_index(folder) if entry["selector"] == "loss")
    scores = pq.read_table(folder / entry["scores"] / "scores")
    labels = pq.read_table(digits.defect_labels)
    defective = {
        id for id, d in zip(labels["id"].to_pylist(), labels["defect"].to_pylist(), strict=True) if d != "clean"
    }
    is_clean = [id not in defective for id in scores["id"].to_pylist()]
    expected = roc_auc_score(is_clean, scores["score"].to_numpy())
    assert rows["loss"]["auroc"]["all"]["value"] == pytest.approx(expected)
    assert rows["loss"]["auroc"]["task"]["pairs"] < rows["loss"]["auroc"]["all"]["pairs"]
    assert rows["loss"]["auroc"]["no such tag"] is None
    assert rows["loss"]["flops"] > rows["random"]["flops"] == 0
    assert "<table" in write_report(folder).read_text()


def positions_of(folder: Path, label: str) -> list[list[int]]:
    """What each budget of a selector keeps, by the index of scores."""
    rows = [row for row in score_index(folder) if row["selector"] == label]
    return [np.load(folder / row["scores"] / "selections" / f"{row['selection']}.npy").tolist() for row in rows]


def test_replaced_images_are_not_scored_and_trained_on_as_if_they_were_the_old_ones(experiment, tmp_path: Path):
    rows = pq.read_table(experiment["pool"]["path"]).to_pylist()
    for k, row in enumerate(rows):
        (tmp_path / f"{k}.png").write_bytes(row["image"]["bytes"])
        row["image"] = f"{k}.png"
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = experiment["benchmark"] | {"selectors": [{"name": "length"}, {"name": "loss"}], "train": False}
    config = experiment | {"pool": {"path": str(tmp_path / "pool.jsonl")}, "benchmark": section}
    ostlight.benchmark(config)
    ostlight.benchmark(config)  # nothing has changed
    (tmp_path / "3.png").write_bytes((tmp_path / "4.png").read_bytes() + b" ")
    with pytest.raises(RunChangedError, match=r"holds scores of images that are others now.*3.png.*remove .*/run to"):
        ostlight.benchmark(config)


def test_selections_made_with_other_weights_or_token_counts_are_made_again(experiment, tmp_path: Path):
    rows = pq.read_table(experiment["pool"]["path"])
    half = rows.num_rows // 2
    pq.write_table(rows.slice(0, half), tmp_path / "x.parquet")
    pq.write_table(rows.slice(half), tmp_path / "y.parquet")

    def kept(weight: float, max_length: int, budget: dict) -> list[list[int]]:
        pieces = [
            {"path": str(tmp_path / "x.parquet"), "source": "x", "weight": weight},
            {"path": str(tmp_path / "y.parquet"), "source": "y", "weight": 1.0},
        ]
        section = experiment["benchmark"] | {
            "selectors": [{"name": "length"}], "budgets": [budget], "train": False
        }  # fmt: skip
        target = experiment["target"] | {"max_length": max_length}
        ostlight.benchmark(experiment | {"pool": {"path": pieces}, "target": target, "benchmark": section})
        return positions_of(tmp_path / "runs" / "run", "length")

    by_source = {"fraction": 0.2, "stratify_by": "source"}
    (even,) = kept(1.0, 4096, by_source)
    (uneven,) = kept(9.0, 4096, by_source)
    assert sum(k < half for k in uneven) > sum(k < half for k in even)
    (whole,), (cut,) = (kept(9.0, length, {"tokens": 500, "stratify_by": "source"}) for length in (4096, 20))
    assert len(cut) > len(whole) > 0


@pytest.mark.parametrize(
    ("ids", "defects", "says"),
    [
        (["zz1", "zz2"], ["wrong", None], "no id of .* is that of a record of the pool"),
        (["A", "A"], ["wrong", None], "row 1: the id 'A' stands there twice"),
        (["A", None], ["wrong", None], "row 1: None is no id"),
        (["A", "B"], ["wrong", "clean"], "says which records are clean, and .* records of the pool have no label"),
        (["A", "B"], [True, False], "row 0: a defect is its name as text, null where the record is clean; got True"),
    ],
)
def test_defect_labels_that_do_not_fit_are_refused(experiment, tmp_path: Path, ids, defects, says: str):
    first = pq.read_table(experiment["pool"]["path"])["id"][0].as_py()
    ids = [first if id == "A" else id for id in ids]
    pq.write_table(pa.table({"id": pa.array(ids, pa.string()), "defect": defects}), tmp_path / "labels.parquet")
    labelled = experiment["benchmark"] | {"defect_labels": str(tmp_path / "labels.parquet"), "train": False}
    with pytest.raises(DataError, match=says.replace("'A'", repr(first))):
        ostlight.benchmark(experiment | {"benchmark": labelled})


def test_whole_numbers_name_records_and_a_shared_id_names_none(experiment, tmp_path: Path):
    """Odd records are wrong and short."""
    wrong = [k % 2 == 1 for k in range(24)]
    for name, id_of in (("own", lambda k: k), ("shared", lambda k: k // 2)):
        rows = [{"id": id_of(k), "question": "q", "answer": "a" * (5 if wrong[k] else 50 + k)} for k in range(24)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    labels = pa.table({"id": list(range(24)), "defect": ["wrong" if w else None for w in wrong]})
    pq.write_table(labels, tmp_path / "labels.parquet")
    section = experiment["benchmark"] | {"selectors": [{"name": "length"}], "budgets": [{"fraction": 0.5}]}
    section |= {"defect_labels": str(tmp_path / "labels.parquet"), "train": False}
    config = experiment | {"pool": {"path": str(tmp_path / "own.jsonl")}, "benchmark": section}
    ostlight.benchmark(config)
    (row,) = map(json.loads, (tmp_path / "runs" / "run" / "auroc.jsonl").read_text().splitlines())
    assert (row["auroc"]["all"]["value"], row["auroc"]["all"]["pairs"]) == (1.0, 144)
    with pytest.raises(DataError, match="an id that several records of the pool share; make ids unique, label '0#2'"):
        ostlight.benchmark(config | {"name": "two", "pool": {"path": str(tmp_path / "shared.jsonl")}})


def test_records_without_the_tag_are_in_no_pair_within_it(experiment, tmp_path: Path):
    """Each question has a wrong long answer and a right short one; what has no question is told apart rightly."""
    rows = [
        {"id": f"q{k}", "question": "q", "answer": "a" * (9 if k % 2 else 4), "asked": str(k // 2)} for k in range(8)
    ]
    rows += [{"id": f"r{k}", "question": "q", "answer": "a" * (1 if k % 2 else 20)} for k in range(8)]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    labels = pa.table({"id": [row["id"] for row in rows], "defect": [None, "wrong"] * 8})
    pq.write_table(labels, tmp_path / "labels.parquet")
    section = experiment["benchmark"] | {"selectors": [{"name": "length"}], "budgets": [{"fraction": 0.5}]}
    section |= {"defect_labels": str(tmp_path / "labels.parquet"), "train": False, "auroc_within": ["asked"]}
    ostlight.benchmark(experiment | {"pool": {"path": str(tmp_path / "pool.jsonl")}, "benchmark": section})
    (row,) = map(json.loads, (tmp_path / "runs" / "run" / "auroc.jsonl").read_text().splitlines())
    assert (row["auroc"]["asked"]["value"], row["auroc"]["asked"]["pairs"]) == (0.0, 4)


def test_a_trained_model_is_gone_before_the_next_task_begins(experiment, monkeypatch):
    """Also where Python does not look for cycles by itself, as with few large objects."""
    models: list[weakref.ref] = []
    plain = tasks_module.TrainTask._run

    def watched(self):
        assert [one for one in models if one() is not None] == []
        return plain(self)

    def noted(model, *rest):
        models.append(weakref.ref(model))
        return fit(model, *rest)

    fit = tasks_module.fit
    monkeypatch.setattr(tasks_module.TrainTask, "_run", watched)
    monkeypatch.setattr(tasks_module, "fit", noted)
    gc.collect()
    gc.disable()
    try:
        ostlight.benchmark(experiment)
    finally:
        gc.enable()
    assert len(models) == 6


def test_samples_that_the_target_cannot_take_are_reported(experiment, logged):
    section = {"selectors": [{"name": "random"}], "seeds": [0], "budgets": [{"fraction": 0.25}]}
    config = experiment | {"benchmark": experiment["benchmark"] | section}
    config["target"] = config["target"] | {"max_length": 13}
    ostlight.benchmark(config)
    assert "selected samples cannot be trained on and are left out; the first: " in logged()
    records = map(json.loads, (Path(config["folder"]) / "run" / "results.jsonl").read_text().splitlines())
    assert any(r["metric"] == "unusable" and r["selector"] == "random" and r["value"] > 0 for r in records)


def test_the_page_counts_what_dependencies_cost_and_names_what_was_compared(experiment):
    parts = [{"name": "loss"}, {"name": "length"}]
    section = {"selectors": [{"name": "combine", "options": {"of": parts}}], "train": False}
    section["baseline"] = "combine"
    ostlight.benchmark(experiment | {"benchmark": experiment["benchmark"] | section})
    folder = Path(experiment["folder"]) / "run"
    run = FinishedRun.open(folder)
    assert [one.path.name.split("-")[0] for one in run.dependency_runs] == ["loss", "length"]
    page = page_contents(run)
    assert page["total"].flops > 0
    assert {entry.selector for entry in page["cost_log"] if entry.stage == "score"} == {"combine", "loss", "length"}
    text = write_report(folder).read_text()
    assert "ostlight · benchmark" in text
    assert "nothing is trained here by now" in text


def test_tables_of_other_settings_do_not_stay_beside_the_new_ones(experiment, monkeypatch):
    ostlight.benchmark(experiment)
    folder = Path(experiment["folder"]) / "run"

    def fails(*_: object) -> None:
        raise DataError("ill")

    monkeypatch.setattr(tasks_module, "fit", fails)
    target = experiment["target"] | {"training": experiment["target"]["training"] | {"lr": 0.5}}
    with pytest.raises(BenchmarkError):
        ostlight.benchmark(experiment | {"target": target})
    assert {row.label for row in read_results(folder)} == {"base"}, "which no training changes"


def test_a_difference_over_fewer_pairs_than_seeds_says_so(experiment):
    ones, halves = np.ones(40), np.tile([0.0, 1.0], 20)
    runs = [
        RunResult("good", "20%", "equal_steps", seed=s, values={"all": 1.0}, items=ones - 0.1 * (np.arange(40) == s))
        for s in range(5)
    ]
    runs += [RunResult("random", "20%", "equal_steps", seed=s, values={"all": 0.5}, items=halves) for s in range(2)]
    rows = summarise(runs, "random")
    (good,) = (row for row in rows if row.label == "good")
    assert (good.seeds, good.difference.seeds) == (5, 2)
    assert "of 2 seeds" in results_table(rows, "random").markdown()
    (only,) = (row for row in summarise(runs[:6], "random") if row.label == "good")
    assert pairs_note(only.difference, only.seeds) == " of items"


def test_a_task_that_ends_without_its_file_has_failed(experiment, monkeypatch):
    monkeypatch.setattr(tasks_module.OracleTask, "run", lambda self: None)
    with pytest.raises(BenchmarkError, match="it ended without its file"):
        ostlight.benchmark(experiment)

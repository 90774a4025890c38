"""A proxy sharded over two ranks (FSDP2, gloo, CPU) is warmed up and scores as a whole one; what cannot is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from forks import run_script
from mixed_pool import mixed_run

import ostlight
from ostlight.errors import OstlightError, SelectorError
from ostlight.selection.notes import read_notes
from ostlight.selection.scores import read_score_table

SHARDED = {"devices": 2, "strategy": "fsdp", "shard_proxy": True}
SGD = {"name": "ost", "options": {"step": "sgd"}}

SELECT = """
import json
import os
import sys
import time
from pathlib import Path
import ostlight
from forks import ends_of_ranks
from ostlight.models import logits as model_logits
from ostlight.models.module import MultimodalModel
from ostlight.models.tuning import blocks_of_text
from ostlight.pipeline.scoring.batch_scorer import BatchScorer
from ostlight.pipeline.scoring.writer import ShardWriter
job = json.loads(Path(sys.argv[1]).read_text())
ostlight.configure_logging()
load, logits, score = MultimodalModel.load, model_logits.next_token_logits, BatchScorer.score
write, seen, scored = ShardWriter.write_on_batch_end, [], []

def noted_logits(model, batch, **options):
    seen[:] = [sample.id for sample in batch.samples]
    return logits(model, batch, **options)

def noted_score(scorer, batch):
    scored.append(batch)
    return score(scorer, batch)

def load_refusing(*arguments, **options):
    model = load(*arguments, **options)
    for number, block in enumerate(blocks_of_text(model.model)):
        def forward(*inputs, number=number, forward=block.forward, **more):
            kind = job["refused"].get(f"{number}") if scored else None
            if kind is not None and kind in seen:
                raise ValueError(f"{kind} is refused in block {number}")
            return forward(*inputs, **more)
        block.forward = forward
    return model

def write_failing(writer, *arguments):
    if os.environ.get("LOCAL_RANK") == "1" and list(writer.folder.glob("part-*")):
        if job["failure"] == "error":
            raise OSError("no space left")
        if job["failure"] == "killed":
            os.kill(os.getpid(), 9)
    return write(writer, *arguments)

def select():
    model_logits.next_token_logits, BatchScorer.score, MultimodalModel.load = noted_logits, noted_score, load_refusing
    ShardWriter.write_on_batch_end = write_failing
    try:
        ostlight.select(job["config"])
    except ostlight.OstlightError as error:
        print(f"rank {os.environ['LOCAL_RANK']} ends: {error}", flush=True)
        raise SystemExit(1)

ends = ends_of_ranks(select, job["ranks"])
Path(job["ends"]).write_text(json.dumps(ends))
sys.exit(any(status for status, _ in ends))
"""


@pytest.fixture
def selected(settings, tmp_path: Path):
    """Selects from a pool of images, text and broken records; returns the run folder, and what was printed."""
    config_of = mixed_run(settings, tmp_path)

    def select(name: str, ranks: int, selector: dict[str, Any], status: int = 0, **changed: Any) -> tuple[Path, str]:
        config = config_of(name, selector)
        # Shards of 6: all images, all text, or broken; the first rank has four of them, the second three.
        config["compute"] |= {"shard_size": 6, "tokens_per_batch": 60}
        config["compute"] |= SHARDED if ranks == 2 else {}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config))
        (tmp_path / "script.py").write_text(SELECT)
        job = {"config": str(tmp_path / f"{name}.yaml"), "ranks": ranks, "refused": {}, "failure": "", **changed}
        (tmp_path / "job.json").write_text(json.dumps(job | {"ends": str(tmp_path / "ends.json")}))
        ended = run_script(tmp_path / "script.py", tmp_path / "job.json")
        assert ended.returncode == status, ended.stdout
        return tmp_path / "runs" / name, ended.stdout

    return select


Select = Callable[..., tuple[Path, str]]


def assert_same_scores(one: Path, two: Path, tolerance: float = 1e-9) -> None:
    tables = [read_score_table(run / "scores") for run in (one, two)]
    for name in ("id", "state", "reason"):
        assert tables[0][name] == tables[1][name]
    for name in set(tables[0].column_names) & {"score", "loss", "alignment"}:
        values = [[v for v in table[name].to_pylist() if v is not None] for table in tables]
        middle = sorted(map(abs, values[0]))[len(values[0]) // 2]
        assert values[1] == pytest.approx(values[0], rel=0, abs=tolerance * middle), name
    kept = [pq.read_table(run / "selection.parquet").filter(pa.compute.field("kept"))["id"] for run in (one, two)]
    assert set(kept[0].to_pylist()) == set(kept[1].to_pylist())


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"step": "ekfac", "parameters": "all"}, {"step": "adam"}], ids=str)
def test_ost_warms_up_and_scores_as_with_a_whole_proxy(selected: Select, options: dict[str, Any]):
    """Of two samples the model refuses one before its first block and one within the second: the rank takes part in the
    rest of the pass, and scores its batch one by one."""
    refused, ost = {"0": "record-8", "1": "record-20"}, {"name": "ost", "options": options}
    (one, _), (two, printed) = (selected(f"ost-{ranks}", ranks, ost, refused=refused) for ranks in (1, 2))
    losses = [
        [loss for _, loss in json.loads((run / "proxy" / "warmup.json").read_text())["losses"]] for run in (one, two)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)
    notes = [read_notes(run / "selector") for run in (one, two)]
    in_float32 = options.get("step") == "adam"  # its second moments
    assert notes[1]["step_size"] == pytest.approx(notes[0]["step_size"], rel=1e-7 if in_float32 else 1e-9)
    assert notes[0]["rank_agreement"]["samples"] == 16
    assert "rank_agreement" not in notes[1]
    assert "sharded" in notes[1]["rank_agreement_not_measured"]
    assert "rank agreement with exact: not measured" in printed
    reasons = read_score_table(two / "scores")["reason"].to_pylist()
    assert [k for k, reason in enumerate(reasons) if reason == "selector_error"] == [8, 20]
    assert_same_scores(one, two, 1e-6 if in_float32 else 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["loss", "ifd"])
def test_selectors_of_forward_passes_score_it(selected: Select, name: str):
    refused = {"0": "record-8", "1": "record-20"}
    one, two = (selected(f"{name}-{ranks}", ranks, {"name": name}, refused=refused)[0] for ranks in (1, 2))
    assert_same_scores(one, two)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_rank_that_fails_ends_all_and_the_next_run_resumes(selected: Select, tmp_path: Path):
    one, _ = selected("one", 1, SGD)
    for failure, said in (("error", "rank 1 failed"), ("killed", "a rank is gone")):
        two, printed = selected(failure, 2, SGD, status=1, failure=failure)
        ends = json.loads((tmp_path / "ends.json").read_text())
        assert all(status for status, _ in ends), printed
        assert max(after for _, after in ends) - min(after for _, after in ends) < 30, printed
        (line,) = [line for line in printed.splitlines() if line.startswith("rank 0 ends:")]
        assert said in line
        written = {file: file.stat().st_mtime_ns for file in (two / "scores").glob("part-*.parquet")}
        assert 0 < len(written) < 7
        selected(failure, 2, SGD)
        assert {file: file.stat().st_mtime_ns for file in written} == written
        assert_same_scores(one, two)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "first_order": ({"estimator": "first_order"}, "set estimator=finite_difference"),
    "top": ({"selection": "top"}, "estimator=projected"),
    "random_products": ({"random_products": 64}, "leave random_products out"),
}


@pytest.mark.parametrize("options", REFUSED)
def test_options_that_need_whole_weights_are_refused_before_the_warm_up(settings, tmp_path: Path, options: str):
    given, said = REFUSED[options]
    config = settings(selector={"name": "ost", "options": given})
    config["proxy"]["warmup"] = {"fraction": 0.5}
    config["compute"] |= SHARDED
    with pytest.raises(SelectorError) as refused:
        ostlight.select(config)
    assert said in str(refused.value)
    assert "set estimator=finite_difference" in str(refused.value)
    assert not (tmp_path / "runs" / "run" / "proxy").exists()


def test_other_ways_of_not_scoring_it_are_refused_by_name(settings):
    cases: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({"name": "grad_norm"}, {}, "grad_norm"),
        ({"name": "best_of"}, {}, "best_of"),
        (SGD, {"anchors.group": "task"}, "anchors.group"),
        (SGD, {"compute.precision": "bf16-true"}, "compute.precision=32-true"),
        (SGD, {"proxy.dtype": "bfloat16"}, "proxy.dtype"),
        (SGD, {"compute.strategy": "ddp"}, "strategy=fsdp"),
    ]
    for selector, changed, said in cases:
        config = settings(selector=selector)
        config["compute"] |= SHARDED
        with pytest.raises(OstlightError, match=said):
            ostlight.select(config, changed)
    (problem,) = ostlight.validate(config, {"selector.options.estimator": "exact"}).problems
    assert problem.startswith("compute.shard_proxy: selector 'ost' with estimator=exact")
    assert ostlight.validate(config).problems == []


def test_a_plan_shows_what_a_rank_holds(settings):
    config = settings(selector={"name": "ost"})
    config["proxy"]["warmup"] = {"fraction": 0.5}
    whole, sharded = (
        ostlight.plan(config, {"plan.flops_per_s": 1e9, **{f"compute.{name}": v for name, v in compute.items()}})
        for compute in ({"devices": 2}, SHARDED)
    )
    for one, two in zip(whole.stages[:2], sharded.stages[:2], strict=True):
        assert two.memory["weights"] == one.memory["weights"] // 2
        assert two.memory["weights"] + two.memory["weights gathered"] <= 1.5 * one.memory["weights"]
    one, two = (plan.stages[1].memory for plan in (whole, sharded))
    assert two["gradient vectors"] == one["gradient vectors"] // 2
    assert one["factors"] / 2 <= two["factors"] < 0.6 * one["factors"], "of whole parameters"

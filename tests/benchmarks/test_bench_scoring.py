"""The scoring benchmark on a miniature model: what it checks before timing, and the records it writes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import _memory
import _scoring_implementations as scoring
import _scoring_shapes
import bench_scoring
import pytest
import torch
from _record import Recorder

BENCHMARKS = Path(bench_scoring.__file__).parent
MINI = _scoring_shapes.Shape(
    "64x2", lambda: _scoring_shapes.llama(64, 2, vocabulary=64), tokens=12, answer_tokens=8, batch=4
)
FIELDS = {
    "bench", "case", "metric", "value", "unit", "n", "p20", "p80", "commit", "device", "versions", "when"
}  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def setting_of(parameter_set: str = "blocks", dtype: torch.dtype = torch.float32) -> scoring.ScoringContext:
    return scoring.ScoringContext.of(MINI, parameter_set, "cpu", dtype, counts=(4, 16, 32))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("parameter_set", ["blocks", "lora"])
def test_every_contender_is_timed_behind_a_green_check_and_recorded(
    parameter_set: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setting = setting_of(parameter_set)
    implementations = scoring.implementations(setting, probes=(4, 16))
    before = [parameter.detach().clone() for parameter in setting.model.parameters()]
    out = tmp_path / "scoring.jsonl"
    lines, succeeded = bench_scoring.time_all(Recorder("bench_scoring", out), setting, implementations, rounds=2)
    assert succeeded, capsys.readouterr().out
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| estimator=exact",
        "| estimator=finite_difference",
        "| estimator=first_order",
        "| estimator=first_order random_products=1024",
        "| estimator=second_order K=4",
        "| estimator=second_order K=16",
        "| estimator=projected rank=32",
        "| estimator=projected rank=32 utility_by_anchor",
        "| estimator=second_order K=16 norms=off",
        "| estimator=naive_loop K=16",
        "| estimator=naive_vmap K=16",
    ]
    assert all(torch.equal(a, b) for a, b in zip(before, setting.model.parameters(), strict=True))

    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(records) == 4 * len(implementations)
    assert len(lines) == 2 + len(implementations)
    assert all(set(one) == FIELDS and one["value"] > 0 for one in records)
    case = f"estimator=second_order K=16 parameters={parameter_set} device=cpu shape=64x2 T=12 batch=4"
    found = {one["metric"]: one for one in records if one["case"] == case}
    assert set(found) == {"ratio_to_train_step", "samples_per_s", "peak_memory_ratio", "speedup_over_exact"}
    assert found["ratio_to_train_step"]["n"] == 2
    assert found["ratio_to_train_step"]["p20"] <= found["ratio_to_train_step"]["value"]
    exact = next(one for one in records if one["case"].startswith("estimator=exact") and "speedup" in one["metric"])
    assert exact["value"] == 1.0
    assert any("bar <=" in line and "bar >=" in line for line in lines)


def broken() -> torch.Tensor:
    raise RuntimeError("beyond me\nin detail")


def timed(implementations: list[scoring.Implementation], setting: Any, out: Path) -> tuple[bool, list[str]]:
    """Whether all succeeded, and the implementations on record."""
    _, succeeded = bench_scoring.time_all(Recorder("bench_scoring", out), setting, implementations, rounds=1)
    cases = [json.loads(line)["case"].split(" parameters=")[0] for line in out.read_text().splitlines()]
    return succeeded, list(dict.fromkeys(cases))


def test_a_wrong_engine_is_left_out_and_the_rest_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setting = setting_of()
    by_name = {one.name: one for one in scoring.implementations(setting, probes=(4, 16))}
    first, second, third = (by_name[f"estimator={name}"] for name in ("exact", "second_order K=4", "second_order K=16"))
    wrong = replace(second, run=lambda: 1.01 * second.run(), may_fail=True)
    succeeded, names = timed([first, wrong, third], setting, tmp_path / "out.jsonl")
    assert not succeeded
    assert names == [first.name, third.name]
    told = f"left out: {second.name}: Refused: not timed: {second.name} is .* off plain autograd"
    assert re.search(told, capsys.readouterr().out)


def test_targets_that_exceed_half_of_the_free_memory_are_left_out_and_the_record_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    each = setting_of().target_bytes
    monkeypatch.setattr(scoring, "free_bytes", lambda _: 2 * 17 * each)
    setting = setting_of()
    names = [one.name for one in scoring.implementations(setting, probes=(4, 16, 64))]
    assert "estimator=second_order K=16" in names
    assert not {"estimator=second_order K=64", "estimator=projected rank=32"} & set(names)
    bench_scoring.record_left_out(Recorder("bench_scoring", tmp_path / "out.jsonl"), setting, (4, 16, 32))
    (record,) = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert record["case"] == "K=32 parameters=blocks device=cpu shape=64x2"
    assert (record["metric"], record["value"]) == ("left_out_targets", 33 * each)
    assert "left out: K=32: " in capsys.readouterr().out


@pytest.mark.parametrize("fails", ["exact", "by_responses"])
def test_what_runs_out_of_memory_costs_no_other_figures(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, fails, lambda *_: broken())
    setting = setting_of()
    implementations = scoring.implementations(setting, probes=(4,))
    succeeded, names = timed(implementations, setting, tmp_path / "out.jsonl")
    lost = {"exact": "estimator=exact", "by_responses": "estimator=projected rank=32"}[fails]
    assert not succeeded
    assert names == [one.name for one in implementations if not one.name.startswith(lost)]


def test_a_step_that_fails_half_way_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = setting_of()
    before = [parameter.detach().clone() for parameter in setting.model.parameters()]
    run = scoring.exact(setting)
    gradient = setting.gradient(0)
    monkeypatch.setattr(setting, "gradient", lambda _: gradient)
    monkeypatch.setattr(scoring, "losses_of", lambda *_: broken())
    with pytest.raises(RuntimeError, match="beyond me"):
        run()
    assert all(torch.equal(a, b) for a, b in zip(before, setting.model.parameters(), strict=True))


@pytest.mark.parametrize("may_fail", [True, False])
def test_what_fails_is_left_out_aloud_and_tells_in_the_end_unless_it_may(
    may_fail: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setting = setting_of()
    fails = scoring.Implementation("estimator=exact", broken, 1, may_fail)
    engine = scoring.implementations(setting, probes=())[2]
    succeeded, names = timed([fails, engine], setting, tmp_path / "out.jsonl")
    assert succeeded == may_fail
    assert names == [engine.name]
    assert "left out: estimator=exact: RuntimeError: beyond me\nin detail\n" in capsys.readouterr().out
    assert "speedup_over_exact" not in (tmp_path / "out.jsonl").read_text()


def test_the_exit_status_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bench_scoring.SHAPES, "256x4", MINI)
    monkeypatch.setattr(sys, "argv", ["bench_scoring.py", "--device", "cpu", "--threads", "1", "--rounds", "1"])
    for run, status in ((torch.ones(1, 1).clone, 0), (broken, 1)):
        implementation = scoring.Implementation("estimator=exact", run, 1)
        monkeypatch.setattr(bench_scoring, "implementations", lambda _, implementation=implementation: [implementation])
        with pytest.raises(SystemExit) as end:
            bench_scoring.main()
        assert int(end.value.code) == status  # type: ignore[arg-type]


def test_peak_counts_what_is_alive_at_once_and_nothing_known() -> None:
    known = torch.zeros(1000)

    def work() -> torch.Tensor:
        first = known + 1
        del first
        known.add_(1)
        return known.double()

    assert _memory.peak_bytes(work, "cpu", [known]) == 8000


def test_shapes_hold_what_they_promise() -> None:
    with torch.device("meta"):
        large = _scoring_shapes.internvl3_1b()
    assert sum(parameter.numel() for parameter in large.parameters()) == pytest.approx(938e6, rel=2e-3)
    shape = _scoring_shapes.SHAPES["digitmath"]
    model = shape.build().eval()
    inputs, labels = shape.samples(model, 3, 0, "cpu")
    assert (labels != -100).sum(1).tolist() == [14] * 3
    assert scoring.losses_of(model, inputs, labels).isfinite().all()


def test_it_imports_without_what_a_gpu_machine_may_lack() -> None:
    absent = ("omegaconf", "wandb", "lightning", "peft", "typer", "pyarrow")
    code = f"import sys; sys.modules |= dict.fromkeys({absent}); import bench_scoring"
    path = {"PYTHONPATH": ":".join(map(str, (BENCHMARKS, BENCHMARKS.parent, BENCHMARKS.parent / "kernels")))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=path, check=False)
    assert done.returncode == 0, done.stderr

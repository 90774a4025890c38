"""The scoring benchmark on a miniature model: what it checks before timing, and the records it writes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import _memory
import _scoring_contenders
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


def setting_of(scope: str = "blocks", dtype: torch.dtype = torch.float32) -> _scoring_contenders.Setting:
    return _scoring_contenders.Setting.of(MINI, scope, "cpu", dtype, most_probes=16)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("scope", ["blocks", "lora"])
def test_every_contender_is_timed_behind_a_green_check_and_recorded(
    scope: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setting = setting_of(scope)
    contenders = bench_scoring.usable(setting, _scoring_contenders.contenders_of(setting, probes=(4, 16)))
    assert [one.name for one in contenders] == [
        "estimator=exact",
        "estimator=first_order how=central_difference",
        "estimator=first_order how=engine",
        "estimator=second_order K=4",
        "estimator=second_order K=16",
        "estimator=projected K=32",
        "estimator=second_order K=16 norms=off",
        "estimator=naive_loop K=16",
        "estimator=naive_vmap K=16",
    ], capsys.readouterr().out
    before = [parameter.detach().clone() for parameter in setting.model.parameters()]
    figures = bench_scoring.measure(setting, contenders, rounds=2)
    assert all(torch.equal(a, b) for a, b in zip(before, setting.model.parameters(), strict=True))

    out = tmp_path / "scoring.jsonl"
    lines = bench_scoring.record(Recorder("bench_scoring", out), setting, figures)
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(records) == 4 * len(contenders)
    assert len(lines) == 2 + len(contenders)
    assert all(set(one) == FIELDS and one["value"] > 0 for one in records)
    case = f"estimator=second_order K=16 scope={scope} device=cpu shape=64x2 T=12 batch=4"
    found = {one["metric"]: one for one in records if one["case"] == case}
    assert set(found) == {"ratio_to_train_step", "samples_per_s", "peak_memory_ratio", "speedup_over_exact"}
    assert found["ratio_to_train_step"]["n"] == 2
    assert found["ratio_to_train_step"]["p20"] <= found["ratio_to_train_step"]["value"]
    exact = next(one for one in records if one["case"].startswith("estimator=exact") and "speedup" in one["metric"])
    assert exact["value"] == 1.0
    assert any("bar <=" in line and "bar >=" in line for line in lines)


def test_a_wrong_engine_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = setting_of()
    right = _scoring_contenders.contenders_of(setting, probes=(4,))
    wrong = [replace(one, run=lambda one=one: 1.01 * one.run()) for one in right if "K=4" in one.name]
    with pytest.raises(SystemExit, match="not timed: estimator=second_order K=4 is .* off plain autograd"):
        bench_scoring.usable(setting, wrong)


def test_what_may_fail_is_left_out_aloud_and_what_may_not_is_raised(capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> torch.Tensor:
        raise RuntimeError("beyond me\nin detail")

    setting = setting_of(dtype=torch.bfloat16)
    assert bench_scoring.usable(setting, [_scoring_contenders.Contender("x", broken, 1, may_fail=True)]) == []
    assert capsys.readouterr().out == "left out: x: RuntimeError: beyond me\nin detail\n"
    with pytest.raises(RuntimeError, match="beyond me"):
        bench_scoring.usable(setting, [_scoring_contenders.Contender("x", broken, 1)])


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
    assert _scoring_contenders.losses_of(model, inputs, labels).isfinite().all()


def test_it_imports_without_what_a_gpu_machine_may_lack() -> None:
    absent = ("omegaconf", "wandb", "lightning", "peft", "typer", "pyarrow")
    code = f"import sys; sys.modules |= dict.fromkeys({absent}); import bench_scoring"
    path = {"PYTHONPATH": ":".join(map(str, (BENCHMARKS, BENCHMARKS.parent, BENCHMARKS.parent / "kernels")))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=path, check=False)
    assert done.returncode == 0, done.stderr

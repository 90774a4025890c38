"""The kernels' benchmarks on a CPU: they run, nothing wrong is timed, and plain PyTorch computes the same."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import bench_grad_dots
import bench_one_step_head
import pytest
import torch
from _kernels import Refused
from _record import Recorder
from torch import Tensor

METRICS = {
    bench_grad_dots: {
        "ratio_to_weight_gradient", "per_vector_ratio_to_weight_gradient",
        "weight_gradient_time", "weight_gradient_best", "grad_dots_time", "grad_dots_best",
    },
    bench_one_step_head: {"speedup_over_step_and_measure", "speedup_over_full_vocabulary", "time_per_candidate"},
}  # fmt: skip


@pytest.mark.parametrize("bench", METRICS, ids=lambda bench: bench.__name__)
def test_the_cpu_path_runs(bench: ModuleType, tmp_path: Path) -> None:
    with torch.no_grad():
        bench.on_cpu(Recorder(bench.__name__, tmp_path / "out.jsonl"), rounds=1)
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert {record["metric"] for record in records} == METRICS[bench]
    assert all(record["value"] > 0 for record in records)


@pytest.mark.parametrize(
    ("bench", "baseline"), [(bench_grad_dots, "per_vector"), (bench_one_step_head, "step_and_measure")]
)
def test_a_wrong_baseline_is_not_timed(bench: ModuleType, baseline: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = getattr(bench, baseline)

    def wrong(*given: object) -> Tensor:
        return 1.01 * right(*given)

    wrong.__name__ = baseline
    monkeypatch.setattr(bench, baseline, wrong)
    with torch.no_grad(), pytest.raises(Refused, match=f"not timed: {baseline} is off by"):
        bench.on_cpu(Recorder("bench", None), rounds=1)


@torch.no_grad()
@pytest.mark.parametrize("name", bench_one_step_head.KEPT)
def test_what_is_kept_of_the_anchors_gives_the_utilities(name: str) -> None:
    case = bench_one_step_head.inputs(2, 16, 4, 16, 64, 300, "cpu", torch.float32)
    got = bench_one_step_head.Kept(case, name)()
    assert bench_one_step_head.error_of(got, bench_one_step_head.expected_of(case)) <= 1e-4


@torch.no_grad()
def test_other_ways_to_the_utilities() -> None:
    """Every word at any step; the first order where the step is small enough, and only there."""
    case = bench_one_step_head.inputs(2, 16, 4, 16, 64, 300, "cpu", torch.float32)
    error_of, expected_of = bench_one_step_head.error_of, bench_one_step_head.expected_of
    assert error_of(bench_one_step_head.by_full_vocabulary(case), expected_of(case)) <= 1e-5
    assert error_of(bench_one_step_head.first_order(case), expected_of(case)) > 1e-3
    case["eta"] = 1e-4
    assert error_of(bench_one_step_head.first_order(case), expected_of(case)) <= 1e-4


@torch.no_grad()
def test_only_what_is_right_is_what_the_kernel_is_held_to(tmp_path: Path) -> None:
    """In bf16, where the difference of two losses is rounding unless the logits are kept in fp32."""
    case = bench_one_step_head.inputs(2, 16, 20, 32, 64, 3000, "cpu", torch.bfloat16)
    plain = {name: bench_one_step_head.Kept(case, name) for name in bench_one_step_head.KEPT}
    recorder = Recorder("bench", tmp_path / "out.jsonl")
    expected = bench_one_step_head.expected_of(case)
    accurate = bench_one_step_head.accurate_formulations(recorder, "case", plain, expected)
    assert accurate == ["fp32_logits", "probabilities"]
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [record["metric"] for record in records] == [f"error_of_{name}" for name in plain]
    with pytest.raises(Refused, match="no formulation in plain PyTorch is accurate"):
        bench_one_step_head.accurate_formulations(recorder, "case", {"bf16_logits": plain["bf16_logits"]}, expected)


@torch.no_grad()
def test_bmm_and_matmul_in_bf16_pass_their_check() -> None:
    given = bench_grad_dots.inputs(4, 64, 96, 80, 17, "cpu", torch.bfloat16)
    bench_grad_dots.check_against_float64("bmm_matmul", bench_grad_dots.form_and_multiply(*given), *given)

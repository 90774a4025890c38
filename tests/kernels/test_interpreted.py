"""The Triton kernels' numbers without a GPU: Triton's interpreter, against float64. See `interpreted.py`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

PROGRAM = Path(__file__).with_name("interpreted.py")
HALF_UNIT = {"bf16": 2.0**-9, "fp16": 2.0**-12, "fp32": 2.0**-24}
"""Largest relative error of one rounding."""
DOTS_CASES = [
    "ragged",
    "one token",
    "one vector",
    "one of everything",
    "no sample",
    "no token",
    "many vectors",
    "segments",
    "strided",
    "small workspace",
]
HEAD_CASES = [
    "small step",
    "many tokens",
    "large step",
    "no bias",
    "long answers",
    "sure",
    "sure, huge step",
    "one of everything",
    "no candidate",
    "padded vocabulary",
    "first tokens ruled out",
    "no answer",
    "small slices",
    "strided",
]
Found = dict[tuple[str, str, str], dict[str, Tensor]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    out = tmp_path_factory.mktemp("interpreted") / "found.pt"
    run = subprocess.run([sys.executable, "-W", "error", PROGRAM, out], capture_output=True, text=True, env=os.environ)
    assert run.returncode == 0, run.stderr
    return torch.load(out)


def test_every_case_is_looked_at(found: Found) -> None:
    expected = {("grad_dots", name, dtype) for name in DOTS_CASES for dtype in HALF_UNIT}
    expected |= {("one_step_head", name, dtype) for name in HEAD_CASES for dtype in HALF_UNIT}
    expected |= {("grad_dots", "tf32", "fp16"), ("grad_dots", "tf32", "fp32"), ("rounded_to_tf32", "awkward", "fp32")}
    expected |= {("series", "expm1", "fp32"), ("series", "curvature", "fp32")}
    assert set(found) == expected


@pytest.mark.parametrize("dtype", HALF_UNIT)
@pytest.mark.parametrize("name", DOTS_CASES)
def test_grad_dots_is_as_good_as_its_dtype(found: Found, name: str, dtype: str) -> None:
    """Against a float64 truth: no worse than forming the gradient in that dtype, but for a little fp32 rounding."""
    case = found["grad_dots", name, dtype]
    got, truth = case["got"], case["truth"]
    assert got.dtype == torch.float32
    assert got.shape == truth.shape
    if truth.numel():
        allowed = 1.05 * (case["plain"] - truth).abs().max() + 1e-6 * truth.abs().max()
        assert (got - truth).abs().max() <= allowed


def test_rounded_to_tf32_is_the_nearest(found: Found) -> None:
    case = found["rounded_to_tf32", "awkward", "fp32"]
    torch.testing.assert_close(case["got"].double(), case["nearest"], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_what_meets_in_tf32_is_rounded_first(found: Found, dtype: str) -> None:
    """A tensor core drops the bits that tf32 lacks; the interpreter does not, so it shows what was rounded before."""
    case = found["grad_dots", "tf32", dtype]
    assert (case["got"] - case["nearest"]).abs().le(3e-7 * case["sums"]).all()


@pytest.mark.parametrize(("name", "error"), [("expm1", 1.3e-7), ("curvature", 1e-6)])
def test_a_series_is_as_good_as_it_says(found: Found, name: str, error: float) -> None:
    case = found["series", name, "fp32"]
    torch.testing.assert_close(case["got"].double(), case["truth"], rtol=error, atol=0)


SMALL_STEPS, FULL_VOCABULARY = [True, False], [False, True]
WAYS = {
    "small step": SMALL_STEPS,
    "large step": FULL_VOCABULARY,
    "sure, huge step": FULL_VOCABULARY,
    "many tokens": SMALL_STEPS,
    "small slices": SMALL_STEPS,
    "strided": SMALL_STEPS,
    "padded vocabulary": [True, True],
    "no candidate": [False, False],
}


@pytest.mark.parametrize("way", ["got", "full vocabulary"])
@pytest.mark.parametrize("dtype", HALF_UNIT)
@pytest.mark.parametrize("name", HEAD_CASES)
def test_one_step_head_is_as_good_as_its_dtype(found: Found, name: str, dtype: str, way: str) -> None:
    """Steps, softmax errors and probabilities are rounded to the dtype once each, all else is fp32."""
    case = found["one_step_head", name, dtype]
    got, truth = case[way], case["truth"]
    assert got.dtype == torch.float32
    assert got.shape == truth.shape
    if name == "no answer":
        assert got.isnan().tolist() == [False, True, False]
    else:
        assert not got.isnan().any()
    error = (got - truth).abs().nan_to_num(0.0)
    assert error.le((2 * HALF_UNIT[dtype] + 1e-6) * case["sums"].nan_to_num(0.0)).all()
    if way == "full vocabulary" and name != "no candidate":
        assert case["full vocabulary: ways"].tolist() == FULL_VOCABULARY
    elif name in WAYS:
        assert case["got: ways"].tolist() == WAYS[name]

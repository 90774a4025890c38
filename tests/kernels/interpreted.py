"""Runs the Triton kernels in Triton's interpreter and saves their results beside the truth.

A program of its own (`python interpreted.py OUT`), because TRITON_INTERPRET is read when a kernel's module is imported
and would follow every other test of the process.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import numpy as np
import test_grad_dots
import test_one_step_head
import torch
import triton
import triton.language as tl
from nearest import nearest_tf32
from torch import Tensor
from triton.runtime import interpreter

from ostlight_kernels import Packing, head_kernels, small_step_kernels
from ostlight_kernels.head_launcher import KernelHeadStep
from ostlight_kernels.head_problem import HeadProblem
from ostlight_kernels.tiles import HeadTiles, ProductTiles, Tiles

# Modules, not the functions of the same name that the package exports.
grad_dots = importlib.import_module("ostlight_kernels.grad_dots")
head_launcher = importlib.import_module("ostlight_kernels.head_launcher")
small_steps = importlib.import_module("ostlight_kernels.small_steps")

TILES = Tiles(block_o=32, block_i=16, block_t=16, block_k=256, warps=4, stages=2, dot_stages=2, band=2)
HEAD_TILES = HeadTiles(block_s=16, block_v=32, block_t=16, block_d=32, warps=4, stages=2)
PRODUCT_TILES = ProductTiles(rows=16, columns=32, depth=32, warps=4, stages=2)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def fix_bf16() -> None:
    """The interpreter keeps bf16 as uint16, multiplies the bits as they are, and truncates where a GPU rounds."""

    def values(handle: Any) -> np.ndarray:
        if handle.dtype.scalar != tl.bfloat16:
            return handle.data.astype(np.float32)
        return (handle.data.astype(np.uint32) << 16).view(np.float32)

    def create_dot(_: Any, a: Any, b: Any, d: Any, *__: Any) -> Any:
        return interpreter.TensorHandle(np.matmul(values(a), values(b)) + d.data, d.dtype.scalar)

    plain_cast = interpreter.InterpreterBuilder.cast_impl

    def cast(self: Any, src: Any, dst_type: Any) -> Any:
        if (src.dtype.scalar, dst_type.scalar) != (tl.float32, tl.bfloat16):
            return plain_cast(self, src, dst_type)
        rounded = torch.from_numpy(np.ascontiguousarray(src.data)).bfloat16()
        return interpreter.TensorHandle(rounded.view(torch.int16).numpy().view(np.uint16), tl.bfloat16)

    interpreter.InterpreterBuilder.create_dot = create_dot
    interpreter.InterpreterBuilder.cast_impl = cast


def poison() -> None:
    """What a kernel forgets to write is NaN."""
    plain = torch.empty

    def empty(*sizes: Any, **options: Any) -> Tensor:
        tensor = plain(*sizes, **options)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    torch.empty = empty  # type: ignore[assignment]


def in_its_dtype(a: Tensor, b: Tensor, vectors: Tensor, segments: Tensor | None, samples: int) -> Tensor:
    """Form, round to the dtype, dot: what `torch.bmm` and a product give, with fp32 accumulation."""
    rows = []
    for i in range(samples):
        tokens = (a[i], b[i]) if segments is None else (a[segments == i], b[segments == i])
        rows.append((tokens[1].float().T @ tokens[0].float()).to(a.dtype).float().flatten())
    return torch.stack(rows) @ vectors.float().flatten(1).T if rows else torch.zeros(0, len(vectors))


LAYOUTS = {
    "ragged": (17, 20, 18, 33, 17),
    "one token": (3, 1, 20, 17, 2),
    "one vector": (2, 7, 16, 32, 1),
    "one of everything": (1, 1, 1, 1, 1),
    "no sample": (0, 4, 3, 2, 2),
    "no token": (2, 0, 3, 2, 2),
    "many vectors": (2, 5, 9, 8, 129),
}


def dots_case(name: str, dtype: torch.dtype) -> dict[str, Tensor]:
    segments = None
    if name == "segments":
        a, b, vectors = test_grad_dots.layer(3, 6, 21, 19, 3, dtype)
        segments = test_grad_dots.SEGMENTS
        a[segments == -1] = float("nan")
    elif name == "strided":
        a, b, vectors = test_grad_dots.layer(4, 6, 10, 8, 3, dtype)
        a = torch.empty(10, 6, 8, dtype=dtype).permute(2, 1, 0)[::2].copy_(a)
        b = b.transpose(0, 1).contiguous().transpose(0, 1)
        vectors = vectors.mT.contiguous().mT
    elif name == "small workspace":
        a, b, vectors = test_grad_dots.layer(17, 3, 33, 15, 3, dtype)
    else:
        a, b, vectors = test_grad_dots.layer(*LAYOUTS[name], dtype)
    samples = len(a) if segments is None else 6
    packing = None if segments is None else Packing.of(segments, samples)
    small = 1024 if name == "small workspace" else 2**20
    with patch.multiple(grad_dots, WORKSPACE_BYTES=small, PARTIAL_BYTES=small):
        got = grad_dots.launch(a, b, vectors, packing, allow_tf32=False, tiles=TILES)
    return {
        "got": got,
        "plain": in_its_dtype(a, b, vectors, segments, samples),
        "truth": test_grad_dots.oracle(a, b, vectors, segments, samples),
    }


AWKWARD = (1 + 2**-11, 1 + 3 * 2**-11, 3.4e38, -1e-37, 0.0, float("inf"), float("-inf"))


@triton.jit
def mapping_kernel(p_x, p_y, SIZE: tl.constexpr, FUNCTION: tl.constexpr):
    r_x = tl.arange(0, SIZE)
    tl.store(p_y + r_x, FUNCTION(tl.load(p_x + r_x)))


def mapped(x: Tensor, function: Any) -> Tensor:
    y = torch.empty_like(x)
    mapping_kernel[(1,)](x, y, SIZE=len(x), FUNCTION=function)
    return y


def rounding_case() -> dict[str, Tensor]:
    x = torch.randn(1024, generator=torch.Generator().manual_seed(0)) * 100
    x[: len(AWKWARD)] = torch.tensor(AWKWARD)
    # Beside the usual NaN the one that GPUs make, all ones.
    x[-2:] = torch.tensor([0x7FC00000, 0x7FFFFFFF], dtype=torch.int32).view(torch.float32)
    return {"got": mapped(x, grad_dots.rounded_to_tf32), "nearest": nearest_tf32(x)}


def series_case(function: Any, below: float, truth: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    sizes = torch.cat([torch.linspace(0, below, 2049)[1:-1], torch.logspace(-15, -3, 2048), torch.tensor([0.0])])
    x = torch.cat([sizes, -sizes])
    return {"got": mapped(x, function), "truth": truth(x.double())}


def curvature(x: Tensor) -> Tensor:
    """In float64, by its series where it would cancel."""
    return torch.where(x.abs() < 1e-3, x**2 / 2 - x**3 / 6 + x**4 / 24, torch.expm1(-x) + x)


def tf32_case(dtype: torch.dtype) -> dict[str, Tensor]:
    """A single token, so that each gradient is exact before it is rounded and only the last sum is not."""
    a, b, vectors = test_grad_dots.layer(3, 1, 24, 20, 5, dtype)
    got = grad_dots.launch(a, b, vectors, None, allow_tf32=True, tiles=TILES)
    gradients = nearest_tf32(nearest_tf32(b).mT @ nearest_tf32(a)).flatten(1)
    flat = nearest_tf32(vectors).flatten(1).T
    return {"got": got, "nearest": gradients @ flat, "sums": gradients.abs() @ flat.abs()}


HEADS: dict[str, dict[str, Any]] = {
    "small step": {"eta": 1e-5, "n": 2, "s": 12, "d": 20, "v": 50},
    "many tokens": {"eta": 0.02, "n": 2, "s": 12, "d": 20, "v": 700, "sharpness": 3.0},
    "large step": {"eta": 30.0, "n": 2, "s": 12, "d": 20, "v": 50},
    "no bias": {"eta": 0.5, "bias": False},
    "long answers": {"eta": 0.5, "n": 2, "t": 40, "v": 40},
    "sure": {"eta": 1e-3, "sharpness": 60.0},
    "sure, huge step": {"eta": 1e3, "sharpness": 60.0},
    "one of everything": {"n": 1, "t": 1, "anchors": 1, "s": 1, "d": 1, "v": 2},
    "no candidate": {"n": 0},
}


BARRED = {"padded vocabulary": slice(64, None), "first tokens ruled out": slice(0, 64)}


def head_case(name: str, dtype: torch.dtype) -> dict[str, Tensor]:
    if name == "small slices":
        case = test_one_step_head.head(n=3, v=70, eta=0.02, dtype=dtype)
    elif name in BARRED:
        case = test_one_step_head.padded(BARRED[name], dtype=dtype)
    elif name == "no answer":
        case = test_one_step_head.head(dtype=dtype)
        case["labels"][1] = -100
    elif name == "strided":
        case = test_one_step_head.strided(test_one_step_head.head(eta=0.02, dtype=dtype))
    else:
        case = test_one_step_head.head(**HEADS[name], dtype=dtype)
    keys = ("h", "labels", "anchor_h", "anchor_labels", "eta")
    problem = HeadProblem.of(*(case[k] for k in keys), None)
    small = 1024 if name == "small slices" else 2**20
    # One program has all tiles in its turn, a whole one without a possible token among them.
    programs = 1 if name in BARRED else head_launcher.PROGRAMS
    found = {}
    for way, largest in (("got", small_steps.LARGEST_CHANGE), ("full vocabulary", 0.0)):
        with (
            patch.multiple(head_launcher, SLICE_BYTES=small, STEPS_BYTES=small, NARROWEST=32, PROGRAMS=programs),
            patch.object(small_steps, "LARGEST_CHANGE", largest),
            patch.object(small_steps, "loss_decrease", wraps=small_steps.loss_decrease) as of_small_steps,
            patch.object(head_launcher, "combined", wraps=head_launcher.combined) as of_full_vocabulary,
        ):
            step = KernelHeadStep(problem, case["weight"], case["bias"], HEAD_TILES, PRODUCT_TILES)
            found[way] = step.utilities()
        found[f"{way}: ways"] = torch.tensor([of_small_steps.called, of_full_vocabulary.called])
    return found | {
        "truth": test_one_step_head.oracle(case),
        "sums": rounded_sums(case),
    }


def rounded_sums(case: dict[str, Any]) -> Tensor:
    """``[N]`` what roundings of a step and of a softmax error scale with: ``sum_t |step| |error|``, before it cancels.

    At the label and at the token where it is largest, averaged over the anchor positions.
    """
    exact = {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in case.items()}
    problem = HeadProblem.of(*(exact[k] for k in ("h", "labels", "anchor_h", "anchor_labels", "eta")), None)
    bias = 0.0 if exact["bias"] is None else exact["bias"]
    tokens = torch.arange(len(exact["weight"]))
    errors = torch.softmax(problem.x @ exact["weight"].T + bias, -1) - (problem.y[:, :, None] == tokens).double()
    errors[problem.y < 0] = 0.0
    steps = (problem.anchor_x @ problem.x.mT + (exact["bias"] is not None)) * problem.scale[:, None, None]
    sums = steps.abs() @ errors.abs()
    at_label = sums[:, torch.arange(sums.shape[1]), problem.anchor_y]
    return (at_label + sums.amax(-1)) @ problem.anchor_share


DOTS_CASES = [*LAYOUTS, "segments", "strided", "small workspace"]
HEAD_CASES = [*HEADS, *BARRED, "no answer", "small slices", "strided"]


def main(out: Path) -> None:
    torch.set_num_threads(1)
    fix_bf16()
    poison()
    found = {("rounded_to_tf32", "awkward", "fp32"): rounding_case()}
    found["series", "expm1", "fp32"] = series_case(head_kernels.expm1_of_small, 1 / 2, torch.expm1)
    found["series", "curvature", "fp32"] = series_case(small_step_kernels.curvature_of, 1.0, curvature)
    found |= {("grad_dots", "tf32", short): tf32_case(DTYPES[short]) for short in ("fp16", "fp32")}
    for short, dtype in DTYPES.items():
        found |= {("grad_dots", name, short): dots_case(name, dtype) for name in DOTS_CASES}
        found |= {("one_step_head", name, short): head_case(name, dtype) for name in HEAD_CASES}
    torch.save(found, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Every configuration of the tables, compiled ahead of time: it builds, fits shared memory, and does not spill.

That is for sizes divisible by 16. Others load element by element, for which registers do not suffice: they build, fit,
and spill no more than a bound.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from ostlight_kernels import head_kernels, small_step_kernels
from ostlight_kernels.tiles import HeadTiles, ProductTiles, Tiles, head_tiles, product_tiles, table

triton = pytest.importorskip("triton")
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

grad_dots = import_module("ostlight_kernels.grad_dots")
head_launcher = import_module("ostlight_kernels.head_launcher")

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
CAPABILITIES = (80, 90)
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}
"""Most shared memory one program may have."""


@dataclass(frozen=True)
class Built:
    ptx: str
    shared_bytes: int
    registers: int
    stack_bytes: int
    local_bytes: int


SIZES = ("D", "D_in", "D_out", "T", "V", "width", "H")
Sizes = Literal["by 16", "any", "one"]
"""Of a launch: divisible by 16 with aligned pointers, whatever with pointers that are not, or all 1."""


def build(
    kernel: Any,
    capability: int,
    constants: dict[str, Any],
    types: dict[str, str],
    folder: Path,
    warps: int,
    sizes: Sizes,
) -> Built:
    """Compile as a launch of these sizes would."""
    names = kernel.arg_names
    if sizes == "one":
        constants = {n: 1 for n in names if not n.startswith("p_")} | constants
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    aligned = [n for n in names if n.startswith(("p_", "stride_")) or n in SIZES] if sizes != "any" else []
    attributes = {(names.index(n),): [["tt.divisibility", 16]] for n in aligned if n not in constants}
    values = {(names.index(n),): value for n, value in constants.items()}
    source = ASTSource(kernel, signature, values, attributes)
    options = {"num_warps": warps, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    usage = subprocess.run(
        [CUOBJDUMP, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True
    ).stdout
    (numbers,) = re.findall(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    return Built(compiled.asm["ptx"], compiled.metadata.shared, *map(int, numbers))


SPILLED_AT_ANY_SIZE = 1280
"""Bytes per thread."""


def assert_fits(built: Built, capability: int, dtype: torch.dtype, sizes: Sizes = "by 16") -> None:
    # The kernel reserves a kilobyte of static shared memory on sm_90 besides what it asks for.
    assert built.shared_bytes + 1024 <= SHARED_BYTES[capability]
    assert built.stack_bytes <= (SPILLED_AT_ANY_SIZE if sizes == "any" else 0), "registers spilled"
    assert built.local_bytes == 0
    assert built.registers <= 255
    if dtype != torch.float32:
        assert ("wgmma.mma_async" if capability == 90 else "mma.sync") in built.ptx
        assert "cp.async" in built.ptx or sizes == "any"


def dots_build(
    capability: int,
    dtype: str,
    tiles: Tiles,
    packed: bool,
    vectors: int,
    folder: Path,
    sizes: Sizes = "by 16",
    allow_tf32: bool = False,
) -> Built:
    kept = {v: k for k, v in DTYPES.items()}[grad_dots.tile_dtype(DTYPES[dtype])]
    types = dict.fromkeys(("p_a", "p_b", "p_vectors"), f"*{dtype}")
    types |= dict.fromkeys(("p_order", "p_starts"), "*i64" if packed else f"*{dtype}")
    types |= {"p_tiles": f"*{kept}", "p_arrived": "*i32", "p_partial": "*fp32"}
    constants = grad_dots.meta(tiles, DTYPES[dtype], vectors, packed, allow_tf32)
    return build(grad_dots._grad_dots_kernel, capability, constants, types, folder, tiles.warps, sizes)


IN_DTYPE = ("x", "weight", "bias", "anchor_x", "steps", "errors", "label_weight", "label_bias", "probabilities")


def one_step_build(
    name: str,
    capability: int,
    dtype: str,
    tiles: HeadTiles | ProductTiles,
    folder: Path,
    positions: int = 64,
    sizes: Sizes = "by 16",
    bias: bool = True,
) -> Built:
    """A kernel of `one_step_head`, for candidates of so many answer positions."""
    kernel = getattr(head_kernels, name, None) or getattr(small_step_kernels, name)
    of_head = tiles if isinstance(tiles, HeadTiles) else head_tiles(DTYPES[dtype], capability)
    t, block_t = head_launcher.padded_positions(positions, of_head), head_launcher.position_block(positions, of_head)
    constants = {"SCALE": head_launcher.PROBABILITY_SCALE, "BLOCK_T": block_t}
    if name == "first_order_kernel":
        constants |= head_launcher.first_order_meta(tiles) | {"BLOCK_R": tiles.columns}
    elif isinstance(tiles, ProductTiles):
        constants |= head_launcher.logits_meta(tiles, bias)
    else:
        constants |= head_launcher.head_meta(tiles, bias) | {"BLOCK_S": tiles.block_s, "BLOCK_V": tiles.block_v}
    constants |= {"T": t} if name in ("loss_change_kernel", "curvature_kernel") else {}
    types = {name: "*fp32" for name in kernel.arg_names if name.startswith("p_")}
    types |= dict.fromkeys(("p_y", "p_anchor_y", "p_tokens"), "*i64")
    types |= dict.fromkeys((f"p_{name}" for name in IN_DTYPE), f"*{dtype}")
    constants = {n: value for n, value in constants.items() if n in kernel.arg_names}
    return build(kernel, capability, constants, types, folder, tiles.warps, sizes)


EVERY_DOTS = [
    pytest.param(capability, dtype, tiles, id=f"sm_{capability} {dtype} {tiles}")
    for capability in CAPABILITIES
    for dtype in DTYPES
    for tiles in table(DTYPES[dtype], capability)
]
ONE_STEP = {
    "log_sum_exp_kernel": product_tiles,
    "errors_kernel": product_tiles,
    "probabilities_kernel": product_tiles,
    "first_order_kernel": product_tiles,
    "steps_kernel": head_tiles,
    "curvature_kernel": head_tiles,
    "loss_change_kernel": head_tiles,
}
"""The kernels of `one_step_head` and their tiles."""

EVERY_ONE_STEP = [
    pytest.param(name, capability, dtype, tiles_of(DTYPES[dtype], capability), id=f"{name} sm_{capability} {dtype}")
    for name, tiles_of in ONE_STEP.items()
    for capability in CAPABILITIES
    for dtype in DTYPES
]


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_default_of_grad_dots(capability: int, tmp_path: Path) -> None:
    built = dots_build(capability, "bf16", table(torch.bfloat16, capability)[0], False, 17, tmp_path)
    assert_fits(built, capability, torch.bfloat16)


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_tf32_products_of_grad_dots(capability: int, dtype: str, tmp_path: Path) -> None:
    """Rounding for the tensor cores costs registers."""
    tiles = table(DTYPES[dtype], capability)[0]
    built = dots_build(capability, dtype, tiles, False, 17, tmp_path, allow_tf32=True)
    assert_fits(built, capability, DTYPES[dtype])
    assert ".tf32.tf32.f32" in built.ptx


def test_a_tile_is_stored_before_its_arrival_is_counted(tmp_path: Path) -> None:
    """What the last program reads must be there: stores, a barrier of the program, then an acquire-release add."""
    ptx = dots_build(90, "bf16", table(torch.bfloat16, 90)[0], False, 17, tmp_path).ptx
    arrival = ptx.index("atom.global.gpu.acq_rel.add")
    stored = ptx.rindex("st.global", 0, arrival)
    assert "bar.sync" in ptx[stored:arrival] or "barrier" in ptx[stored:arrival]
    after = ptx[arrival:]
    assert after.index("bar.sync") < after.index("cp.async.cg")


def test_sizes_of_one(tmp_path: Path) -> None:
    """A launch makes a constant of every integer that is 1; the kernels' arithmetic must stand that."""
    tiles = table(torch.bfloat16, 90)[0].fitted(1, 1)
    for packed in (False, True):
        assert dots_build(90, "bf16", tiles, packed, 1, tmp_path, sizes="one").registers > 0
    for name, tiles_of in ONE_STEP.items():
        built = one_step_build(name, 90, "bf16", tiles_of(torch.bfloat16, 90), tmp_path, positions=1, sizes="one")
        assert built.registers > 0


@pytest.mark.parametrize("name", ["first_order_kernel", "loss_change_kernel"])
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_tiles_of_one_step_head(capability: int, name: str, tmp_path: Path) -> None:
    tiles = ONE_STEP[name](torch.bfloat16, capability)
    assert_fits(one_step_build(name, capability, "bf16", tiles, tmp_path), capability, torch.bfloat16)


def test_any_size_of_grad_dots(tmp_path: Path) -> None:
    built = dots_build(90, "bf16", table(torch.bfloat16, 90)[0], False, 17, tmp_path, sizes="any")
    assert_fits(built, 90, torch.bfloat16, sizes="any")


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_configuration_at_any_size(capability: int, dtype: str, tmp_path: Path) -> None:
    built = [
        dots_build(capability, dtype, tiles, packed, 17, tmp_path, sizes="any")
        for tiles, packed in product(table(DTYPES[dtype], capability), (False, True))
    ]
    for name, tiles_of in ONE_STEP.items():
        tiles = tiles_of(DTYPES[dtype], capability)
        built += [one_step_build(name, capability, dtype, tiles, tmp_path, t, sizes="any") for t in (1, 64, 150)]
    for one in built:
        assert_fits(one, capability, DTYPES[dtype], sizes="any")


@pytest.mark.slow
@pytest.mark.parametrize(("capability", "dtype", "tiles"), EVERY_DOTS)
def test_every_configuration_of_grad_dots(capability: int, dtype: str, tiles: Tiles, tmp_path: Path) -> None:
    roundings = (False, True) if dtype == "fp32" else (False,)
    for packed, vectors, allow_tf32 in product((False, True), (1, 17), roundings):
        built = dots_build(capability, dtype, tiles, packed, vectors, tmp_path, allow_tf32=allow_tf32)
        assert_fits(built, capability, DTYPES[dtype])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "capability", "dtype", "tiles"), EVERY_ONE_STEP)
def test_every_configuration_of_one_step_head(
    name: str, capability: int, dtype: str, tiles: HeadTiles | ProductTiles, tmp_path: Path
) -> None:
    for positions, bias in ((1, True), (64, True), (64, False), (150, True)):
        built = one_step_build(name, capability, dtype, tiles, tmp_path, positions, bias=bias)
        assert_fits(built, capability, DTYPES[dtype])

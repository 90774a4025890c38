"""Inner products of per-sample gradients with fixed vectors.

One program forms one tile of one sample's gradient and stores it in a small workspace. The last program of a group of
samples at one place, whichever that is, multiplies the group's tiles with the vectors' tiles in a single product. What
is computed does not depend on which program that is, so the result is the same to the bit every time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ostlight_kernels import reference
from ostlight_kernels._triton import tl, triton
from ostlight_kernels.checks import DTYPES, check, check_alike, check_device, check_shape, check_tensor
from ostlight_kernels.dispatch import capability, explain_dispatch
from ostlight_kernels.packing import Packing
from ostlight_kernels.tiles import Layer, Tiles, tiles_for

WORKSPACE_BYTES = 256 * 2**20
"""Tiles of one launch. A tile is read back from the L2 right after it was written; this bounds the memory behind it."""

PARTIAL_BYTES = 64 * 2**20
"""Inner products per tile, before they are summed. Both are exceeded only where one group of samples needs more."""


@triton.jit
def rounded_to_tf32(x):
    """fp32 to the nearest value with tf32's 10 bits of mantissa, halves to even; infinities and NaN stay.

    Tensor cores do not round an fp32 number, they drop its last 13 bits, which is a bias towards 0.
    """
    bits = x.to(tl.uint32, bitcast=True)
    nearest = (bits + 0xFFF + ((bits >> 13) & 1)) & 0xFFFFE000
    # The carry would turn a NaN of all ones, as a GPU makes them, into -0.
    return tl.where(x == x, nearest.to(tl.float32, bitcast=True), x)


@triton.jit
def _grad_dots_kernel(
    p_a,  # [N, T, D_in]; [tokens, D_in] where PACKED
    p_b,  # [N, T, D_out]; [tokens, D_out] where PACKED
    p_order,  # [L] int64 tokens sorted by sample, where PACKED
    p_starts,  # [S + 1] int64 where each sample's tokens start in it, where PACKED
    p_vectors,  # [M, D_out, D_in], contiguous
    p_tiles,  # [tiles, samples, BLOCK_O * BLOCK_I] workspace
    p_arrived,  # [tiles, groups] int32, zeros
    p_partial,  # [tiles, samples, M] fp32
    first_sample,
    samples,
    first_tile,
    tiles,
    T,
    M,
    D_in,
    D_out,
    stride_an,
    stride_at,
    stride_bn,
    stride_bt,
    PACKED: tl.constexpr,
    SAMPLES: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BAND: tl.constexpr,
    STAGES: tl.constexpr,
    DOT_STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    DOT_PRECISION: tl.constexpr,
):
    """``sum(b' a * vector)`` of every tile, sample and vector."""
    AREA: tl.constexpr = BLOCK_O * BLOCK_I
    # Samples fastest, then places, then groups: programs that run at the same time share vectors and inputs in the L2.
    i_program = tl.program_id(0)
    i_group = i_program // (tiles * SAMPLES)
    i_tile = i_program % (tiles * SAMPLES) // SAMPLES
    i_sample = i_group * SAMPLES + i_program % SAMPLES
    in_group = tl.minimum(samples - i_group * SAMPLES, SAMPLES)
    if i_sample >= samples:
        return

    n_i = tl.cdiv(D_in, BLOCK_I)
    i_band = (first_tile + i_tile) // (BAND * n_i)
    i_place = (first_tile + i_tile) % (BAND * n_i)
    band_height = tl.minimum(tl.cdiv(D_out, BLOCK_O) - i_band * BAND, BAND)
    o_first = (i_band * BAND + i_place % band_height) * BLOCK_O
    i_first = (i_place // band_height) * BLOCK_I

    r_o = o_first + tl.arange(0, BLOCK_O)
    r_i = i_first + tl.arange(0, BLOCK_I)
    in_o = (r_o < D_out)[None, :]
    in_i = (r_i < D_in)[None, :]
    i_row = (first_sample + i_sample).to(tl.int64)
    if PACKED:
        t_first = tl.load(p_starts + i_row)
        t_last = tl.load(p_starts + i_row + 1)
    else:
        t_first = 0
        t_last = T
        p_a += i_row * stride_an
        p_b += i_row * stride_bn
    b_gradient = tl.zeros([BLOCK_O, BLOCK_I], dtype=tl.float32)
    for t in tl.range(t_first, t_last, BLOCK_T, num_stages=STAGES):
        r_t = t + tl.arange(0, BLOCK_T)
        in_t = r_t < t_last
        if PACKED:
            r_t = tl.load(p_order + r_t, mask=in_t, other=0)
        in_t = in_t[:, None]
        b_a = tl.load(p_a + r_t[:, None].to(tl.int64) * stride_at + r_i[None, :], mask=in_t & in_i, other=0.0)
        b_b = tl.load(p_b + r_t[:, None].to(tl.int64) * stride_bt + r_o[None, :], mask=in_t & in_o, other=0.0)
        if PRECISION == "tf32":
            b_a = rounded_to_tf32(b_a)
            b_b = rounded_to_tf32(b_b)
        b_gradient = tl.dot(tl.trans(b_b), b_a, b_gradient, input_precision=PRECISION)

    if DOT_PRECISION == "tf32":
        b_gradient = rounded_to_tf32(b_gradient)
    p_group = p_tiles + (i_tile.to(tl.int64) * samples + i_group * SAMPLES) * AREA
    r_tile = tl.arange(0, BLOCK_O)[:, None] * BLOCK_I + tl.arange(0, BLOCK_I)[None, :]
    tl.store(p_group + (i_program % SAMPLES) * AREA + r_tile, b_gradient.to(p_tiles.dtype.element_ty))

    # All of this program's stores come before its arrival, and all arrivals before the last one's loads.
    tl.debug_barrier()
    p_counter = p_arrived + i_tile * tl.cdiv(samples, SAMPLES) + i_group
    arrived = tl.atomic_add(p_counter, 1, sem="acq_rel", scope="gpu")
    if arrived == in_group - 1:
        r_s = tl.arange(0, SAMPLES)
        in_s = r_s < in_group
        for m in range(0, M, BLOCK_M):
            r_m = m + tl.arange(0, BLOCK_M)
            b_dots = tl.zeros([SAMPLES, BLOCK_M], dtype=tl.float32)
            for k in tl.range(0, AREA, BLOCK_K, num_stages=DOT_STAGES):
                r_k = k + tl.arange(0, BLOCK_K)
                k_o = o_first + r_k // BLOCK_I
                k_i = i_first + r_k % BLOCK_I
                in_k = (k_o < D_out) & (k_i < D_in)
                b_tiles = tl.load(p_group + r_s[:, None] * AREA + r_k[None, :], mask=in_s[:, None], other=0.0)
                p_vector = p_vectors + r_m[:, None].to(tl.int64) * D_out * D_in + k_o[None, :].to(tl.int64) * D_in
                b_vectors = tl.load(p_vector + k_i[None, :], mask=(r_m < M)[:, None] & in_k[None, :], other=0.0)
                b_vectors = tl.trans(b_vectors).to(b_tiles.dtype)
                if PRECISION == "tf32":  # 16-bit vectors are tf32 already
                    b_vectors = rounded_to_tf32(b_vectors)
                b_dots = tl.dot(b_tiles, b_vectors, b_dots, input_precision=DOT_PRECISION)
            r_row = (first_tile + i_tile).to(tl.int64) * samples + i_group * SAMPLES + r_s
            in_partial = in_s[:, None] & (r_m < M)[None, :]
            tl.store(p_partial + r_row[:, None] * M + r_m[None, :], b_dots, mask=in_partial)


def meta(tiles: Tiles, dtype: torch.dtype, vectors: int, packed: bool, allow_tf32: bool) -> dict[str, object]:
    """The kernel's compile-time arguments."""
    precision = "tf32" if dtype == torch.float32 and allow_tf32 else "ieee"
    return {
        "PACKED": packed,
        "SAMPLES": tiles.samples,
        "BLOCK_O": tiles.block_o,
        "BLOCK_I": tiles.block_i,
        "BLOCK_T": tiles.block_t,
        "BLOCK_K": tiles.block_k,
        "BLOCK_M": 16 if vectors <= 16 else 32,
        "BAND": tiles.band,
        "STAGES": tiles.stages,
        "DOT_STAGES": tiles.dot_stages,
        "PRECISION": precision,
        "DOT_PRECISION": "tf32" if dtype == torch.float16 else precision,
    }


def tile_dtype(dtype: torch.dtype) -> torch.dtype:
    """What a tile is stored in until it is multiplied with the vectors.

    bf16 rounds it as a stored bf16 gradient would be. fp16 would overflow or underflow, so it stays fp32 and is
    multiplied in tf32, whose mantissa is as long as fp16's, rounded to it first.
    """
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float32


def _rows(x: Tensor, packed: bool) -> Tensor:
    x = x.reshape(-1, x.shape[-1]) if packed else x
    return x if x.stride(-1) == 1 else x.contiguous()


def blocks(total: int, places: int, vectors: int, tiles: Tiles, itemsize: int) -> tuple[int, int]:
    """Samples taken together, and places of their tiles in one launch, within the bounds on memory."""
    tile_bytes = tiles.block_o * tiles.block_i * itemsize
    samples = min(PARTIAL_BYTES // (4 * places * vectors), WORKSPACE_BYTES // tile_bytes)
    samples = max(samples // tiles.samples, 1) * tiles.samples
    samples = min(samples, max(total, 1))
    return samples, min(places, max(1, WORKSPACE_BYTES // (samples * tile_bytes)))


def launch(
    a: Tensor, b: Tensor, vectors: Tensor, packing: Packing | None, *, allow_tf32: bool, tiles: Tiles | None = None
) -> Tensor:
    """``[N, M]`` fp32, by the kernel, of checked arguments. ``tiles`` overrides the table, for measuring."""
    total = a.shape[0] if packing is None else packing.num_samples
    t, m, (d_out, d_in) = a.shape[1], vectors.shape[0], vectors.shape[1:]
    if tiles is None:
        tokens = t if packing is None else -(-len(packing.order) // max(total, 1))
        tiles = tiles_for(Layer(total, tokens, d_out, d_in, m), a.dtype, capability(a))
    tiles = tiles.fitted(d_out, d_in)
    places = -(-d_out // tiles.block_o) * -(-d_in // tiles.block_i)
    area = tiles.block_o * tiles.block_i
    packed = packing is not None
    a, b, vectors = _rows(a, packed), _rows(b, packed), vectors.contiguous()
    order, starts = (packing.order, packing.starts) if packing is not None else (a, a)
    constants = meta(tiles, a.dtype, m, packed, allow_tf32)

    kept = tile_dtype(a.dtype)
    chunk, at_once = blocks(total, places, m, tiles, kept.itemsize)
    groups = -(-chunk // tiles.samples)
    workspace = torch.empty(at_once * chunk * area, dtype=kept, device=a.device)
    partial = torch.empty(places, chunk, m, dtype=torch.float32, device=a.device)
    dots = torch.empty(total, m, dtype=torch.float32, device=a.device)
    for first in range(0, total, chunk):
        samples = min(chunk, total - first)
        partial_here = partial.view(-1)[: places * samples * m].view(places, samples, m)
        for place in range(0, places, at_once):
            here = min(at_once, places - place)
            _grad_dots_kernel[(here * groups * tiles.samples,)](
                p_a=a,
                p_b=b,
                p_order=order,
                p_starts=starts,
                p_vectors=vectors,
                p_tiles=workspace,
                p_arrived=torch.zeros(here * groups, dtype=torch.int32, device=a.device),
                p_partial=partial_here,
                first_sample=first,
                samples=samples,
                first_tile=place,
                tiles=here,
                T=t,
                M=m,
                D_in=d_in,
                D_out=d_out,
                stride_an=a.stride(0),
                stride_at=a.stride(-2),
                stride_bn=b.stride(0),
                stride_bt=b.stride(-2),
                num_warps=tiles.warps,
                enable_fp_fusion=True,
                **constants,
            )
        torch.sum(partial_here, 0, out=dots[first : first + samples])
    return dots


@torch.no_grad()
def grad_dots(
    a: Tensor,
    b: Tensor,
    vectors: Tensor,
    packing: Packing | None = None,
    *,
    allow_tf32: bool = False,
) -> Tensor:
    """Inner products of every sample's gradient of one linear layer with M vectors; the gradient itself is dropped.

    For a linear layer with inputs ``a`` and gradients of its outputs ``b``, the gradient of its weight from sample n
    is ``g_n = b_n' a_n``, the sum over its tokens, so ``<g_n, vector_m> = sum(b_n' a_n * vector_m)``. The gradient of a
    bias is the same with ``a`` all ones and ``D_in`` = 1.

    Args:
        a: ``[N, T, D_in]`` inputs of the layer; bf16, fp16, fp32 or fp64.
        b: ``[N, T, D_out]`` gradients of its outputs, zero at padding where there is no packing.
        vectors: ``[M, D_out, D_in]``, any M of at least 1.
        packing: which of the ``[N, T]`` tokens belong to which of S samples. ``None``: row n is sample n.
        allow_tf32: let fp32 inputs, vectors and gradients be rounded to tf32 (10 bits of mantissa) and multiplied on
            tensor cores; has no effect on a CPU.

    Returns:
        ``[N, M]`` (``[S, M]`` with a packing) ``<g_n, vector_m>``, fp32; fp64 for fp64 input. A sample
        without tokens has zeros. The same input gives the same bits on the same device; a sample's row does not
        depend on the values of the others beside it.

    Raises:
        ValueError: no dense tensor, a mismatch of shape, dtype or device, no vectors, or a packing of other rows; names
            the argument, what it got and what it takes.
    """
    _check(a, b, vectors, packing)
    if explain_dispatch(a).name == "reference":
        return reference.dots_and_squares(a, b, vectors, packing, squares=False)[0]
    with torch.cuda.device_of(a):
        return launch(a, b, vectors, packing, allow_tf32=allow_tf32)


def _check(a: Tensor, b: Tensor, vectors: Tensor, packing: Packing | None) -> None:
    for name, tensor in (("a", a), ("b", b), ("vectors", vectors)):
        check_tensor(tensor, name)
    check(a.dtype in DTYPES, "a", f"dtype {a.dtype}", "bf16, fp16, fp32 or fp64")
    check_shape(a, "a", "[N, T, D_in]", None, None, None)
    n, t, d_in = a.shape
    check_shape(b, "b", f"[N, T, D_out] with N={n} and T={t} of a", n, t, None)
    d_out = b.shape[2]
    check_shape(vectors, "vectors", f"[M, D_out, D_in] with D_out={d_out} of b and D_in={d_in} of a", None, d_out, d_in)
    check(vectors.shape[0] >= 1, "vectors", "M=0", "at least one vector")
    check(d_in >= 1, "a", f"shape {tuple(a.shape)}", "D_in of at least 1")
    check(d_out >= 1, "b", f"shape {tuple(b.shape)}", "D_out of at least 1")
    check_alike(b, "b", a, "a")
    check_alike(vectors, "vectors", a, "a")
    if packing is not None:
        check(isinstance(packing, Packing), "packing", f"a {type(packing).__name__}", "a Packing, from Packing.of")
        check(packing.shape == (n, t), "packing", f"rows {packing.shape}", f"rows of N={n} and T={t} of a")
        check_device(packing.order, "packing", a, "a")

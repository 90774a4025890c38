"""Triton kernels of `one_step_head` for small steps, in the order they run; the algebra is in `small_steps`."""

from __future__ import annotations

from ostlight_kernels._triton import tl, triton
from ostlight_kernels.head_kernels import change_tile, logits_tile


@triton.jit
def probabilities_kernel(
    p_x,  # [R, D]
    p_y,  # [R] int64
    p_lse,  # [R] fp32
    p_share,  # [R] fp32
    p_weight,  # [V, D]
    p_bias,  # [V]
    p_probabilities,  # [R, width] times SCALE, of the tokens v_first .. v_first + width; 0 at the row's label
    p_mean_p,  # [blocks of R, width] fp32 sums over rows, times their shares
    p_others,  # [blocks of width, R] fp32 sums over tokens
    R,
    D,
    v_first,
    width,
    SCALE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``softmax(x W' + bias)`` of a slice of the vocabulary, and its sums either way (`small_steps`)."""
    r_r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    r_column = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    r_v = v_first + r_column
    in_v = r_column < width
    b_logits = logits_tile(p_x, p_weight, p_bias, r_r, r_r < R, r_v, in_v, D, HAS_BIAS, BLOCK_D, STAGES, PRECISION)
    b_y = tl.load(p_y + r_r, mask=r_r < R, other=-1)
    b_lse = tl.load(p_lse + r_r, mask=r_r < R, other=0.0)
    other_token = (r_r < R)[:, None] & in_v[None, :] & (r_v[None, :] != b_y[:, None])
    b_p = tl.where(other_token, tl.exp(b_logits - b_lse[:, None]) * SCALE, 0.0)
    b_rounded = b_p.to(p_probabilities.dtype.element_ty)
    in_p = (r_r < R)[:, None] & in_v[None, :]
    tl.store(p_probabilities + r_r[:, None].to(tl.int64) * width + r_column[None, :], b_rounded, mask=in_p)
    # From the rounded ones, which the first-order product takes too.
    b_p = b_rounded.to(tl.float32) / SCALE
    tl.store(p_others + tl.program_id(1) * R + r_r, tl.sum(b_p, 1), mask=r_r < R)
    b_share = tl.load(p_share + r_r, mask=r_r < R, other=0.0)
    tl.store(p_mean_p + tl.program_id(0) * width + r_column, tl.sum(b_p * b_share[:, None], 0), mask=in_v)


@triton.jit
def add_first_order(
    b_sums,
    p_steps,
    p_first_order,
    r_s,
    first,
    S,
    R,
    T,
    BLOCK_S: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """Adds ``b_sums [BLOCK_S, BLOCK_R]`` times the steps, summed over blocks of positions, from row ``first``."""
    CHUNKS: tl.constexpr = BLOCK_R // BLOCK_T
    r_r = (first + tl.arange(0, BLOCK_R)).to(tl.int64)
    r_steps = ((r_r // T)[None, :] * S + r_s[:, None]) * T + (r_r % T)[None, :]
    b_steps = tl.load(p_steps + r_steps, mask=(r_s < S)[:, None] & (r_r < R)[None, :], other=0.0).to(tl.float32)
    b_first_order = tl.sum(tl.reshape(b_sums * b_steps, [BLOCK_S, CHUNKS, BLOCK_T]), 2)
    r_chunk = (first // BLOCK_T + tl.arange(0, CHUNKS)).to(tl.int64)
    in_first_order = (r_s < S)[:, None] & (r_chunk * BLOCK_T < R)[None, :]
    p_first_order += r_chunk[None, :] * S + r_s[:, None]
    tl.store(p_first_order, tl.load(p_first_order, mask=in_first_order, other=0.0) + b_first_order, mask=in_first_order)


@triton.jit
def first_order_kernel(
    p_probabilities,  # [S, width]
    p_errors,  # [N T, width]
    p_steps,  # [N, S, T]
    p_first_order,  # [N T / BLOCK_T, S] fp32, added to
    S,
    R,  # N T
    T,
    width,
    BLOCK_S: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_V: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Adds ``sum_t k_t sum_v p_v e_tv`` of a slice of the vocabulary (`small_steps`)."""
    r_s = (tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)).to(tl.int64)
    r_r = (tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    p_p = p_probabilities + r_s[:, None] * width
    p_e = p_errors + r_r[None, :] * width
    b_sums = tl.zeros([BLOCK_S, BLOCK_R], dtype=tl.float32)
    for column in tl.range(0, width, BLOCK_V, num_stages=STAGES):
        r_v = column + tl.arange(0, BLOCK_V)
        b_p = tl.load(p_p + r_v[None, :], mask=(r_s < S)[:, None] & (r_v < width)[None, :], other=0.0)
        b_e = tl.load(p_e + r_v[:, None], mask=(r_r < R)[None, :] & (r_v < width)[:, None], other=0.0)
        b_sums = tl.dot(b_p, b_e, b_sums, input_precision=PRECISION)
    # In two halves: the steps of all columns beside all sums are more than the registers hold.
    HALF: tl.constexpr = BLOCK_R // 2
    b_left, b_right = tl.split(tl.permute(tl.reshape(b_sums, [BLOCK_S, 2, HALF]), (0, 2, 1)))
    first = tl.program_id(1) * BLOCK_R
    add_first_order(b_left, p_steps, p_first_order, r_s, first, S, R, T, BLOCK_S, HALF, BLOCK_T)
    add_first_order(b_right, p_steps, p_first_order, r_s, first + HALF, S, R, T, BLOCK_S, HALF, BLOCK_T)


@triton.jit
def curvature_of(x):
    """``exp(-x) - 1 + x`` for ``|x| < 1``, relative error below 3e-6; the Taylor series to ``x**9``."""
    y = 1 / 40320 - x * (1 / 362880)
    y = 1 / 5040 - x * y
    y = 1 / 720 - x * y
    y = 1 / 120 - x * y
    y = 1 / 24 - x * y
    y = 1 / 6 - x * y
    y = 1 / 2 - x * y
    return x * x * y


@triton.jit
def curvature_kernel(
    p_anchor_x,  # [S, D]
    p_anchor_y,  # [S] int64
    p_anchor_lse,  # [S] fp32
    p_weight,  # [V, D]
    p_bias,  # [V]
    p_tokens,  # [N, H] int64, or -1
    p_errors,  # [N, T, H] of the candidates at their tokens
    p_steps,  # [N, S, T]
    p_unit,  # [N] fp32 unit of the steps
    p_curvature,  # [N, S] fp32
    S,
    D,
    H,
    T: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``sum_v p_v (expm1(-c_v) + c_v)`` over the candidate's tokens (`small_steps`)."""
    i_n = tl.program_id(1).to(tl.int64)
    r_s = tl.program_id(0).to(tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S)
    in_s = r_s < S
    b_y = tl.load(p_anchor_y + r_s, mask=in_s, other=-1)
    b_lse = tl.load(p_anchor_lse + r_s, mask=in_s, other=0.0)
    b_unit = tl.load(p_unit + i_n)
    b_curvature = tl.zeros([BLOCK_S], dtype=tl.float32)
    for h in range(0, H, BLOCK_V):
        r_h = h + tl.arange(0, BLOCK_V)
        r_v = tl.load(p_tokens + i_n * H + r_h, mask=r_h < H, other=-1)
        in_h = r_v >= 0
        b_logits = logits_tile(
            p_anchor_x, p_weight, p_bias, r_s, in_s, r_v, in_h, D, HAS_BIAS, BLOCK_D, STAGES, PRECISION
        )
        other_token = in_s[:, None] & in_h[None, :] & (r_v[None, :] != b_y[:, None])
        b_p = tl.where(other_token, tl.exp(b_logits - b_lse[:, None]), 0.0)
        p_k = p_steps + (i_n * S + r_s[:, None]) * T
        p_e = p_errors + i_n * T * H + r_h[None, :]
        b_changes = change_tile(p_k, p_e, H, in_s, in_h, T, BLOCK_S, BLOCK_V, BLOCK_T, PRECISION)
        b_curvature += tl.sum(b_p * curvature_of(b_changes * b_unit), 1)
    tl.store(p_curvature + i_n * S + r_s, b_curvature, mask=in_s)

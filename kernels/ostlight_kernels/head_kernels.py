"""Triton kernels of `one_step_head`: for all steps, and over the full vocabulary. Small steps: `small_step_kernels`."""

from __future__ import annotations

from ostlight_kernels._triton import tl, triton


@triton.jit
def logits_tile(
    p_x,
    p_weight,
    p_bias,
    r_r,
    in_r,
    r_v,
    in_v,
    D,
    HAS_BIAS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """fp32 logits of the rows ``r_r`` of ``x [R, D]`` at the tokens ``r_v``."""
    b_logits = tl.zeros([r_r.shape[0], r_v.shape[0]], dtype=tl.float32)
    for d in tl.range(0, D, BLOCK_D, num_stages=STAGES):
        r_d = d + tl.arange(0, BLOCK_D)
        in_x = in_r[:, None] & (r_d < D)[None, :]
        in_w = in_v[:, None] & (r_d < D)[None, :]
        b_x = tl.load(p_x + r_r[:, None].to(tl.int64) * D + r_d[None, :], mask=in_x, other=0.0)
        b_w = tl.load(p_weight + r_v[:, None].to(tl.int64) * D + r_d[None, :], mask=in_w, other=0.0)
        b_logits = tl.dot(b_x, tl.trans(b_w), b_logits, input_precision=PRECISION)
    if HAS_BIAS:
        b_logits += tl.load(p_bias + r_v, mask=in_v, other=0.0).to(tl.float32)[None, :]
    return b_logits


@triton.jit
def change_tile(
    p_k,
    p_e,
    stride_e,
    in_s,
    in_v,
    T: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_T: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """fp32 changes of logits: one candidate's steps, pointers ``p_k [S, 1]``, times its errors, ``p_e [1, V]``."""
    r_t = tl.arange(0, BLOCK_T)
    b_changes = tl.zeros([BLOCK_S, BLOCK_V], dtype=tl.float32)
    if T == BLOCK_T:
        b_k = tl.load(p_k + r_t[None, :], mask=in_s[:, None], other=0.0)
        b_e = tl.load(p_e + r_t[:, None] * stride_e, mask=in_v[None, :], other=0.0)
        b_changes = tl.dot(b_k, b_e, input_precision=PRECISION)
    else:
        for t in range(0, T, BLOCK_T):
            b_k = tl.load(p_k + t + r_t[None, :], mask=in_s[:, None], other=0.0)
            b_e = tl.load(p_e + (t + r_t[:, None]) * stride_e, mask=in_v[None, :], other=0.0)
            b_changes = tl.dot(b_k, b_e, b_changes, input_precision=PRECISION)
    return b_changes


@triton.jit
def log_sum_exp_kernel(
    p_x,  # [R, D]
    p_weight,  # [V, D]
    p_bias,  # [V]
    p_top,  # [splits, R] fp32 largest logit
    p_sum,  # [splits, R] fp32 sum of exp(logit - top)
    R,
    V,
    D,
    HAS_BIAS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``log sum_v exp(x W' + bias)_v``, of each program's share of the vocabulary."""
    r_r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    b_top = tl.full([BLOCK_R], float("-inf"), dtype=tl.float32)
    b_sum = tl.zeros([BLOCK_R], dtype=tl.float32)
    for v in range(tl.program_id(1) * BLOCK_V, V, tl.num_programs(1) * BLOCK_V):
        r_v = v + tl.arange(0, BLOCK_V)
        b_logits = logits_tile(
            p_x, p_weight, p_bias, r_r, r_r < R, r_v, r_v < V, D, HAS_BIAS, BLOCK_D, STAGES, PRECISION
        )
        b_logits = tl.where((r_v < V)[None, :], b_logits, float("-inf"))
        b_higher = tl.maximum(b_top, tl.max(b_logits, 1))
        # Where a bias of -inf rules out every token so far, -inf minus -inf would be NaN.
        b_offset = tl.where(b_higher > float("-inf"), b_higher, 0.0)
        b_sum = b_sum * tl.exp(b_top - b_offset) + tl.sum(tl.exp(b_logits - b_offset[:, None]), 1)
        b_top = b_higher
    r_out = tl.program_id(1) * R + r_r
    tl.store(p_top + r_out, b_top, mask=r_r < R)
    tl.store(p_sum + r_out, b_sum, mask=r_r < R)


@triton.jit
def errors_kernel(
    p_x,  # [R, D]
    p_y,  # [R] int64, negative where the row is padding
    p_lse,  # [R] fp32
    p_weight,  # [V, D]
    p_bias,  # [V]
    p_errors,  # [R, width] softmax minus one-hot of the tokens v_first .. v_first + width
    R,
    D,
    v_first,
    width,
    HAS_BIAS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``softmax(x W' + bias) - onehot(y)``, 0 where a row is padding."""
    r_r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    r_column = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    r_v = v_first + r_column
    in_v = r_column < width
    b_logits = logits_tile(p_x, p_weight, p_bias, r_r, r_r < R, r_v, in_v, D, HAS_BIAS, BLOCK_D, STAGES, PRECISION)
    b_y = tl.load(p_y + r_r, mask=r_r < R, other=-1)
    b_lse = tl.load(p_lse + r_r, mask=r_r < R, other=0.0)
    b_errors = tl.exp(b_logits - b_lse[:, None]) - (r_v[None, :] == b_y[:, None]).to(tl.float32)
    b_errors = tl.where((b_y >= 0)[:, None] & in_v[None, :], b_errors, 0.0)
    in_errors = (r_r < R)[:, None] & in_v[None, :]
    p_errors += r_r[:, None].to(tl.int64) * width + r_column[None, :]
    tl.store(p_errors, b_errors.to(p_errors.dtype.element_ty), mask=in_errors)


@triton.jit
def steps_kernel(
    p_x,  # [N, T, D], zeros at padding
    p_y,  # [N, T] int64, negative at padding
    p_lse,  # [N, T] fp32
    p_anchor_x,  # [S, D]
    p_anchor_y,  # [S] int64
    p_label_weight,  # [S, D] the head's row of each anchor position's label
    p_label_bias,  # [S]
    p_bound,  # [N] fp32, a bound on the steps
    p_steps,  # [N, S, T] (h_t . h_s + bias) / bound, 0 at padding
    p_change,  # [N, S] fp32 sum_t step * error of the anchor position's label, times bound
    S,
    T,
    D,
    HAS_BIAS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Steps ``k_t`` over eta / n, in ``bound``; and ``c_y`` (`small_steps`) over eta / n."""
    i_n = tl.program_id(1).to(tl.int64)
    r_s = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    in_s = r_s < S
    b_bound = tl.load(p_bound + i_n)
    b_anchor_y = tl.load(p_anchor_y + r_s, mask=in_s, other=-1)
    b_change = tl.zeros([BLOCK_S], dtype=tl.float32)
    for t in range(0, T, BLOCK_T):
        r_t = t + tl.arange(0, BLOCK_T)
        b_products = tl.zeros([BLOCK_S, BLOCK_T], dtype=tl.float32)
        b_logits = tl.zeros([BLOCK_S, BLOCK_T], dtype=tl.float32)
        for d in range(0, D, BLOCK_D):
            r_d = d + tl.arange(0, BLOCK_D)
            in_x = (r_t < T)[:, None] & (r_d < D)[None, :]
            in_a = in_s[:, None] & (r_d < D)[None, :]
            r_a = r_s[:, None].to(tl.int64) * D + r_d[None, :]
            b_x = tl.load(p_x + (i_n * T + r_t[:, None]) * D + r_d[None, :], mask=in_x, other=0.0)
            b_a = tl.load(p_anchor_x + r_a, mask=in_a, other=0.0)
            b_w = tl.load(p_label_weight + r_a, mask=in_a, other=0.0)
            b_products = tl.dot(b_a, tl.trans(b_x), b_products, input_precision=PRECISION)
            b_logits = tl.dot(b_w, tl.trans(b_x), b_logits, input_precision=PRECISION)
        if HAS_BIAS:
            b_products += 1.0
            b_logits += tl.load(p_label_bias + r_s, mask=in_s, other=0.0).to(tl.float32)[:, None]
        b_y = tl.load(p_y + i_n * T + r_t, mask=r_t < T, other=-1)
        b_lse = tl.load(p_lse + i_n * T + r_t, mask=r_t < T, other=0.0)
        b_errors = tl.exp(b_logits - b_lse[None, :]) - (b_anchor_y[:, None] == b_y[None, :]).to(tl.float32)
        b_errors = tl.where((b_y >= 0)[None, :], b_errors, 0.0)
        b_steps = tl.where((b_y >= 0)[None, :], b_products / b_bound, 0.0).to(p_steps.dtype.element_ty)
        # From the rounded steps, so that the label's change and the other tokens' share one rounding.
        b_change += tl.sum(b_steps.to(tl.float32) * b_errors, 1) * b_bound
        in_steps = in_s[:, None] & (r_t < T)[None, :]
        tl.store(p_steps + (i_n * S + r_s[:, None]) * T + r_t[None, :], b_steps, mask=in_steps)
    tl.store(p_change + i_n * S + r_s, b_change, mask=in_s)


@triton.jit
def expm1_of_small(x):
    """``exp(x) - 1`` for ``|x| < 0.5``, relative error below 1.3e-7; the Taylor series to ``x**8``."""
    y = 1 / 5040 + x * (1 / 40320)
    y = 1 / 720 + x * y
    y = 1 / 120 + x * y
    y = 1 / 24 + x * y
    y = 1 / 6 + x * y
    y = 1 / 2 + x * y
    return x * (1.0 + x * y)


@triton.jit
def loss_change_kernel(
    p_anchor_x,  # [S, D]
    p_anchor_y,  # [S] int64
    p_anchor_lse,  # [S] fp32
    p_weight,  # [V, D]
    p_bias,  # [V]
    p_steps,  # [N, S, T]
    p_errors,  # [N, T, width]
    p_change,  # [N, S] fp32 by how much the logit of the label decreases
    p_unit,  # [N] fp32 unit of the steps
    p_shift,  # [splits, N, S] fp32 the largest log2(p exp(d)), at least 0
    p_small,  # [splits, N, S] fp32 sum p expm1(d), over 2^shift
    p_others,  # [splits, N, S] fp32 sum p exp(d), over 2^shift
    N,
    S,
    D,
    v_first,
    width,
    T: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Adds a slice of the vocabulary to ``z = sum_{v != y} p_v expm1(c_y - c_v)`` (`small_steps`)."""
    LOG2_E: tl.constexpr = 1.4426950408889634
    r_s = tl.program_id(0).to(tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S)
    in_s = r_s < S
    b_y = tl.load(p_anchor_y + r_s, mask=in_s, other=-1)
    b_lse = tl.load(p_anchor_lse + r_s, mask=in_s, other=0.0)
    for column in range(tl.program_id(1) * BLOCK_V, width, tl.num_programs(1) * BLOCK_V):
        r_column = column + tl.arange(0, BLOCK_V)
        in_column = r_column < width
        r_v = v_first + r_column
        b_logits = logits_tile(
            p_anchor_x, p_weight, p_bias, r_s, in_s, r_v, in_column, D, HAS_BIAS, BLOCK_D, STAGES, PRECISION
        )
        other_token = in_column[None, :] & (r_v[None, :] != b_y[:, None]) & in_s[:, None]
        b_log2_p = tl.where(other_token, (b_logits - b_lse[:, None]) * LOG2_E, float("-inf"))
        b_mass = tl.sum(tl.exp2(b_log2_p), 1)

        for i_n in tl.range(0, N, num_stages=STAGES):
            r_state = (tl.program_id(1) * N + i_n) * S + r_s
            p_k = p_steps + (i_n * S + r_s[:, None]) * T
            p_e = p_errors + i_n * T * width + r_column[None, :]
            b_changes = change_tile(p_k, p_e, width, in_s, in_column, T, BLOCK_S, BLOCK_V, BLOCK_T, PRECISION)
            b_change = tl.load(p_change + i_n * S + r_s, mask=in_s, other=0.0)
            b_d = b_change[:, None] - b_changes * tl.load(p_unit + i_n)
            b_shift = tl.load(p_shift + r_state, mask=in_s, other=0.0)
            b_small = tl.load(p_small + r_state, mask=in_s, other=0.0)
            b_others = tl.load(p_others + r_state, mask=in_s, other=0.0)

            largest = tl.max(tl.max(tl.abs(b_d), 1), 0)
            if largest < 0.5:
                # The shift inside the exponent keeps p from being hoisted out of the loop and taking registers.
                b_p = tl.exp2(b_log2_p - b_shift[:, None])
                b_sum = tl.sum(b_p * expm1_of_small(b_d), 1)
                tl.store(p_small + r_state, b_small + b_sum, mask=in_s)
                tl.store(p_others + r_state, b_others + b_sum + b_mass * tl.exp2(-b_shift), mask=in_s)
            else:
                b_higher = tl.maximum(b_shift, tl.max(b_log2_p + b_d * LOG2_E, 1))
                b_decay = tl.exp2(b_shift - b_higher)
                b_log2_old = b_log2_p - b_higher[:, None]
                b_old = tl.exp2(b_log2_old)
                b_new = tl.exp2(b_log2_old + b_d * LOG2_E)
                b_grown = tl.where(tl.abs(b_d) < 0.5, b_old * expm1_of_small(b_d), b_new - b_old)
                tl.store(p_shift + r_state, b_higher, mask=in_s)
                tl.store(p_small + r_state, b_small * b_decay + tl.sum(b_grown, 1), mask=in_s)
                tl.store(p_others + r_state, b_others * b_decay + tl.sum(b_new, 1), mask=in_s)
        # The next tile reads what this one wrote.
        tl.debug_barrier()

"""What one SGD step of a linear head on each candidate does to the anchor loss, in closed form.

The vocabulary goes by in slices. The anchors' probabilities of a tile of words are formed once, stay in registers and
serve every candidate; a candidate adds one product per tile (its step sizes against its softmax errors) and a sum.
What is kept between tiles is three numbers per candidate and anchor token.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ostlight_kernels import reference
from ostlight_kernels._triton import triton
from ostlight_kernels.checks import IGNORED, check_one_step_head, check_tensor
from ostlight_kernels.dispatch import capability, explain
from ostlight_kernels.head_kernels import errors_kernel, log_sum_exp_kernel, loss_change_kernel, steps_kernel
from ostlight_kernels.head_problem import HeadProblem
from ostlight_kernels.tiles import HeadTiles, head_table

ERRORS_BYTES = 64 * 2**20
"""Softmax errors of the candidates taken together at one slice of the vocabulary."""

STEPS_BYTES = 64 * 2**20
"""Step sizes ``[candidates, anchor tokens, tokens]`` of the candidates taken together."""

PROGRAMS = 264
"""Programs wanted: two turns of the H200's 132 processors, each of which the registers of `loss_change` fill."""


class _Launcher:
    """One head, one set of tiles, and the kernels as plain calls."""

    def __init__(self, weight: Tensor, bias: Tensor | None, tiles: HeadTiles) -> None:
        self.vocabulary = weight.shape[0]
        self.weight, self.bias, self.tiles = weight, bias, tiles
        self._head = {
            "p_weight": weight,
            "p_bias": weight if bias is None else bias,
            "V": self.vocabulary,
            "D": weight.shape[1],
        }
        self._meta = head_meta(tiles, weight.dtype, bias is not None)

    def _rows_and_words(self) -> dict[str, int]:
        return {"BLOCK_R": self.tiles.block_s, "BLOCK_V": self.tiles.block_v}

    def log_sum_exp(self, x: Tensor) -> Tensor:
        """``[R]`` fp32 over the vocabulary, of the rows of ``x [R, D]``."""
        rows = x.shape[0]
        if rows == 0:
            return x.new_empty(0, dtype=torch.float32)
        blocks, splits = self._grid(rows, self.vocabulary)
        top, total = (torch.empty(splits, rows, dtype=torch.float32, device=x.device) for _ in range(2))
        sizes = self._rows_and_words()
        log_sum_exp_kernel[(blocks, splits)](p_x=x, p_top=top, p_sum=total, R=rows, **sizes, **self._head, **self._meta)
        return torch.logsumexp(top + total.log(), 0)

    def errors(self, x: Tensor, y: Tensor, lse: Tensor, v_first: int, width: int) -> Tensor:
        """``[R, width]`` softmax errors of the rows of ``x [R, D]`` at the words from ``v_first``."""
        rows = x.shape[0]
        errors = torch.empty(rows, width, dtype=x.dtype, device=x.device)
        errors_kernel[(triton.cdiv(rows, self.tiles.block_s), triton.cdiv(width, self.tiles.block_v))](
            p_x=x,
            p_y=y,
            p_lse=lse,
            p_errors=errors,
            R=rows,
            v_first=v_first,
            width=width,
            **self._rows_and_words(),
            **self._head,
            **self._meta,
        )
        return errors

    def _grid(self, rows: int, words: int) -> tuple[int, int]:
        blocks = triton.cdiv(rows, self.tiles.block_s)
        return blocks, max(1, min(PROGRAMS // blocks, triton.cdiv(words, self.tiles.block_v)))

    def gains(self, block: HeadProblem, anchor_lse: Tensor) -> Tensor:
        """``[n, s]`` float64, by how much each anchor token's loss falls."""
        n, longest, d = block.x.shape
        s = block.anchor_x.shape[0]
        t, block_t = step_tokens(longest, self.tiles)
        x = F.pad(block.x, (0, 0, 0, t - longest)).contiguous()
        y = F.pad(block.y, (0, t - longest), value=IGNORED).contiguous()
        rows = x.view(n * t, d)
        lse = self.log_sum_exp(rows)

        label_weight = self.weight[block.anchor_y]
        label_bias = label_weight if self.bias is None else self.bias[block.anchor_y]
        longest_anchor = block.anchor_x.float().norm(dim=-1).amax()
        size = x.float().norm(dim=-1).amax(1) * longest_anchor + (self.bias is not None)
        size = size.clamp_min(torch.finfo(torch.float32).tiny)
        steps = torch.empty(n, s, t, dtype=x.dtype, device=x.device)
        change = torch.empty(n, s, dtype=torch.float32, device=x.device)
        anchors = {"p_anchor_x": block.anchor_x, "p_anchor_y": block.anchor_y, "S": s, "p_steps": steps}
        per_candidate = {"p_change": change, "p_size": size}
        steps_kernel[(triton.cdiv(s, self.tiles.block_s), n)](
            p_x=x,
            p_y=y,
            p_lse=lse,
            p_label_weight=label_weight,
            p_label_bias=label_bias,
            T=t,
            D=d,
            BLOCK_S=self.tiles.block_s,
            BLOCK_T=block_t,
            **anchors,
            **per_candidate,
            **self._meta,
        )

        width = max(1, ERRORS_BYTES // (n * t * x.element_size()))
        width = min(self.vocabulary, max(width // self.tiles.block_v, 1) * self.tiles.block_v)
        grid = self._grid(s, width)
        shift, small, others = (torch.zeros(grid[1], n, s, dtype=torch.float32, device=x.device) for _ in range(3))
        for v_first in range(0, self.vocabulary, width):
            width = min(width, self.vocabulary - v_first)
            loss_change_kernel[grid](
                p_anchor_lse=anchor_lse,
                p_errors=self.errors(rows, y, lse, v_first, width),
                p_scale=block.scale.nan_to_num(0.0),  # a candidate without an answer moves nothing
                p_shift=shift,
                p_small=small,
                p_others=others,
                N=n,
                v_first=v_first,
                width=width,
                T=t,
                BLOCK_S=self.tiles.block_s,
                BLOCK_V=self.tiles.block_v,
                BLOCK_T=block_t,
                STAGES=self.tiles.stages,
                **anchors,
                **per_candidate,
                **self._head,
                **self._meta,
            )
        label_logits = (block.anchor_x.double() * label_weight).sum(-1)
        if self.bias is not None:
            label_logits += label_bias
        return _combined(shift.double(), small.double(), others.double(), label_logits - anchor_lse)


def _combined(shift: Tensor, small: Tensor, others: Tensor, label_log_p: Tensor) -> Tensor:
    """``[n, s]`` from the ``[splits, n, s]`` sums over parts of the vocabulary."""
    top = shift.amax(0)
    small = (small * torch.exp2(shift - top)).sum(0) * torch.exp2(top)
    others = (others * torch.exp2(shift - top)).sum(0)
    whole = top * math.log(2) + torch.log(others + torch.exp(label_log_p - top * math.log(2)))
    return -torch.where(small.abs() < 0.5, torch.log1p(small), whole)


def step_tokens(longest: int, tiles: HeadTiles) -> tuple[int, int]:
    """Tokens of a candidate padded to whole blocks, and the block."""
    block = min(tiles.block_t, max(16, triton.next_power_of_2(longest)))
    return max(1, triton.cdiv(longest, block)) * block, block


def head_meta(tiles: HeadTiles, dtype: torch.dtype, has_bias: bool) -> dict[str, object]:
    """Compile-time arguments that all four kernels share."""
    return {
        "HAS_BIAS": has_bias,
        "BLOCK_D": tiles.block_d,
        "PRECISION": "ieee",
        "num_warps": tiles.warps,
        "enable_fp_fusion": True,
    }


def launch(problem: HeadProblem, weight: Tensor, bias: Tensor | None, tiles: HeadTiles | None = None) -> Tensor:
    """Run the kernels on a checked problem. ``tiles`` overrides the table, for measuring."""
    tiles = tiles or head_table(weight.dtype, capability(weight))[0]
    head = _Launcher(weight.contiguous(), None if bias is None else bias.contiguous(), tiles)
    n, longest, _ = problem.x.shape
    s = problem.anchor_x.shape[0]
    anchor_lse = head.log_sum_exp(problem.anchor_x)
    token_bytes = step_tokens(longest, tiles)[0] * weight.element_size()
    block = max(1, min(STEPS_BYTES // (s * token_bytes), ERRORS_BYTES // (tiles.block_v * token_bytes)))
    some = (problem.candidates(first, first + block) for first in range(0, n, block))
    utilities = [one.utilities(head.gains(one, anchor_lse)).float() for one in some]
    return torch.cat(utilities) if utilities else weight.new_zeros(0, dtype=torch.float32)


@torch.no_grad()
def one_step_head(
    h: Tensor,
    labels: Tensor,
    anchor_h: Tensor,
    anchor_labels: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eta: float,
    anchor_weights: Tensor | None = None,
) -> Tensor:
    """The exact utility of every candidate where only a linear head is trained: ``u_i = L_V(W) - L_V(W - eta g_i)``.

    ``g_i`` is the gradient of candidate i's mean cross-entropy over its answer tokens with respect to the head's
    weight and bias, ``L_V`` the weighted mean over anchors of each anchor's mean cross-entropy over its answer tokens
    (arXiv 2605.07488, section 3). The head is not tied to an embedding, and the features stay as they are.

    Args:
        h: ``[N, T, D]`` features of the candidates' tokens; bf16, fp16, fp32 or fp64.
        labels: ``[N, T]`` int64 or int32, the token each feature is to predict (already shifted), -100 ignored.
        anchor_h: ``[A, S, D]`` features of the anchors' tokens.
        anchor_labels: ``[A, S]`` as ``labels``; every anchor has at least one token that counts.
        weight: ``[V, D]`` the head. For 16-bit weights the step is taken on the values in fp32, never rounded back.
        bias: ``[V]`` or ``None``; where it is given it takes the step too.
        eta: step size, a number.
        anchor_weights: ``[A]`` floats of at least 0, normalised here; ``None``: all alike.

    Returns:
        ``[N]`` utilities in nats, positive helps; fp32, fp64 for fp64 input. NaN for a candidate without an answer
        token: it has no loss to step on. No gradient ``[V, D]``, no new weight and no logits ``[N * T, V]`` or
        ``[A * S, V]`` are ever in memory.

    Raises:
        ValueError: no dense tensor, a mismatch of shape, dtype or device, labels outside the vocabulary, an anchor
            without an answer token, unusable weights, an eta that fp32 (fp64 for fp64 input) cannot hold; names the
            argument, what it got and what it takes.
    """
    check_tensor(h, "h")
    if explain(h).name == "reference":
        return reference.one_step_head(h, labels, anchor_h, anchor_labels, weight, bias, eta, anchor_weights)
    check_one_step_head(h, labels, anchor_h, anchor_labels, weight, bias, eta, anchor_weights)
    problem = HeadProblem.of(h, labels, anchor_h, anchor_labels, eta, anchor_weights)
    with torch.cuda.device_of(weight):
        return launch(problem, weight, bias)

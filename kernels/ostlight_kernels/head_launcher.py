"""The kernels of `one_step_head` as plain calls, for one head and one set of tiles."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ostlight_kernels import head_kernels, small_step_kernels
from ostlight_kernels._triton import triton
from ostlight_kernels.tiles import HeadTiles, ProductTiles

PROGRAMS = 264
"""Programs wanted: two turns of the H200's 132 processors, each of which the registers of `loss_change` fill."""

PROBABILITY_SCALE = 2.0**14
"""What probabilities are kept times, or fp16 would lose those below 6e-8."""


class HeadLauncher:
    """Legend: R rows, V words, D width, n candidates of T tokens, s anchor tokens, H words of a candidate."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, tiles: HeadTiles, logits: ProductTiles, slopes: ProductTiles
    ) -> None:
        self.vocabulary = weight.shape[0]
        self.weight, self.bias, self.tiles = weight, bias, tiles
        self._logits_tiles, self._slopes_tiles = logits, slopes
        head = {"p_weight": weight, "p_bias": weight if bias is None else bias, "D": weight.shape[1]}
        self._head = head | head_meta(tiles, bias is not None)
        self._logits = head | logits_meta(logits, bias is not None)

    def log_sum_exp(self, x: Tensor) -> Tensor:
        """``[R]`` fp32 over the vocabulary, of the rows of ``x [R, D]``."""
        rows = x.shape[0]
        if rows == 0:
            return x.new_empty(0, dtype=torch.float32)
        blocks, splits = _split(rows, self._logits_tiles.rows, self.vocabulary, self._logits_tiles.columns)
        top, total = (torch.empty(splits, rows, dtype=torch.float32, device=x.device) for _ in range(2))
        head_kernels.log_sum_exp_kernel[(blocks, splits)](
            p_x=x, p_top=top, p_sum=total, R=rows, V=self.vocabulary, **self._logits
        )
        return torch.logsumexp(top + total.log(), 0)

    def errors(self, x: Tensor, y: Tensor, lse: Tensor, v_first: int, width: int) -> Tensor:
        """``[R, width]`` softmax errors of the rows of ``x [R, D]`` at the words from ``v_first``."""
        rows = x.shape[0]
        errors = torch.empty(rows, width, dtype=x.dtype, device=x.device)
        head_kernels.errors_kernel[self._tiled(rows, width)](
            p_x=x,
            p_y=y,
            p_lse=lse,
            p_errors=errors,
            R=rows,
            v_first=v_first,
            width=width,
            **self._logits,
        )
        return errors

    def probabilities(
        self, x: Tensor, y: Tensor, lse: Tensor, share: Tensor, v_first: int, width: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As ``errors``, of words other than the label and times ``PROBABILITY_SCALE``.

        Beside the ``[R, width]`` probabilities their means ``[width]`` by the rows' shares ``[R]``, and their sums
        ``[R]``, both fp32.
        """
        rows = x.shape[0]
        grid = self._tiled(rows, width)
        probabilities = torch.empty(rows, width, dtype=x.dtype, device=x.device)
        felt = torch.empty(grid[0], width, dtype=torch.float32, device=x.device)
        others = torch.empty(grid[1], rows, dtype=torch.float32, device=x.device)
        small_step_kernels.probabilities_kernel[grid](
            p_x=x,
            p_y=y,
            p_lse=lse,
            p_share=share,
            p_probabilities=probabilities,
            p_felt=felt,
            p_others=others,
            R=rows,
            v_first=v_first,
            width=width,
            SCALE=PROBABILITY_SCALE,
            **self._logits,
        )
        return probabilities, felt.sum(0), others.sum(0)

    def steps(
        self, x: Tensor, y: Tensor, lse: Tensor, anchor_x: Tensor, anchor_y: Tensor, size: Tensor
    ) -> tuple[Tensor, Tensor]:
        """``[n, s, T]`` products of features, over a bound on them ``size [n]``; ``[n, s]`` their sums at the labels.

        The sums are fp32 and over the candidate's tokens, each times its softmax error at the anchor token's label.
        """
        n, t, d = x.shape
        s = anchor_x.shape[0]
        steps = torch.empty(n, s, t, dtype=x.dtype, device=x.device)
        change = torch.empty(n, s, dtype=torch.float32, device=x.device)
        label_weight = self.weight[anchor_y]
        head_kernels.steps_kernel[(triton.cdiv(s, self.tiles.block_s), n)](
            p_x=x,
            p_y=y,
            p_lse=lse,
            p_anchor_x=anchor_x,
            p_anchor_y=anchor_y,
            p_label_weight=label_weight,
            p_label_bias=label_weight if self.bias is None else self.bias[anchor_y],
            p_size=size,
            p_steps=steps,
            p_change=change,
            S=s,
            T=t,
            D=d,
            BLOCK_S=self.tiles.block_s,
            BLOCK_T=token_block(t, self.tiles),
            **{k: v for k, v in head_meta(self.tiles, self.bias is not None).items() if k != "STAGES"},
        )
        return steps, change

    def add_slopes(self, slopes: Tensor, probabilities: Tensor, errors: Tensor, steps: Tensor) -> None:
        """``slopes [n T / block, s]`` fp32, of blocks of a candidate's tokens, grow by what a slice of words adds."""
        tiles = self._slopes_tiles
        rows, width = errors.shape
        _, s, t = steps.shape
        block_t = token_block(t, self.tiles)
        columns = max(tiles.columns, 2 * block_t)
        small_step_kernels.slopes_kernel[(triton.cdiv(s, tiles.rows), triton.cdiv(rows, columns))](
            p_probabilities=probabilities,
            p_errors=errors,
            p_steps=steps,
            p_slopes=slopes,
            S=s,
            R=rows,
            T=t,
            width=width,
            BLOCK_R=columns,
            BLOCK_T=block_t,
            **slopes_meta(tiles),
        )

    def bends(
        self, words: Tensor, errors: Tensor, steps: Tensor, unit: Tensor, anchor_x: Tensor, y: Tensor, lse: Tensor
    ) -> Tensor:
        """``[n, s]`` fp32, of the words ``[n, H]``, where the candidates have the errors ``[n, T, H]``."""
        n, s, t = steps.shape
        bends = torch.empty(n, s, dtype=torch.float32, device=steps.device)
        small_step_kernels.bends_kernel[(triton.cdiv(s, self.tiles.block_s), n)](
            p_anchor_x=anchor_x,
            p_anchor_y=y,
            p_anchor_lse=lse,
            p_words=words,
            p_errors=errors,
            p_steps=steps,
            p_unit=unit,
            p_bends=bends,
            S=s,
            H=words.shape[1],
            T=t,
            BLOCK_S=self.tiles.block_s,
            BLOCK_V=self.tiles.block_v,
            BLOCK_T=token_block(t, self.tiles),
            **self._head,
        )
        return bends

    def sums(self, n: int, s: int, width: int, like: Tensor) -> list[Tensor]:
        """Three of ``[splits, n, s]`` fp32 zeros, which ``add_loss_changes`` of slices of ``width`` words adds to."""
        splits = _split(s, self.tiles.block_s, width, self.tiles.block_v)[1]
        return [torch.zeros(splits, n, s, dtype=torch.float32, device=like.device) for _ in range(3)]

    def add_loss_changes(
        self,
        sums: list[Tensor],
        errors: Tensor,
        steps: Tensor,
        change: Tensor,
        unit: Tensor,
        anchor_x: Tensor,
        y: Tensor,
        lse: Tensor,
        v_first: int,
    ) -> None:
        """What a slice of words adds, with the candidates' ``errors [n T, width]`` there."""
        n, s, t = steps.shape
        shift, small, others = sums
        head_kernels.loss_change_kernel[(triton.cdiv(s, self.tiles.block_s), len(shift))](
            p_anchor_x=anchor_x,
            p_anchor_y=y,
            p_anchor_lse=lse,
            p_steps=steps,
            p_errors=errors,
            p_change=change,
            p_unit=unit,
            p_shift=shift,
            p_small=small,
            p_others=others,
            N=n,
            S=s,
            v_first=v_first,
            width=errors.shape[1],
            T=t,
            BLOCK_S=self.tiles.block_s,
            BLOCK_V=self.tiles.block_v,
            BLOCK_T=token_block(t, self.tiles),
            **self._head,
        )

    def _tiled(self, rows: int, words: int) -> tuple[int, int]:
        return triton.cdiv(rows, self._logits_tiles.rows), triton.cdiv(words, self._logits_tiles.columns)


def _split(rows: int, block: int, words: int, block_v: int) -> tuple[int, int]:
    """Blocks of rows, and programs that share the words of one."""
    blocks = triton.cdiv(rows, block)
    return blocks, max(1, min(PROGRAMS // blocks, triton.cdiv(words, block_v)))


def combined(sums: list[Tensor], label_log_p: Tensor) -> Tensor:
    """``[n, s]`` float64, by how much each anchor token's loss falls, from the sums over parts of the vocabulary."""
    shift, small, others = (part.double() for part in sums)
    top = shift.amax(0)
    small = (small * torch.exp2(shift - top)).sum(0) * torch.exp2(top)
    others = (others * torch.exp2(shift - top)).sum(0)
    whole = top * math.log(2) + torch.log(others + torch.exp(label_log_p - top * math.log(2)))
    return -torch.where(small.abs() < 0.5, torch.log1p(small), whole)


def token_block(tokens: int, tiles: HeadTiles) -> int:
    """Tokens of a candidate that are taken at once; candidates are padded to whole blocks of these."""
    return min(tiles.block_t, max(16, int(triton.next_power_of_2(tokens))))


def padded_tokens(tokens: int, tiles: HeadTiles) -> int:
    block = token_block(tokens, tiles)
    return max(1, int(triton.cdiv(tokens, block))) * block


def head_meta(tiles: HeadTiles, has_bias: bool) -> dict[str, object]:
    """Compile-time arguments of the kernels that join a candidate's steps and errors."""
    return {"HAS_BIAS": has_bias, "BLOCK_D": tiles.block_d} | _common_meta(tiles)


def logits_meta(tiles: ProductTiles, has_bias: bool) -> dict[str, object]:
    """Compile-time arguments of the kernels of tokens' logits."""
    sizes = {"BLOCK_R": tiles.rows, "BLOCK_V": tiles.columns, "BLOCK_D": tiles.depth}
    return {"HAS_BIAS": has_bias} | sizes | _common_meta(tiles)


def slopes_meta(tiles: ProductTiles) -> dict[str, object]:
    """Compile-time arguments of the slopes' product, but for its columns."""
    return {"BLOCK_S": tiles.rows, "BLOCK_V": tiles.depth} | _common_meta(tiles)


def _common_meta(tiles: HeadTiles | ProductTiles) -> dict[str, object]:
    return {"STAGES": tiles.stages, "PRECISION": "ieee", "num_warps": tiles.warps, "enable_fp_fusion": True}

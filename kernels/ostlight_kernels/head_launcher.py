"""The step of `one_step_head` through the Triton kernels, the vocabulary in slices."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ostlight_kernels import head_kernels, small_step_kernels
from ostlight_kernels._triton import triton
from ostlight_kernels.checks import IGNORED
from ostlight_kernels.dispatch import capability
from ostlight_kernels.head_problem import HeadProblem
from ostlight_kernels.small_steps import Candidates, HeadStep
from ostlight_kernels.tiles import HeadTiles, ProductTiles, head_tiles, product_tiles

SLICE_BYTES = 64 * 2**20
"""Softmax errors of the candidates taken together, or probabilities of the anchors, at one slice of the vocabulary."""

STEPS_BYTES = 128 * 2**20
"""Steps ``[candidates, anchor positions, positions]`` of the candidates taken together."""

NARROWEST = 128
"""Tokens of a slice at least, and a multiple of them unless the vocabulary ends."""

PROGRAMS = 264
"""Programs wanted: two turns of the H200's 132 processors, each of which the registers of `loss_change` fill."""

PROBABILITY_SCALE = 2.0**14
"""What probabilities are stored times, or fp16 would lose those below 6e-8."""


class KernelHeadStep(HeadStep):
    """The utilities of a checked problem.

    Candidates' positions are padded to whole blocks. Their steps are stored in the inputs' dtype, divided by a bound on
    them; sums are fp32 or wider.

    Args:
        problem, weight, bias: as for ``HeadStep``; bf16, fp16 or fp32 on a CUDA device.
        tiles, product: configurations other than the tables'.
    """

    def __init__(
        self,
        problem: HeadProblem,
        weight: Tensor,
        bias: Tensor | None,
        tiles: HeadTiles | None = None,
        product: ProductTiles | None = None,
    ) -> None:
        weight, bias = weight.contiguous(), None if bias is None else bias.contiguous()
        self.tiles = tiles or head_tiles(weight.dtype, capability(weight))
        self.product = product or product_tiles(weight.dtype, capability(weight))
        head = {"p_weight": weight, "p_bias": weight if bias is None else bias, "D": weight.shape[1]}
        self._head = head | head_meta(self.tiles, bias is not None)
        self._logits = head | logits_meta(self.product, bias is not None)
        super().__init__(problem, weight, bias, problem.anchor_x)
        self._longest_anchor = self.anchors.x.float().norm(dim=-1).amax()

    def candidates_at_once(self) -> int:
        position_bytes = padded_positions(self.problem.x.shape[1], self.tiles) * self.weight.element_size()
        # Of a candidate: steps, errors at the narrowest slice, and two numbers of fp32 per token.
        return min(
            STEPS_BYTES // (len(self.anchors.x) * position_bytes),
            SLICE_BYTES // (NARROWEST * position_bytes),
            SLICE_BYTES // (8 * self.vocabulary),
        )

    def log_sum_exp(self, x: Tensor) -> Tensor:
        rows = x.shape[0]
        if rows == 0:
            return x.new_empty(0, dtype=torch.float32)
        blocks, splits = _split(rows, self.product.rows, self.vocabulary, self.product.columns)
        top, total = (torch.empty(splits, rows, dtype=torch.float32, device=x.device) for _ in range(2))
        head_kernels.log_sum_exp_kernel[(blocks, splits)](
            p_x=x, p_top=top, p_sum=total, R=rows, V=self.vocabulary, **self._logits
        )
        return torch.logsumexp(top + total.log(), 0)

    def candidates(self, block: HeadProblem) -> Candidates:
        n, longest, d = block.x.shape
        t, s = padded_positions(longest, self.tiles), len(self.anchors.x)
        x = F.pad(block.x, (0, 0, 0, t - longest)).contiguous()
        y = F.pad(block.y, (0, t - longest), value=IGNORED).contiguous()
        lse = self.log_sum_exp(x.view(n * t, d)).view(n, t)
        bound = x.float().norm(dim=-1).amax(1) * self._longest_anchor + (self.bias is not None)
        bound = bound.clamp_min(torch.finfo(torch.float32).tiny)
        steps = torch.empty(n, s, t, dtype=x.dtype, device=x.device)
        change = torch.empty(n, s, dtype=torch.float32, device=x.device)
        label_weight = self.weight[self.anchors.y]
        head_kernels.steps_kernel[(triton.cdiv(s, self.tiles.block_s), n)](
            p_x=x,
            p_y=y,
            p_lse=lse,
            p_anchor_x=self.anchors.x,
            p_anchor_y=self.anchors.y,
            p_label_weight=label_weight,
            p_label_bias=label_weight if self.bias is None else self.bias[self.anchors.y],
            p_bound=bound,
            p_steps=steps,
            p_change=change,
            S=s,
            T=t,
            D=d,
            BLOCK_S=self.tiles.block_s,
            BLOCK_T=position_block(t, self.tiles),
            **{k: v for k, v in head_meta(self.tiles, self.bias is not None).items() if k != "STAGES"},
        )
        scale = block.scale.nan_to_num(0.0)  # a candidate without an answer moves nothing
        unit = scale * bound
        size = torch.linalg.vector_norm(steps, dim=2, dtype=torch.float32).amax(1) * unit.abs()
        return Candidates(x, y, lse, steps, unit, change * scale[:, None], size)

    def first_order(self, candidates: Candidates) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        n, s, t = candidates.steps.shape
        block_t = position_block(t, self.tiles)
        columns = max(self.product.columns, 2 * block_t)
        sums = torch.zeros(n * t // block_t, s, dtype=torch.float32, device=candidates.x.device)
        others, mean_p, squared_errors = torch.zeros_like(self.anchors.lse), [], []
        for v_first, width in self._slices(max(s, n * t)):
            probabilities, slice_mean_p, slice_sums = self._probabilities(v_first, width)
            errors = self._errors(candidates, v_first, width)
            small_step_kernels.first_order_kernel[(triton.cdiv(s, self.product.rows), triton.cdiv(n * t, columns))](
                p_probabilities=probabilities,
                p_errors=errors,
                p_steps=candidates.steps,
                p_first_order=sums,
                S=s,
                R=n * t,
                T=t,
                width=width,
                BLOCK_R=columns,
                BLOCK_T=block_t,
                **first_order_meta(self.product),
            )
            others += slice_sums
            mean_p.append(slice_mean_p)
            norms = torch.linalg.vector_norm(errors.view(n, t, width), dim=1, dtype=torch.float32)
            squared_errors.append(norms.square())
        first_order = sums.view(n, t // block_t, s).sum(1) * (candidates.unit / PROBABILITY_SCALE)[:, None]
        return first_order, others, torch.cat(mean_p), torch.cat(squared_errors, 1)

    def curvature(self, candidates: Candidates, tokens: Tensor) -> Tensor:
        n, s, t = candidates.steps.shape
        h = tokens.shape[1]
        if not h:
            return torch.zeros(n, s, dtype=torch.float32, device=tokens.device)
        found = torch.empty(n, s, dtype=torch.float32, device=tokens.device)
        block = max(1, SLICE_BYTES // (4 * h * max(self.weight.shape[1], t)))
        for first in range(0, n, block):
            part = slice(first, first + block)
            some = candidates[part]
            small_step_kernels.curvature_kernel[(triton.cdiv(s, self.tiles.block_s), len(some.x))](
                p_tokens=tokens[part],
                p_errors=self._errors_at(some, tokens[part].clamp_min(0)),
                p_curvature=found[part],
                H=h,
                **self._pairs(some),
            )
        return found

    def by_full_vocabulary(self, candidates: Candidates) -> Tensor:
        n, s, t = candidates.steps.shape
        slices = list(self._slices(n * t))
        blocks, splits = _split(s, self.tiles.block_s, slices[0][1], self.tiles.block_v)
        sums = [torch.zeros(splits, n, s, dtype=torch.float32, device=candidates.x.device) for _ in range(3)]
        for v_first, width in slices:
            head_kernels.loss_change_kernel[(blocks, splits)](
                p_errors=self._errors(candidates, v_first, width),
                p_change=candidates.change,
                p_shift=sums[0],
                p_small=sums[1],
                p_others=sums[2],
                N=n,
                v_first=v_first,
                width=width,
                **self._pairs(candidates),
            )
        anchors = self.anchors
        label_logits = (anchors.x.double() * self.weight[anchors.y]).sum(-1)
        if self.bias is not None:
            label_logits += self.bias[anchors.y]
        return combined(sums, label_logits - anchors.lse)

    def _slices(self, rows: int) -> Iterator[tuple[int, int]]:
        """First token and width of slices of the vocabulary, such that so many rows fit in ``SLICE_BYTES``."""
        width = SLICE_BYTES // max(1, rows * self.weight.element_size())
        width = max(width // NARROWEST, 1) * NARROWEST
        for v_first in range(0, self.vocabulary, width):
            yield v_first, min(width, self.vocabulary - v_first)

    def _errors(self, candidates: Candidates, v_first: int, width: int) -> Tensor:
        """``[n t, width]`` softmax errors at the tokens from ``v_first``."""
        x = candidates.x.flatten(0, 1)
        errors = torch.empty(len(x), width, dtype=x.dtype, device=x.device)
        head_kernels.errors_kernel[self._tiled(len(x), width)](
            p_x=x,
            p_y=candidates.y,
            p_lse=candidates.lse,
            p_errors=errors,
            R=len(x),
            v_first=v_first,
            width=width,
            **self._logits,
        )
        return errors

    def _errors_at(self, candidates: Candidates, tokens: Tensor) -> Tensor:
        """``[n, t, H]`` softmax errors at ``tokens [n, H]`` of each candidate."""
        logits = candidates.x.float() @ self.weight[tokens].float().mT
        if self.bias is not None:
            logits += self.bias[tokens][:, None]
        labels = (candidates.y[:, :, None] == tokens[:, None]).float()
        errors = torch.exp(logits - candidates.lse[:, :, None]) - labels
        return errors.masked_fill_((candidates.y == IGNORED)[:, :, None], 0.0).to(candidates.x.dtype)

    def _probabilities(self, v_first: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of the tokens from ``v_first`` at the anchor positions, 0 at labels.

        Returns:
            ``[s, width]`` times ``PROBABILITY_SCALE``; their means ``[width]`` by the positions' shares, and their sums
            ``[s]``, both fp32.
        """
        x = self.anchors.x
        grid = self._tiled(len(x), width)
        probabilities = torch.empty(len(x), width, dtype=x.dtype, device=x.device)
        mean_p = torch.empty(grid[0], width, dtype=torch.float32, device=x.device)
        others = torch.empty(grid[1], len(x), dtype=torch.float32, device=x.device)
        small_step_kernels.probabilities_kernel[grid](
            p_x=x,
            p_y=self.anchors.y,
            p_lse=self.anchors.lse,
            p_share=self.anchors.share,
            p_probabilities=probabilities,
            p_mean_p=mean_p,
            p_others=others,
            R=len(x),
            v_first=v_first,
            width=width,
            SCALE=PROBABILITY_SCALE,
            **self._logits,
        )
        return probabilities, mean_p.sum(0), others.sum(0)

    def _pairs(self, candidates: Candidates) -> dict[str, object]:
        """Arguments of the kernels that multiply the candidates' steps with their errors."""
        t = candidates.steps.shape[2]
        anchors = {"p_anchor_x": self.anchors.x, "p_anchor_y": self.anchors.y, "p_anchor_lse": self.anchors.lse}
        blocks = {"BLOCK_S": self.tiles.block_s, "BLOCK_V": self.tiles.block_v}
        steps = {"p_steps": candidates.steps, "p_unit": candidates.unit, "S": len(self.anchors.x), "T": t}
        return anchors | steps | blocks | {"BLOCK_T": position_block(t, self.tiles)} | self._head

    def _tiled(self, rows: int, tokens: int) -> tuple[int, int]:
        return triton.cdiv(rows, self.product.rows), triton.cdiv(tokens, self.product.columns)


def _split(rows: int, block: int, tokens: int, block_v: int) -> tuple[int, int]:
    """Blocks of rows, and programs that share the tokens of one."""
    blocks = triton.cdiv(rows, block)
    return blocks, max(1, min(PROGRAMS // blocks, triton.cdiv(tokens, block_v)))


def combined(sums: list[Tensor], label_log_p: Tensor) -> Tensor:
    """``[n, s]`` float64 ``-log1p(z)``, from the sums ``[splits, n, s]`` over parts of the vocabulary.

    Args:
        sums: ``shift``, ``small`` and ``others`` of ``loss_change_kernel``.
        label_log_p: ``[s]`` float64 log-probability of each anchor position's label.
    """
    shift, small, others = (part.double() for part in sums)
    top = shift.amax(0)
    small = (small * torch.exp2(shift - top)).sum(0) * torch.exp2(top)
    others = (others * torch.exp2(shift - top)).sum(0)
    whole = top * math.log(2) + torch.log(others + torch.exp(label_log_p - top * math.log(2)))
    return -torch.where(small.abs() < 0.5, torch.log1p(small), whole)


def position_block(positions: int, tiles: HeadTiles) -> int:
    """Positions of a candidate that are taken at once; candidates are padded to whole blocks of these."""
    return min(tiles.block_t, max(16, int(triton.next_power_of_2(positions))))


def padded_positions(positions: int, tiles: HeadTiles) -> int:
    """The length candidates are padded to."""
    block = position_block(positions, tiles)
    return max(1, int(triton.cdiv(positions, block))) * block


def head_meta(tiles: HeadTiles, has_bias: bool) -> dict[str, object]:
    """Compile-time arguments of the kernels that multiply a candidate's steps with its errors."""
    return {"HAS_BIAS": has_bias, "BLOCK_D": tiles.block_d} | _common_meta(tiles)


def logits_meta(tiles: ProductTiles, has_bias: bool) -> dict[str, object]:
    """Compile-time arguments of the kernels that form logits."""
    sizes = {"BLOCK_R": tiles.rows, "BLOCK_V": tiles.columns, "BLOCK_D": tiles.depth}
    return {"HAS_BIAS": has_bias} | sizes | _common_meta(tiles)


def first_order_meta(tiles: ProductTiles) -> dict[str, object]:
    """Compile-time arguments of the first-order product, but for its columns."""
    return {"BLOCK_S": tiles.rows, "BLOCK_V": tiles.depth} | _common_meta(tiles)


def _common_meta(tiles: HeadTiles | ProductTiles) -> dict[str, object]:
    return {"STAGES": tiles.stages, "PRECISION": "ieee", "num_warps": tiles.warps, "enable_fp_fusion": True}

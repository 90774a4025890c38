"""What one SGD step of a linear head on each candidate does to the anchor loss, in closed form.

The vocabulary goes by in slices. Where steps are small (`small_steps`) a slice is one product of the anchors'
probabilities with the candidates' softmax errors, and a few words are looked at one by one in the end. Where they are
large, every new logit is formed: the anchors' probabilities of a tile of words are formed once, stay in registers and
serve every candidate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ostlight_kernels import head_reference
from ostlight_kernels.checks import IGNORED, check_one_step_head, check_tensor
from ostlight_kernels.dispatch import capability, explain_dispatch
from ostlight_kernels.head_launcher import PROBABILITY_SCALE, HeadLauncher, combined, padded_tokens, token_block
from ostlight_kernels.head_problem import HeadProblem
from ostlight_kernels.small_steps import gains_either_way, loss_falls, strong_words
from ostlight_kernels.tiles import HeadTiles, ProductTiles, head_table, logits_table, slopes_table

SLICE_BYTES = 64 * 2**20
"""Softmax errors of the candidates taken together, or probabilities of the anchors, at one slice of the vocabulary."""

STEPS_BYTES = 128 * 2**20
"""Step sizes ``[candidates, anchor tokens, tokens]`` of the candidates taken together."""

NARROWEST = 128
"""Words of a slice at least, and a multiple of them unless the vocabulary ends."""


@dataclass(frozen=True, slots=True)
class _Anchors:
    """The anchors' answer tokens: features ``[s, D]``, labels, log-sum-exps and shares ``[s]``."""

    x: Tensor
    y: Tensor
    lse: Tensor
    share: Tensor


@dataclass(frozen=True, slots=True)
class _Candidates:
    """Some candidates against the anchors.

    Attributes:
        x, y, lse: ``[n, T, D]`` features, ``[n, T]`` labels and log-sum-exps, padded to whole blocks of tokens.
        steps: ``[n, s, T]`` steps, in ``unit``.
        unit: ``[n]`` fp32.
        change: ``[n, s]`` fp32, by how much the logit of the anchor token's label falls.
    """

    x: Tensor
    y: Tensor
    lse: Tensor
    steps: Tensor
    unit: Tensor
    change: Tensor

    @classmethod
    def of(cls, block: HeadProblem, kernels: HeadLauncher, anchors: _Anchors) -> _Candidates:
        n, longest, d = block.x.shape
        t = padded_tokens(longest, kernels.tiles)
        x = F.pad(block.x, (0, 0, 0, t - longest)).contiguous()
        y = F.pad(block.y, (0, t - longest), value=IGNORED).contiguous()
        lse = kernels.log_sum_exp(x.view(n * t, d)).view(n, t)
        longest_anchor = anchors.x.float().norm(dim=-1).amax()
        size = x.float().norm(dim=-1).amax(1) * longest_anchor + (kernels.bias is not None)
        size = size.clamp_min(torch.finfo(torch.float32).tiny)
        steps, change = kernels.steps(x, y, lse, anchors.x, anchors.y, size)
        scale = block.scale.nan_to_num(0.0)  # a candidate without an answer moves nothing
        return cls(x, y, lse, steps, scale * size, change * scale[:, None])

    def __getitem__(self, some: Tensor | slice) -> _Candidates:
        if isinstance(some, Tensor) and bool(some.all()):
            return self
        parts = (self.x, self.y, self.lse, self.steps, self.unit, self.change)
        return _Candidates(*(part[some] for part in parts))

    def size(self) -> Tensor:
        """``[n]`` largest norm over tokens of the steps at an anchor token."""
        norms: Tensor = torch.linalg.vector_norm(self.steps, dim=2, dtype=torch.float32)
        return norms.amax(1) * self.unit.abs()

    def label_log_p(self, kernels: HeadLauncher) -> Tensor:
        """``[n, T]`` log-probability of each token's own label; 0 at padding."""
        labels = self.y.clamp_min(0)
        logits = (self.x.float() * kernels.weight[labels]).sum(-1)
        if kernels.bias is not None:
            logits += kernels.bias[labels]
        return (logits - self.lse).masked_fill_(self.y == IGNORED, 0.0)

    def errors(self, kernels: HeadLauncher, v_first: int, width: int) -> Tensor:
        """``[n T, width]`` softmax errors at the words from ``v_first``."""
        x, y, lse = self.x.flatten(0, 1), self.y.flatten(), self.lse.flatten()
        return kernels.errors(x, y, lse, v_first, width)

    def errors_at(self, kernels: HeadLauncher, words: Tensor) -> Tensor:
        """``[n, T, H]`` softmax errors at ``words [n, H]``, others for every candidate; anything where a word is -1."""
        words = words.clamp_min(0)
        logits = self.x.float() @ kernels.weight[words].float().mT
        if kernels.bias is not None:
            logits += kernels.bias[words][:, None]
        errors = torch.exp(logits - self.lse[:, :, None]) - (self.y[:, :, None] == words[:, None]).float()
        return errors.masked_fill_((self.y == IGNORED)[:, :, None], 0.0).to(self.x.dtype)


def _gains(candidates: _Candidates, kernels: HeadLauncher, anchors: _Anchors) -> Tensor:
    """``[n, s]`` float64, by how much each anchor token's loss falls."""
    return gains_either_way(
        candidates,
        torch.empty_like(candidates.change, dtype=torch.float64),
        candidates.size(),
        candidates.label_log_p(kernels),
        partial(_gains_of_small_steps, kernels=kernels, anchors=anchors),
        partial(_gains_by_every_word, kernels=kernels, anchors=anchors),
    )


def _gains_of_small_steps(
    candidates: _Candidates, size: Tensor, kernels: HeadLauncher, anchors: _Anchors
) -> tuple[Tensor, Tensor]:
    """As ``small_steps`` has it; and for which of the candidates ``[n]`` that is right."""
    n, s, t = candidates.steps.shape
    block_t = token_block(t, kernels.tiles)
    slopes = torch.zeros(n * t // block_t, s, dtype=torch.float32, device=size.device)
    others, felt, strength = torch.zeros_like(anchors.lse), [], []
    for v_first, width in _slices(kernels, max(s, n * t)):
        p, word_felt, word_sums = kernels.probabilities(
            anchors.x, anchors.y, anchors.lse, anchors.share, v_first, width
        )
        errors = candidates.errors(kernels, v_first, width)
        kernels.add_slopes(slopes, p, errors, candidates.steps)
        others += word_sums
        felt.append(word_felt)
        norms = torch.linalg.vector_norm(errors.view(n, t, width), dim=1, dtype=torch.float32)
        strength.append(norms.square())
    slope = slopes.view(n, t // block_t, s).sum(1) * (candidates.unit / PROBABILITY_SCALE)[:, None]
    words, right = strong_words(torch.cat(strength, 1), torch.cat(felt), size)
    bend = torch.zeros_like(slope)
    h = words.shape[1]
    block = max(1, SLICE_BYTES // max(1, 4 * h * max(kernels.weight.shape[1], t)))
    for first in range(0, n if h else 0, block):
        some = slice(first, first + block)
        few = candidates[some]
        errors = few.errors_at(kernels, words[some])
        bend[some] = kernels.bends(words[some], errors, few.steps, few.unit, anchors.x, anchors.y, anchors.lse)
    return loss_falls(candidates.change.double(), others.double(), slope.double(), bend.double()), right


def _gains_by_every_word(candidates: _Candidates, kernels: HeadLauncher, anchors: _Anchors) -> Tensor:
    """By the changes of all logits, however large."""
    n, s, t = candidates.steps.shape
    slices = list(_slices(kernels, n * t))
    sums = kernels.sums(n, s, slices[0][1], anchors.lse)
    for v_first, width in slices:
        errors = candidates.errors(kernels, v_first, width)
        kernels.add_loss_changes(
            sums,
            errors,
            candidates.steps,
            candidates.change,
            candidates.unit,
            anchors.x,
            anchors.y,
            anchors.lse,
            v_first,
        )
    label_logits = (anchors.x.double() * kernels.weight[anchors.y]).sum(-1)
    if kernels.bias is not None:
        label_logits += kernels.bias[anchors.y]
    return combined(sums, label_logits - anchors.lse)


def _slices(kernels: HeadLauncher, rows: int) -> Iterator[tuple[int, int]]:
    """First word and width of slices of the vocabulary, such that so many rows fit in ``SLICE_BYTES``."""
    width = SLICE_BYTES // max(1, rows * kernels.weight.element_size())
    width = max(width // NARROWEST, 1) * NARROWEST
    for v_first in range(0, kernels.vocabulary, width):
        yield v_first, min(width, kernels.vocabulary - v_first)


def launch(
    problem: HeadProblem,
    weight: Tensor,
    bias: Tensor | None,
    tiles: HeadTiles | None = None,
    logits: ProductTiles | None = None,
    slopes: ProductTiles | None = None,
) -> Tensor:
    """Run the kernels on a checked problem. Tiles given override the tables, for measuring."""
    of = (weight.dtype, capability(weight))
    tiles = tiles or head_table(*of)[0]
    logits, slopes = logits or logits_table(*of)[0], slopes or slopes_table(*of)[0]
    kernels = HeadLauncher(weight.contiguous(), None if bias is None else bias.contiguous(), tiles, logits, slopes)
    n, longest, _ = problem.x.shape
    x = problem.anchor_x
    anchors = _Anchors(x, problem.anchor_y, kernels.log_sum_exp(x), problem.anchor_share.float())
    token_bytes = padded_tokens(longest, tiles) * weight.element_size()
    # Of a candidate: steps, errors at the narrowest slice, and two numbers of fp32 per word.
    block = min(
        STEPS_BYTES // (x.shape[0] * token_bytes),
        SLICE_BYTES // (NARROWEST * token_bytes),
        SLICE_BYTES // (8 * kernels.vocabulary),
    )
    utilities = []
    for first in range(0, n, max(1, block)):
        one = problem.candidates(first, first + max(1, block))
        gains = _gains(_Candidates.of(one, kernels, anchors), kernels, anchors)
        utilities.append(one.utilities(gains).float())
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

    Exact but for rounding and, where a step changes no logit by more than 1, for words that together change the
    utility by less than about ``2 ** -20`` of the candidate's largest step, ``eta h_t . h_s`` over its tokens
    (`small_steps`). fp64 leaves nothing out.

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
        token: it has no loss to step on. No gradient ``[V, D]`` and no new weight are ever in memory, and of logits
        ``[N * T, V]`` and ``[A * S, V]`` only slices of bounded size.

    Raises:
        ValueError: no dense tensor, a mismatch of shape, dtype or device, labels outside the vocabulary, an anchor
            without an answer token, unusable weights, an eta that fp32 (fp64 for fp64 input) cannot hold; names the
            argument, what it got and what it takes.
    """
    check_tensor(h, "h")
    if explain_dispatch(h).name == "reference":
        return head_reference.one_step_head(h, labels, anchor_h, anchor_labels, weight, bias, eta, anchor_weights)
    check_one_step_head(h, labels, anchor_h, anchor_labels, weight, bias, eta, anchor_weights)
    problem = HeadProblem.of(h, labels, anchor_h, anchor_labels, eta, anchor_weights)
    with torch.cuda.device_of(weight):
        return launch(problem, weight, bias)

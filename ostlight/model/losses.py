"""The one loss everything here is measured in, and how often the likeliest word is wrong."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100
"""Label of a token that takes no part in the loss."""


def per_sample_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over each sample's answer tokens: ``l_i`` of arXiv 2605.07488.

    Args:
        logits: ``[N, T, V]`` scores of the next token at every position.
        labels: ``[N, T]`` the tokens themselves, ``IGNORED`` outside the answers. The shift happens here.

    Returns:
        ``[N]`` losses in nats, fp32 (fp64 for fp64 logits). NaN for a sample without an answer token: an empty mean
        is no number, and the caller sets that sample aside. A sample's loss does not depend on the others beside it.
    """
    owner, chosen, targets = _answer_tokens(logits, labels)
    return _means(F.cross_entropy(chosen, targets, reduction="none"), owner, labels)


def per_sample_errors(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of each sample's answer tokens that another word outranks, given the right ones before: 0 where greedy
    decoding would give the answer.

    Args:
        logits, labels: as for ``per_sample_losses``.

    Returns:
        ``[N]`` from 0 to 1. NaN for a sample without an answer token, or with scores of which the highest is no number.
    """
    owner, chosen, targets = _answer_tokens(logits, labels)
    highest, likeliest = chosen.max(-1)
    wrong = (likeliest != targets).to(chosen).masked_fill(~highest.isfinite(), torch.nan)
    return _means(wrong, owner, labels)


def _answer_tokens(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each answer token's sample, scores and label."""
    # Only the answer positions reach the softmax: prompts and pictures are most of a batch, and a [N, T, V] in fp32
    # would be the largest tensor of the pass.
    wanted = labels[:, 1:] != IGNORED
    owner, _ = wanted.nonzero(as_tuple=True)
    chosen = logits[:, :-1][wanted]
    return owner, chosen if chosen.dtype == torch.float64 else chosen.float(), labels[:, 1:][wanted]


def _means(values: Tensor, owner: Tensor, labels: Tensor) -> Tensor:
    totals = values.new_zeros(labels.shape[0]).index_add(0, owner, values)
    return totals / (labels[:, 1:] != IGNORED).sum(1)

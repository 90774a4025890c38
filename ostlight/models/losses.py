"""The one loss everything here is measured in."""

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
    # Only the answer positions reach the softmax: prompts and images are most of a batch, and a [N, T, V] in fp32
    # would be the largest tensor of the pass.
    wanted = labels[:, 1:] != IGNORED
    owner, _ = wanted.nonzero(as_tuple=True)
    chosen = logits[:, :-1][wanted]
    chosen = chosen if chosen.dtype == torch.float64 else chosen.float()
    token_losses = F.cross_entropy(chosen, labels[:, 1:][wanted], reduction="none")
    totals = token_losses.new_zeros(labels.shape[0]).index_add(0, owner, token_losses)
    return totals / wanted.sum(1)

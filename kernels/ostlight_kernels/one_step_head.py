"""What one SGD step of a linear head on each candidate does to the anchor loss, in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

from ostlight_kernels import reference


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
        eta: step size.
        anchor_weights: ``[A]`` floats of at least 0, normalised here; ``None``: all alike.

    Returns:
        ``[N]`` utilities in nats, positive helps; fp32, fp64 for fp64 input. NaN for a candidate without an answer
        token: it has no loss to step on. No gradient ``[V, D]``, no new weight and no logits ``[N * T, V]`` or
        ``[A * S, V]`` are ever in memory.

    Raises:
        ValueError: shape, dtype or device mismatch, labels outside the vocabulary, an anchor without an answer token,
            unusable weights; names the argument.
    """
    return reference.one_step_head(h, labels, anchor_h, anchor_labels, weight, bias, eta, anchor_weights)

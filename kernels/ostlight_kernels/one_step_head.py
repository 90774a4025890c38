"""What one SGD step of a linear head on each candidate does to the anchor loss, in closed form (`small_steps`)."""

from __future__ import annotations

import torch
from torch import Tensor

from ostlight_kernels.checks import check_one_step_head
from ostlight_kernels.dispatch import explain_dispatch
from ostlight_kernels.head_launcher import KernelHeadStep
from ostlight_kernels.head_problem import HeadProblem
from ostlight_kernels.head_reference import ReferenceHeadStep


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

    Exact but for rounding and, where a step changes no logit by more than 1, for tokens of the vocabulary that together
    change the utility by less than about ``2 ** -20`` of the candidate's largest step, ``eta h_t . h_s`` over its
    answer tokens (`small_steps`). fp64 leaves nothing out.

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
        ``[N]`` utilities in nats, positive where the anchor loss decreases; fp32, fp64 for fp64 input. NaN for a
        candidate without an answer token: it has no loss to step on. No gradient ``[V, D]`` and no new weight are ever
        in memory, and of logits ``[N * T, V]`` and ``[A * S, V]`` only slices of bounded size.

    Raises:
        ValueError: no dense tensor, a mismatch of shape, dtype or device, labels outside the vocabulary, an anchor
            without an answer token, unusable weights, an eta that fp32 (fp64 for fp64 input) cannot hold; names the
            argument, what it got and what it takes.
    """
    check_one_step_head(h, labels, anchor_h, anchor_labels, weight, bias, eta, anchor_weights)
    problem = HeadProblem.of(h, labels, anchor_h, anchor_labels, eta, anchor_weights)
    if explain_dispatch(h).name == "reference":
        return ReferenceHeadStep(problem, weight, bias).utilities()
    with torch.cuda.device_of(weight):
        return KernelHeadStep(problem, weight, bias).utilities()

"""The one loss everything here is measured in."""

from __future__ import annotations

from torch import Tensor

from ostlight.influence.task import IGNORED, answer_losses

__all__ = ["IGNORED", "per_sample_losses"]


def per_sample_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over each sample's answer tokens: ``l_i`` of arXiv 2605.07488.

    Args:
        logits: ``[N, T, V]`` scores of the next token at every position.
        labels: ``[N, T]`` the tokens themselves, ``IGNORED`` outside the answers. The shift happens here.

    Returns:
        ``[N]`` losses in nats, fp32 (fp64 for fp64 logits). NaN for a sample without an answer token: an empty mean
        is no number, and the caller rejects that sample. A sample's loss does not depend on the others beside it.
    """
    return answer_losses(logits[:, :-1], labels[:, 1:])

"""The one loss everything here is measured in."""

from __future__ import annotations

from torch import Tensor

from ostlight.influence.task import IGNORED, answer_losses

__all__ = ["IGNORED", "per_sample_losses"]


def per_sample_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """``[N]`` mean cross-entropy over each sample's answer tokens, in nats; NaN for a sample without any.

    Args:
        logits: ``[N, T, V]`` next-token scores.
        labels: ``[N, T]`` the tokens themselves, ``IGNORED`` outside the answers. The shift happens here.
    """
    return answer_losses(logits[:, :-1], labels[:, 1:])

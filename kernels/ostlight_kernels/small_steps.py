"""Where a step is small, almost all of what it does to the anchors is one product of errors.

With the step's changes ``-c_v`` of the logits at an anchor token of label y, and the probabilities ``p_v`` before it,
the token's loss falls by ``-log1p(z)``,

    z = sum_{v != y} p_v expm1(c_y - c_v) = m expm1(c_y) + exp(c_y) (sum_{v != y} p_v bend(c_v) - slope)

with ``m = sum_{v != y} p_v``, ``slope = sum_{v != y} p_v c_v`` and ``bend(c) = expm1(-c) + c``. Nothing is left out.
``c_v = sum_t k_t e_tv`` is linear in the candidate's softmax errors e, so the slopes of all anchor tokens and all
candidates are one product of ``[s, V]`` probabilities with ``[V, n t]`` errors, and no exponential per word. Only the
bend wants words one by one. It is about ``c_v^2 / 2``, and ``c_v^2 <= |k|^2 |e_v|^2``: the words where
``mean p_v |e_v|^2`` is smallest are left out, until what they could add reaches ``REMAINDER``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

REMAINDER = 2.0**-20
"""Most that the words left out may change a utility by, in the candidate's largest step ``|k|``."""

LARGEST_CHANGE = 1.0
"""Bound on the changes of logits up to which a step is small: beyond, the terms above cancel."""

FEWEST_WORDS = 64

SHARE_OF_WORDS = 8
"""With more than one in so many words to be looked at one by one, all of them may as well be."""


class Candidates(Protocol):
    """Some candidates against the anchors, of which some can be taken."""

    def __getitem__(self, some: Tensor) -> Self: ...


Some = TypeVar("Some", bound=Candidates)


def gains_either_way(
    candidates: Some,
    gains: Tensor,
    size: Tensor,
    label_log_p: Tensor,
    by_small_steps: Callable[[Some, Tensor], tuple[Tensor, Tensor]],
    by_every_word: Callable[[Some], Tensor],
) -> Tensor:
    """``gains [n, s]``, filled by small steps for the candidates where that is right, else by every word.

    Args:
        candidates: n of them.
        gains: ``[n, s]`` of the dtype wanted, by how much each anchor token's loss falls.
        size, label_log_p: as ``may_be_small`` has them.
        by_small_steps: from candidates and their sizes to their gains, and for which ``[n]`` these are right.
        by_every_word: from candidates to their gains.
    """
    right = may_be_small(size, label_log_p)
    if bool(right.any()):
        gains[right], right[right.clone()] = by_small_steps(candidates[right], size[right])
    if not bool(right.all()):
        gains[~right] = by_every_word(candidates[~right])
    return gains


def may_be_small(size: Tensor, label_log_p: Tensor) -> Tensor:
    """``[n]`` bool: the steps are not yet known to be large, by what the candidates expect of their own labels.

    Args:
        size: ``[n]`` largest norm over the candidate's tokens of its steps at an anchor token.
        label_log_p: ``[n, t]`` log-probability of each token's label; 0 at padding.
    """
    return size * -torch.expm1(label_log_p).amin(1) < LARGEST_CHANGE


def strong_words(strength: Tensor, felt: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """The words whose bend is looked at, and the candidates for which these words are enough.

    Args:
        strength: ``[n, V]`` fp32 squared norm over the candidate's tokens of its errors at a word.
        felt: ``[V]`` fp32 probability of a word, averaged over the anchor tokens.
        size: ``[n]`` fp32 largest norm over the candidate's tokens of its steps at an anchor token.

    Returns:
        ``[n, H]`` int64 words in order, -1 where a candidate needs fewer than another; and ``[n]`` bool: the step is
        small and these words are enough. False where a number is not finite.
    """
    n, vocabulary = strength.shape
    small = size * strength.amax(1).sqrt() < LARGEST_CHANGE
    could_add = strength * felt
    total, allowed = could_add.sum(1, dtype=torch.float64), 2 * REMAINDER / size.double()
    words, enough = strength.new_empty(n, 0, dtype=torch.int64), total <= allowed
    most = min(vocabulary, max(FEWEST_WORDS, vocabulary // SHARE_OF_WORDS))
    count = FEWEST_WORDS
    while bool((small & ~enough).any()) and words.shape[1] < most:
        strongest = torch.topk(could_add, min(count, most), dim=1)
        # How many words a candidate gets may not hang on the candidates beside it.
        words = torch.where(
            enough[:, None], F.pad(words, (0, min(count, most) - words.shape[1]), value=-1), strongest.indices
        )
        enough |= total - strongest.values.sum(1, dtype=torch.float64) <= allowed
        count *= 2
    return words.sort(1).values, small & enough


def loss_falls(change: Tensor, others: Tensor, slope: Tensor, bend: Tensor) -> Tensor:
    """``[n, s]`` from the sums over words: change ``c_y [n, s]``, others ``m [s]``, slope and bend ``[n, s]``."""
    return -torch.log1p(others * torch.expm1(change) + torch.exp(change) * (bend - slope))

"""What steps do to the anchors' answers: a few are measured, any other is told from inner products with fixed vectors.

A step ``-eta g`` moves the logits of the anchors' answer tokens by ``-eta J g`` as long as the network is linear in its
weights over the length of the step. What moved logits do to the cross-entropy is known whatever the distance, where a
parabola (``ostlight.influence.gradients.probes``) stops being right as soon as a confident answer is overturned. So
all that is needed of a sample is ``J g``, and that in a few coordinates, since samples of a pool move the anchors in
few ways:

- S samples of the pool are stepped on, and what each step does to the logits is read (``3 S`` passes over the anchors:
  a little way in both directions, and the whole step).
- The K principal directions ``rho_k`` of these responses are kept, orthonormal under the loss's own metric
  ``W = w_t (diag(p_t) - p_t p_t')``, in which the squared length of ``J g`` is the Gauss-Newton curvature ``g' H g``.
- A sample's coordinates ``phi_k = <rho_k, W J g> = <g, J' W rho_k>`` are inner products of its gradient with K fixed
  vectors (K backward passes over the anchors), and ``J g`` is about ``sum_k phi_k rho_k``.
- What the whole step did to the logits beyond ``-eta J g``, its bend, is kept in principal directions of its own: how
  the network is curved in its weights, as far as these steps tell.

This is a reduced basis from snapshots, as used for parametrised differential equations (Sirovich 1987), with the loss
as the nonlinear part that is evaluated in full. Of the vocabulary each token keeps the label and the ``LIKELIEST``
others; the rest counts as one more word, whose logit is the logarithm of their summed exponentials.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ostlight.errors import OstlightError
from ostlight.influence.gradients.forward_mode import norm_of, shiftable
from ostlight.influence.gradients.norms import wide
from ostlight.influence.gradients.probes import Anchors, Vectors, asking, gradients_of, too_few, zeros
from ostlight.models.losses import IGNORED

LIKELIEST = 16
"""Words of each token that keep a logit of their own beside the label."""

SMALLEST_SHARE = 1e-4
"""Of the largest squared length: directions below are rounding, blown up by their normalisation, and are left out."""

SNAPSHOTS = 2
"""Samples stepped on for each direction that is kept."""

BENDS = 0.5
"""Directions in which steps bend, for each in which they move: half as many lose nothing
(docs/explanation/estimators.md)."""

SHIFT = 0.1
"""Of the simulated step, in either direction: short enough that the half difference is the derivative to about a
hundredth of what the step itself bends, long enough that fp32 logits are off by less than a thousandth of it."""

ENTRIES_AT_ONCE = 1 << 18
"""Of moved logits, in float64."""


@dataclass(frozen=True)
class Responses:
    """K directions in which samples move the anchors' R answer tokens, with C words a token.

    Attributes:
        words: ``[R, C]`` ids, the label first; ``C - 1`` of them where the last column is the rest of the vocabulary.
        logits: ``[R, C]`` where the model stands.
        weights: ``[G, R]`` float64: each group's mean loss from the tokens' losses, groups in the anchors' order.
        directions: ``[K, R, C]`` ``rho_k``; zero where fewer were found.
        places: ``[S]`` which of the given steps were taken.
        bends: ``[B, R, C]`` in which the logits leave the straight way, orthonormal as the others.
        bent: ``[S, B]`` float64: how far each taken step left it, in these.
    """

    words: Tensor
    logits: Tensor
    weights: Tensor
    directions: Tensor
    places: Tensor
    bends: Tensor
    bent: Tensor

    def to(self, device: torch.device) -> Responses:
        return Responses(**{name: tensor.to(device) for name, tensor in vars(self).items()})

    @property
    def slopes(self) -> Tensor:
        """``[G, K]`` derivative of each group's mean loss along ``rho_k``."""
        errors = self.logits.double().softmax(-1)
        errors[:, 0] -= 1
        along = torch.einsum("krc,rc->kr", self.directions.double(), errors)
        return self.weights @ along.T

    def falls(self, phi: Tensor, eta: float, bent: Tensor | None = None) -> Tensor:
        """How far each group's mean loss falls when the logits move by ``-eta sum_k phi_k rho_k``, however far that is.

        Args:
            phi: ``[N, K]``.
            bent: ``[N, B]`` what to move along ``bends`` besides; nothing where not given.

        Returns:
            ``[N, G]`` float64, nats.
        """
        log_p, found = self.logits.double().log_softmax(-1), []
        ways, bends = self.directions.flatten(1), self.bends.flatten(1)
        along = (-eta * phi).to(ways)
        aside = along.new_zeros(len(phi), len(bends)) if bent is None else bent.to(ways)
        at_once = max(1, ENTRIES_AT_ONCE // max(1, self.logits.numel()))
        for a, b in zip(along.split(at_once), aside.split(at_once), strict=True):
            moved = torch.addmm(a @ ways, b, bends).view(len(a), *self.logits.shape).double()
            rise = torch.logsumexp(log_p + moved, -1) - moved[..., 0]
            found.append(-rise @ self.weights.T)
        return torch.cat(found) if found else phi.new_zeros(0, len(self.weights), dtype=torch.float64)

    def vectors(self, anchors: Anchors, parameters: dict[str, nn.Parameter], only: range) -> Vectors:
        """``J' W rho_k`` for these k: ``[len(only), *shape]`` per parameter. A backward pass over the anchors each."""
        signal = _metric(self.logits, _pooled(anchors, self.weights))
        totals = zeros(parameters, len(only))
        start = 0
        with asking(parameters):
            for _, logits, labels in anchors.runs():
                chosen, targets = answer_tokens(logits, labels)
                rows = slice(start, start + len(targets))
                start += len(targets)
                seen = lumped(chosen, self.words[rows], self.logits.shape[1])
                for place, k in enumerate(only):
                    gradient = gradients_of(seen, signal(self.directions[k, rows], rows), parameters, k != only[-1])
                    for name, vector in gradient.items():
                        totals[name][place] += vector
        return totals


def measured(
    anchors: Anchors,
    parameters: Mapping[str, nn.Parameter],
    steps: Callable[[], Iterable[Vectors]],
    eta: float,
    count: int,
) -> Responses:
    """Takes each step, with weights put back bit for bit, and keeps ``count`` principal directions.

    The directions are read at the same length for all, ``SHIFT`` of the median step's, and both ways; a step's bend is
    read at its own.

    Args:
        anchors: run without gradients, in at least fp32.
        steps: called twice; each time the same gradients, one after the other.

    Raises:
        OstlightError: fewer answer tokens than directions; no step of finite length moves the anchors by a finite
            distance.
    """
    words, logits, weights = _stand(anchors)
    if len(logits) < count:
        raise OstlightError(too_few(count, len(logits), len(anchors.groups)))
    lengths = torch.tensor([norm_of(step) for step in steps()], dtype=torch.float64)
    usable = lengths[lengths.isfinite() & (lengths > 0)]
    if not len(usable):
        raise OstlightError("no sample of the pool gives a gradient to step along; there is nothing to project on")
    length = SHIFT * eta * float(usable.median())
    found, places, bends = [], [], []
    for place, (step, own) in enumerate(zip(steps(), lengths.tolist(), strict=True)):
        if not own > 0:
            continue
        with shiftable(parameters) as shift:
            shift(step, length / own)
            ahead = _seen(anchors, words, logits.shape[1])
            shift(step, -length / own)
            behind = _seen(anchors, words, logits.shape[1])
            shift(step, -eta)
            bend = _seen(anchors, words, logits.shape[1]) - logits
        response = (ahead - behind) / (2 * length)
        bend += eta * own * response
        if bool(response.isfinite().all() and bend.isfinite().all()):
            found.append(response)
            places.append(place)
            bends.append(bend)
    if not found:
        raise OstlightError(
            f"steps of the length {length:.3g} leave no finite logits on the anchors; take a smaller eta"
        )
    pooled = _pooled(anchors, weights)
    directions = principal(torch.stack(found), logits, pooled, count)
    ways = principal(torch.stack(bends), logits, pooled, math.ceil(BENDS * count))
    signal = _metric(logits, pooled)
    bent = torch.stack([signal(bend, slice(None)).double().flatten() @ ways.double().flatten(1).T for bend in bends])
    return Responses(words, logits, weights, directions, torch.tensor(places, device=logits.device), ways, bent)


def principal(responses: Tensor, logits: Tensor, weights: Tensor, count: int) -> Tensor:
    """``[count, R, C]`` principal directions of ``[S, R, C]`` responses, orthonormal under ``W``; then zeros.

    The sign of each is that in which most of the responses point, so that every rank and machine takes the same.
    """
    p = logits.softmax(-1)
    centred = responses - (p * responses).sum(-1, keepdim=True)
    rows = (centred * (p * weights[:, None].to(p)).sqrt()).flatten(1).double()
    values, axes = torch.linalg.eigh(rows @ rows.T)
    values, axes = values.flip(0)[:count], axes.flip(1)[:, :count]
    keep = values > SMALLEST_SHARE * values[0].clamp_min(torch.finfo(torch.float64).tiny)
    mixture = axes[:, keep] / values[keep].sqrt()
    mixture = mixture * torch.where(mixture.sum(0) < 0, -1.0, 1.0).to(mixture)
    found = responses.new_zeros(count, *logits.shape)
    found[: int(keep.sum())] = torch.einsum("sk,src->krc", mixture.to(responses), responses)
    return found


def answer_tokens(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """``[R, V]`` scores of the answer tokens and their ``[R]`` labels, from ``[N, T, V]`` and ``[N, T]``."""
    wanted = labels[:, 1:] != IGNORED
    return wide(logits[:, :-1][wanted]), labels[:, 1:][wanted]


def lumped(logits: Tensor, words: Tensor, width: int) -> Tensor:
    """``[R, C]``: the words' logits, and the rest's as one where ``width`` has room for it."""
    kept = logits.gather(1, words)
    if width == words.shape[1]:
        return kept
    rest = torch.logsumexp(logits.scatter(1, words, float("-inf")), -1, keepdim=True)
    return torch.cat([kept, rest], 1)


def _stand(anchors: Anchors) -> tuple[Tensor, Tensor, Tensor]:
    """Words, logits and weights of a ``Responses``."""
    words, logits, weights = [], [], []
    with torch.no_grad():
        for indices, all_logits, labels in anchors.runs():
            chosen, targets = answer_tokens(all_logits, labels)
            vocabulary = chosen.shape[1]
            others = chosen.scatter(1, targets[:, None], float("-inf"))
            likeliest = others.topk(min(LIKELIEST, vocabulary - 1), -1).indices
            words.append(torch.cat([targets[:, None], likeliest], 1))
            width = words[-1].shape[1]
            logits.append(lumped(chosen, words[-1], width + (width < vocabulary)))
            weights.append(_token_weights(anchors, indices, labels))
    return torch.cat(words), torch.cat(logits), torch.cat(weights, 1)


def _token_weights(anchors: Anchors, indices: list[int], labels: Tensor) -> Tensor:
    """``[G, R]``: one over the group's anchors and the anchor's tokens, in the group's row."""
    counts = (labels[:, 1:] != IGNORED).sum(1)
    owners = torch.repeat_interleave(torch.arange(len(indices), device=labels.device), counts)
    of_anchor = torch.zeros(len(anchors.sizes), len(indices), dtype=torch.float64, device=labels.device)
    for row, (group, size) in enumerate(anchors.sizes.items()):
        for column, index in enumerate(indices):
            if anchors.groups[index] == group:
                of_anchor[row, column] = 1 / (size * float(counts[column].clamp_min(1)))
    return of_anchor[:, owners]


def _pooled(anchors: Anchors, weights: Tensor) -> Tensor:
    """``[R]`` weights of the mean over all anchors."""
    sizes = torch.tensor(list(anchors.sizes.values()), dtype=weights.dtype, device=weights.device)
    return (sizes / sizes.sum()) @ weights


def _metric(logits: Tensor, weights: Tensor) -> Callable[[Tensor, slice], Tensor]:
    p = logits.softmax(-1)

    def applied(direction: Tensor, rows: slice) -> Tensor:
        mean = (p[rows] * direction).sum(-1, keepdim=True)
        return weights[rows, None].to(p) * p[rows] * (direction - mean)

    return applied


def _seen(anchors: Anchors, words: Tensor, width: int) -> Tensor:
    return torch.cat(list(_seen_by_batch(anchors, words, width)))


def _seen_by_batch(anchors: Anchors, words: Tensor, width: int) -> Iterator[Tensor]:
    start = 0
    with torch.no_grad():
        for _, logits, labels in anchors.runs():
            chosen, targets = answer_tokens(logits, labels)
            yield lumped(chosen, words[start : start + len(targets)], width)
            start += len(targets)

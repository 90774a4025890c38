"""What steps do to the anchors' answers: a few are measured, others are predicted from inner products of gradients.

A step ``-eta g`` moves the logits of the anchors' answer tokens by ``-eta J g`` as long as the network is linear in its
weights over the length of the step. What moved logits do to the cross-entropy is known whatever the distance, where a
parabola (``ostlight.influence.gradients.probes``) stops being right as soon as a confident answer is overturned. So
all that is needed of a sample is ``J g``, and that in a few coordinates, since samples of a pool move the anchors in
few ways:

- S samples of the pool are stepped on, and what each step does to the logits is read (``3 S`` passes over the anchors:
  a small shift in both directions, and the whole step).
- The K principal directions ``rho_k`` of these responses are kept, orthonormal under the loss's own metric
  ``W = w_t (diag(p_t) - p_t p_t')``, in which the squared length of ``J g`` is the Gauss-Newton curvature ``g' H g``.
- A sample's coordinates ``phi_k = <rho_k, W J g> = <g, J' W rho_k>`` are inner products of its gradient with K fixed
  vectors (K backward passes over the anchors), and ``J g`` is about ``sum_k phi_k rho_k``.
- What the whole step did to the logits beyond ``-eta J g``, its deviation, is kept in principal directions of its own:
  how the network is curved in its weights, as far as these steps show.

This is a reduced basis from snapshots, as used for parametrised differential equations (Sirovich 1987), with the loss
as the nonlinear part that is evaluated in full. Of the vocabulary each token keeps the label and the ``LIKELIEST``
others; the rest counts as one more token, whose logit is the logarithm of their summed exponentials.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ostlight.errors import InfluenceError
from ostlight.influence.anchors import Anchors
from ostlight.influence.gradients.forward_mode import norm_of, shiftable
from ostlight.influence.gradients.norms import wide
from ostlight.influence.gradients.probes import Vectors, gradients_of, requiring_gradients, too_few, zeros
from ostlight.influence.task import IGNORED

LIKELIEST = 16
"""Tokens of the vocabulary that keep a logit of their own at each position, beside the label."""

SMALLEST_SHARE = 1e-4
"""Of the largest squared length: directions below are rounding, blown up by their normalisation, and are left out."""

SNAPSHOTS = 2
"""Samples stepped on for each direction that is kept."""

DEVIATION_SHARE = 0.5
"""Directions of the steps' deviations, for each direction of their responses: half as many lose nothing
(docs/explanation/estimators.md)."""

SHIFT = 0.1
"""Of the simulated step, in either direction: short enough that the half difference is the derivative to about a
hundredth of what the step itself deviates, long enough that fp32 logits are off by less than a thousandth of it."""

ENTRIES_AT_ONCE = 1 << 18
"""Of moved logits, in float64."""


@dataclass(frozen=True)
class StepResponses:
    """K directions in which samples move the anchors' R answer tokens, with C logits at each.

    Attributes:
        token_ids: ``[R, C]``, the label first; ``C - 1`` of them where the last column is the rest of the vocabulary.
        logits: ``[R, C]`` before any step.
        weights: ``[G, R]`` float64: each group's mean loss from the tokens' losses, groups in the anchors' order.
        anchors: ``[R]`` number of the anchor that each token belongs to.
        directions: ``[K, R, C]`` ``rho_k``; zero where fewer were found.
        steps: ``[S]`` which of the given steps were taken.
        deviation_directions: ``[B, R, C]`` in which the logits deviate from a straight line, orthonormal as the others.
        deviations: ``[S, B]`` float64: how far each taken step deviated, in these.
    """

    token_ids: Tensor
    logits: Tensor
    weights: Tensor
    anchors: Tensor
    directions: Tensor
    steps: Tensor
    deviation_directions: Tensor
    deviations: Tensor

    def to(self, device: torch.device) -> StepResponses:
        return StepResponses(**{name: tensor.to(device) for name, tensor in vars(self).items()})

    @property
    def loss_gradients(self) -> Tensor:
        """``[G, K]`` derivative of each group's mean loss along ``rho_k``."""
        errors = self.logits.double().softmax(-1)
        errors[:, 0] -= 1
        along = torch.einsum("krc,rc->kr", self.directions.double(), errors)
        return self.weights @ along.T

    @property
    def anchor_weights(self) -> Tensor:
        """``[A, R]`` float64: each anchor's loss from its tokens' losses, by the anchors' numbers."""
        owned = torch.nn.functional.one_hot(self.anchors).T.to(self.weights)
        return owned / owned.sum(1, keepdim=True)

    def loss_decrease(
        self, phi: Tensor, step_size: float, deviations: Tensor | None = None, weights: Tensor | None = None
    ) -> Tensor:
        """Decrease of each group's mean loss when the logits move by ``-eta sum_k phi_k rho_k``, however far that is.

        Args:
            phi: ``[N, K]``.
            step_size: ``eta``.
            deviations: ``[N, B]`` what to move along ``deviation_directions`` besides; nothing where not given.
            weights: ``[G, R]`` of other means of the tokens' losses than ``weights``.

        Returns:
            ``[N, G]`` float64, nats.
        """
        weights = self.weights if weights is None else weights
        log_p, decreases = self.logits.double().log_softmax(-1), []
        directions, other_directions = self.directions.flatten(1), self.deviation_directions.flatten(1)
        along = (-step_size * phi).to(directions)
        aside = along.new_zeros(len(phi), len(other_directions)) if deviations is None else deviations.to(directions)
        at_once = max(1, ENTRIES_AT_ONCE // max(1, self.logits.numel()))
        for a, b in zip(along.split(at_once), aside.split(at_once), strict=True):
            moved = torch.addmm(a @ directions, b, other_directions).view(len(a), *self.logits.shape).double()
            increase = torch.logsumexp(log_p + moved, -1) - moved[..., 0]
            decreases.append(-increase @ weights.T)
        return torch.cat(decreases) if decreases else phi.new_zeros(0, len(weights), dtype=torch.float64)

    def vectors(
        self, model: nn.Module, anchors: Anchors, parameters: Mapping[str, nn.Parameter], only: range
    ) -> Vectors:
        """``J' W rho_k`` for these k: ``[len(only), *shape]`` per parameter. A backward pass over the anchors each."""
        signal = _metric(self.logits, _pooled(anchors, self.weights))
        totals = zeros(parameters, len(only))
        with requiring_gradients(parameters):
            for rows, kept in _kept_logits(model, anchors, self.token_ids, self.logits.shape[1]):
                for place, k in enumerate(only):
                    gradient = gradients_of(kept, signal(self.directions[k, rows], rows), parameters, k != only[-1])
                    for name, vector in gradient.items():
                        totals[name][place] += vector
        return totals


def measure_responses(
    model: nn.Module,
    anchors: Anchors,
    parameters: Mapping[str, nn.Parameter],
    steps: Callable[[], Iterable[Vectors]],
    step_size: float,
    rank: int,
) -> StepResponses:
    """Takes each step, restores the weights bit for bit, and keeps ``rank`` principal directions.

    The directions are read at the same length for all, ``SHIFT`` of the median step's, in both directions; a step's
    deviation is read at its own.

    Args:
        model: in at least fp32.
        steps: called twice; each time the same gradients, one after the other.

    Raises:
        InfluenceError: fewer answer tokens than directions; no step of finite length moves the anchors by a finite
            distance.
    """
    token_ids, logits, weights, owners = _before_any_step(model, anchors)
    if len(logits) < rank:
        raise InfluenceError(too_few("directions", rank, len(logits), len(anchors.groups)))
    lengths = torch.tensor([norm_of(step) for step in steps()], dtype=torch.float64)
    usable = lengths[lengths.isfinite() & (lengths > 0)]
    if not len(usable):
        raise InfluenceError(
            "no sample of the pool gives a gradient to step along; there are no directions to project on"
        )
    length = SHIFT * step_size * float(usable.median())
    responses, taken, deviations = [], [], []
    for number, (step, norm) in enumerate(zip(steps(), lengths.tolist(), strict=True)):
        if not norm > 0:
            continue
        with shiftable(parameters) as shift:
            shift(step, length / norm)
            ahead = _logits_now(model, anchors, token_ids, logits.shape[1])
            shift(step, -length / norm)
            behind = _logits_now(model, anchors, token_ids, logits.shape[1])
            shift(step, -step_size)
            deviation = _logits_now(model, anchors, token_ids, logits.shape[1]) - logits
        response = (ahead - behind) / (2 * length)
        deviation += step_size * norm * response
        if bool(response.isfinite().all() and deviation.isfinite().all()):
            responses.append(response)
            taken.append(number)
            deviations.append(deviation)
    if not responses:
        raise InfluenceError(
            f"steps of the length {length:.3g} leave no finite logits on the anchors; take a smaller step_size"
        )
    pooled = _pooled(anchors, weights)
    directions = principal(torch.stack(responses), logits, pooled, rank)
    others = principal(torch.stack(deviations), logits, pooled, math.ceil(DEVIATION_SHARE * rank))
    signal, flat = _metric(logits, pooled), others.double().flatten(1)
    coordinates = torch.stack([signal(one, slice(None)).double().flatten() @ flat.T for one in deviations])
    taken_steps = torch.tensor(taken, device=logits.device)
    return StepResponses(token_ids, logits, weights, owners, directions, taken_steps, others, coordinates)


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
    wanted = labels != IGNORED
    return wide(logits[wanted]), labels[wanted]


def merge_rest(logits: Tensor, token_ids: Tensor, width: int) -> Tensor:
    """``[R, C]``: these tokens' logits, and the rest's as one where ``width`` has a column for it."""
    kept = logits.gather(1, token_ids)
    if width == token_ids.shape[1]:
        return kept
    rest = torch.logsumexp(logits.scatter(1, token_ids, float("-inf")), -1, keepdim=True)
    return torch.cat([kept, rest], 1)


def _before_any_step(model: nn.Module, anchors: Anchors) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Token ids, logits, weights and anchors of ``StepResponses``."""
    token_ids, logits, weights, owners = [], [], [], []
    with torch.no_grad():
        for indices, all_logits, labels in anchors.runs(model):
            chosen, targets = answer_tokens(all_logits, labels)
            vocabulary = chosen.shape[1]
            others = chosen.scatter(1, targets[:, None], float("-inf"))
            likeliest = others.topk(min(LIKELIEST, vocabulary - 1), -1).indices
            token_ids.append(torch.cat([targets[:, None], likeliest], 1))
            width = token_ids[-1].shape[1]
            logits.append(merge_rest(chosen, token_ids[-1], width + (width < vocabulary)))
            weights.append(_token_weights(anchors, indices, labels))
            numbers = torch.tensor(indices, device=labels.device)
            owners.append(numbers.repeat_interleave((labels != IGNORED).sum(1)))
    return torch.cat(token_ids), torch.cat(logits), torch.cat(weights, 1), torch.cat(owners)


def _token_weights(anchors: Anchors, indices: list[int], labels: Tensor) -> Tensor:
    """``[G, R]``: one over the group's anchors and the anchor's tokens, in the group's row."""
    counts = (labels != IGNORED).sum(1)
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


def _kept_logits(model: nn.Module, anchors: Anchors, token_ids: Tensor, width: int) -> Iterator[tuple[slice, Tensor]]:
    """The rows of ``StepResponses`` that a batch of anchors makes, and their ``[rows, C]`` logits."""
    start = 0
    for _, logits, labels in anchors.runs(model):
        chosen, _ = answer_tokens(logits, labels)
        rows = slice(start, start + len(chosen))
        start += len(chosen)
        yield rows, merge_rest(chosen, token_ids[rows], width)


@torch.no_grad()
def _logits_now(model: nn.Module, anchors: Anchors, token_ids: Tensor, width: int) -> Tensor:
    return torch.cat([logits for _, logits in _kept_logits(model, anchors, token_ids, width)])

"""The vectors that samples' gradients are taken against: the anchors' mean gradient and random sketches of curvature.

The curvature H of the anchors' loss is its generalized Gauss-Newton matrix,
``sum_t w_t J_t' (diag(p_t) - p_t p_t') J_t`` over the anchors' answer tokens with ``w_t = 1 / (|V| * tokens of that
anchor)``. It is never formed. A probe is

    q_k = sum_t s_t sqrt(w_t) grad CE(logits_t, y_t),   y_t sampled from p_t,  s_t = +-1,

with inputs teacher-forced: only the label is sampled. Then ``E[q q'] = H``, since the sampled gradients have mean
zero and the signs keep tokens apart, and ``mean_k <g, q_k>^2`` estimates ``g' H g`` without bias.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor, nn

from ostlight.errors import InfluenceError
from ostlight.influence.anchors import Anchors
from ostlight.influence.gradients.norms import wide
from ostlight.influence.gradients.seeded_random import signs, uniforms
from ostlight.influence.task import IGNORED
from ostlight.progress import track

Vectors = dict[str, Tensor]
"""One or several vectors over the parameters: parameter name to ``[*shape]`` or ``[K, *shape]``."""


def mean_gradients(
    model: nn.Module, anchors: Anchors, parameters: Mapping[str, nn.Parameter]
) -> dict[Hashable, Vectors]:
    """``g_V``, the gradient of the mean of the anchors' losses, for each group: ``[*shape]`` per parameter.

    Accumulated in fp32 (fp64 for fp64 weights), by plain autograd, one backward pass for each group in a batch.

    Raises:
        InfluenceError: an anchor's loss is no finite number (without an answer token, say).
    """
    totals: dict[Hashable, Vectors] = {group: zeros(parameters) for group in anchors.sizes}
    with requiring_gradients(parameters):
        pairs = zip(anchors.indices, anchors.batches, strict=True)
        for indices, batch in track(pairs, "anchors' mean gradients", len(anchors.batches), "batches"):
            losses = anchors.task.losses(model, batch)
            for index, loss in zip(indices, losses.tolist(), strict=True):
                if not isfinite(loss):
                    raise InfluenceError(f"{anchors.name_of(index)} has the loss {loss}; fix it or leave it out")
            rows_of = _rows_by_group(anchors, indices)
            for number, (group, rows) in enumerate(rows_of.items(), start=1):
                mean = losses[rows].sum() / anchors.sizes[group]
                gradients = gradients_of(mean, None, parameters, keep=number < len(rows_of))
                for name, gradient in gradients.items():
                    totals[group][name] += gradient
    return totals


def curvature_probes(
    model: nn.Module,
    anchors: Anchors,
    parameters: Mapping[str, nn.Parameter],
    num_probes: int,
    seed: int = 0,
    only: range | None = None,
) -> dict[Hashable, Vectors]:
    """K probes for each group: ``[K, *shape]`` per parameter. K backward passes over the anchors.

    Args:
        only: the numbers of the probes wanted of these K, all by default: some at a time need less memory.

    Labels are seeded by (seed, anchor's index, number of the answer token within the anchor, probe), so neither the
    batching nor the padding moves them. The sampled label is read off the cumulated probabilities in fp64; it can only
    change where rounding of the model itself moves one of them past the random number.

    Raises:
        InfluenceError: fewer answer tokens in a group than probes: the sketch would be wider than what it sketches.
    """
    wanted = range(num_probes) if only is None else only
    totals: dict[Hashable, Vectors] = {group: zeros(parameters, len(wanted)) for group in anchors.sizes}
    tokens_of: Counter[Hashable] = Counter()
    with requiring_gradients(parameters):
        for indices, logits, labels in anchors.runs(model):
            answers = _Answers.of(logits, labels, indices)
            sampled = answers.sample_labels(num_probes, seed)
            passes = [
                (probe, group, rows) for group, rows in _rows_by_group(anchors, indices).items() for probe in wanted
            ]
            for group in (anchors.groups[index] for index in answers.anchors.tolist()):
                tokens_of[group] += 1
            for number, (probe, group, rows) in enumerate(passes, start=1):
                signal = answers.signal(sampled[:, probe], probe, seed, rows, anchors.sizes[group])
                gradients = gradients_of(logits, signal, parameters, keep=number < len(passes))
                for name, gradient in gradients.items():
                    totals[group][name][wanted.index(probe)] += gradient
    for group in anchors.sizes:
        if tokens_of[group] < num_probes:
            where = f" in group {group}" if len(anchors.sizes) > 1 else ""
            raise InfluenceError(too_few("probes", num_probes, tokens_of[group], anchors.sizes[group], where))
    return totals


@dataclass(frozen=True)
class _Answers:
    """The answer tokens of one batch, R of them.

    Attributes:
        place: their positions in ``logits``, two ``[R]`` index tensors.
        probabilities: ``[R, V]`` fp32 or fp64.
        anchors: ``[R]`` index of the anchor.
        tokens: ``[R]`` number of the token among its anchor's answer tokens.
        lengths: ``[R]`` how many answer tokens its anchor has.
        shape, dtype: the logits'.
    """

    place: tuple[Tensor, Tensor]
    probabilities: Tensor
    anchors: Tensor
    tokens: Tensor
    lengths: Tensor
    shape: torch.Size
    dtype: torch.dtype

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor, indices: Sequence[int]) -> _Answers:
        wanted = labels != IGNORED
        rows, positions = wanted.nonzero(as_tuple=True)
        tokens = (wanted.cumsum(1) - 1)[rows, positions]
        place = (rows, positions)
        return cls(
            place,
            torch.softmax(wide(logits.detach()[place]), dim=-1),
            torch.tensor(list(indices), device=labels.device)[rows],
            tokens,
            wanted.sum(1)[rows],
            logits.shape,
            logits.dtype,
        )

    def sample_labels(self, num_probes: int, seed: int) -> Tensor:
        """``[R, K]`` labels sampled from each token's own distribution."""
        probes = torch.arange(num_probes, device=self.anchors.device)
        numbers = uniforms(seed, self.anchors[:, None], self.tokens[:, None], probes)
        cumulated = self.probabilities.double().cumsum(1)
        # Scaled to the last sum instead of 1, so that rounding cannot sample past the vocabulary's end.
        sampled = torch.searchsorted(cumulated, numbers * cumulated[:, -1:], right=True)
        return sampled.clamp_max(self.probabilities.shape[1] - 1)

    def signal(self, sampled: Tensor, probe: int, seed: int, rows: list[int], group_size: int) -> Tensor:
        """``[N, T, V]`` what the backward pass starts from: ``s_t sqrt(w_t) (p_t - onehot(y_t))`` on these rows."""
        sign = signs(seed, self.anchors, self.tokens, torch.tensor(probe, device=self.anchors.device))
        weight = sign / (group_size * self.lengths.double()).sqrt()
        inside = torch.isin(self.place[0], torch.tensor(rows, device=self.anchors.device))
        weight = (weight * inside).to(self.probabilities.dtype)
        errors = self.probabilities * weight[:, None]
        errors[torch.arange(len(sampled), device=sampled.device), sampled] -= weight
        signal = torch.zeros(self.shape, dtype=self.dtype, device=errors.device)
        signal[self.place] = errors.to(self.dtype)
        return signal


def too_few(what: str, wanted: int, tokens: int, anchors: int, where: str = "") -> str:
    return (
        f"{wanted} {what} from {tokens} answer tokens of {anchors} anchors{where}: "
        f"add anchors, or ask for fewer ({tokens} at most)"
    )


def _rows_by_group(anchors: Anchors, indices: Iterable[int]) -> dict[Hashable, list[int]]:
    rows: dict[Hashable, list[int]] = {}
    for row, index in enumerate(indices):
        rows.setdefault(anchors.groups[index], []).append(row)
    return rows


def gradients_of(of: Tensor, signal: Tensor | None, parameters: Mapping[str, nn.Parameter], keep: bool) -> Vectors:
    """By plain autograd, in at least fp32; ``keep`` keeps the graph for another call."""
    found = torch.autograd.grad(of, list(parameters.values()), signal, retain_graph=keep, allow_unused=True)
    return {name: wide(gradient) for name, gradient in zip(parameters, found, strict=True) if gradient is not None}


def zeros(parameters: Mapping[str, nn.Parameter], *leading: int) -> Vectors:
    return {
        name: wide(torch.zeros((), dtype=parameter.dtype, device=parameter.device)).new_zeros(
            *leading, *parameter.shape
        )
        for name, parameter in parameters.items()
    }


@contextmanager
def requiring_gradients(parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """The parameters require gradients within, whatever they did before."""
    before = {parameter: parameter.requires_grad for parameter in parameters.values()}
    try:
        for parameter in before:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for parameter, asked in before.items():
            parameter.requires_grad_(asked)

"""What every pool sample is measured against: the anchors' mean gradient and random sketches of their curvature.

The curvature H of the anchors' loss is its generalized Gauss-Newton matrix,
``sum_t w_t J_t' (diag(p_t) - p_t p_t') J_t`` over the anchors' answer tokens with ``w_t = 1 / (|V| * tokens of that
anchor)``. It is never formed. A probe is

    q_k = sum_t s_t sqrt(w_t) grad CE(logits_t, y_t),   y_t drawn from p_t,  s_t = +-1,

with inputs teacher-forced: only the label is drawn. Then ``E[q q'] = H``, since the drawn gradients have mean zero and
the signs keep tokens apart, and ``mean_k <g, q_k>^2`` estimates ``g' H g`` without bias.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from ostlight.errors import OstlightError
from ostlight.influence.gradients.norms import wide
from ostlight.influence.gradients.seeded_random import signs, uniforms
from ostlight.models.losses import IGNORED, per_sample_losses

Vectors = dict[str, Tensor]
"""One or several vectors over the scope: parameter name to ``[*shape]`` or ``[K, *shape]``."""


@dataclass(frozen=True)
class Anchors:
    """The trusted samples, batched anyhow.

    Attributes:
        forward: runs the model, in eval mode, on one batch: ``(logits [N, T, V], labels [N, T])``, not yet shifted.
        batches: ``(indices, batch)`` pairs, to be run through more than once; each anchor's index from 0 to |V| - 1
            stands in exactly one of them.
        groups: one key for each anchor; all the same where there are no groups. Each group gets vectors of its own,
            with weights within the group.
        ids: what each anchor is called in messages; its index, where none are given.
    """

    forward: Callable[[Any], tuple[Tensor, Tensor]]
    batches: Sequence[tuple[Sequence[int], Any]]
    groups: Sequence[Hashable]
    ids: Sequence[str] = ()

    def __post_init__(self) -> None:
        seen = Counter(index for indices, _ in self.batches for index in indices)
        strange = [index for index in seen if not 0 <= index < len(self.groups)]
        wrong = [index for index in range(len(self.groups)) if seen[index] != 1] + strange
        if wrong:
            raise OstlightError(
                f"anchors: {len(self.groups)} have a group, the batches hold {sum(seen.values())}; each index from 0 "
                f"stands in one batch once, and these do not: {wrong[:10]}"
            )
        if not self.groups:
            raise OstlightError("there are no anchors; give a file of trusted samples")
        lonely = [group for group, count in self.sizes.items() if count == 1]
        if lonely and len(self.sizes) > 1:
            raise OstlightError(
                f"anchor groups with a single anchor: {', '.join(map(str, lonely[:10]))}; "
                "one sample says too little of a group, so add anchors or merge the group with another"
            )

    @property
    def sizes(self) -> dict[Hashable, int]:
        """Anchors in each group, the groups in the order they first appear."""
        return dict(Counter(self.groups))

    def called(self, index: int) -> str:
        return f"anchor {self.ids[index]!r}" if self.ids else f"anchor {index}"

    def runs(self) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """``(indices, logits, labels)`` of each batch, with a graph."""
        for indices, batch in self.batches:
            logits, labels = self.forward(batch)
            if len(labels) != len(indices):
                raise OstlightError(f"anchors: a batch of {len(labels)} rows came with {len(indices)} indices")
            yield list(indices), logits, labels


def mean_gradients(anchors: Anchors, parameters: dict[str, nn.Parameter]) -> dict[Hashable, Vectors]:
    """``g_V``, the gradient of the mean of the anchors' losses, for each group: ``[*shape]`` per parameter.

    Accumulated in fp32 (fp64 for fp64 weights), by plain autograd, one backward pass for each group in a batch.

    Raises:
        OstlightError: an anchor's loss is no finite number (without an answer token, say).
    """
    totals: dict[Hashable, Vectors] = {group: zeros(parameters) for group in anchors.sizes}
    with asking(parameters):
        for indices, logits, labels in anchors.runs():
            losses = per_sample_losses(logits, labels)
            for index, loss in zip(indices, losses.tolist(), strict=True):
                if not isfinite(loss):
                    raise OstlightError(f"{anchors.called(index)} has the loss {loss}; mend it or leave it out")
            rows_of = _rows_by_group(anchors, indices)
            for number, (group, rows) in enumerate(rows_of.items(), start=1):
                mean = losses[rows].sum() / anchors.sizes[group]
                gradients = gradients_of(mean, None, parameters, keep=number < len(rows_of))
                for name, gradient in gradients.items():
                    totals[group][name] += gradient
    return totals


def curvature_probes(
    anchors: Anchors, parameters: dict[str, nn.Parameter], num_probes: int, seed: int = 0, only: range | None = None
) -> dict[Hashable, Vectors]:
    """K probes for each group: ``[K, *shape]`` per parameter. K backward passes over the anchors.

    Args:
        only: the numbers of the probes wanted of these K, all by default: some at a time need less memory.

    Draws are seeded by (seed, anchor's index, number of the answer token within the anchor, probe), so neither the
    batching nor the padding moves them. The drawn label is read off the cumulated probabilities in fp64; it can only
    change where rounding of the model itself moves one of them past the drawn number.

    Raises:
        OstlightError: fewer answer tokens in a group than probes: the sketch would be wider than what it sketches.
    """
    wanted = range(num_probes) if only is None else only
    totals: dict[Hashable, Vectors] = {group: zeros(parameters, len(wanted)) for group in anchors.sizes}
    tokens_of: Counter[Hashable] = Counter()
    with asking(parameters):
        for indices, logits, labels in anchors.runs():
            answers = _Answers.of(logits, labels, indices)
            drawn = answers.draw(num_probes, seed)
            passes = [
                (probe, group, rows) for group, rows in _rows_by_group(anchors, indices).items() for probe in wanted
            ]
            for group in (anchors.groups[index] for index in answers.anchors.tolist()):
                tokens_of[group] += 1
            for number, (probe, group, rows) in enumerate(passes, start=1):
                signal = answers.signal(drawn[:, probe], probe, seed, rows, anchors.sizes[group])
                gradients = gradients_of(logits, signal, parameters, keep=number < len(passes))
                for name, gradient in gradients.items():
                    totals[group][name][wanted.index(probe)] += gradient
    for group in anchors.sizes:
        if tokens_of[group] < num_probes:
            where = f" in group {group}" if len(anchors.sizes) > 1 else ""
            raise OstlightError(too_few(num_probes, tokens_of[group], anchors.sizes[group], where))
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
        wanted = labels[:, 1:] != IGNORED
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

    def draw(self, num_probes: int, seed: int) -> Tensor:
        """``[R, K]`` labels drawn from each token's own distribution."""
        probes = torch.arange(num_probes, device=self.anchors.device)
        numbers = uniforms(seed, self.anchors[:, None], self.tokens[:, None], probes)
        cumulated = self.probabilities.double().cumsum(1)
        # Scaled to the last sum instead of 1, so that rounding cannot draw past the vocabulary's end.
        drawn = torch.searchsorted(cumulated, numbers * cumulated[:, -1:], right=True)
        return drawn.clamp_max(self.probabilities.shape[1] - 1)

    def signal(self, drawn: Tensor, probe: int, seed: int, rows: list[int], group_size: int) -> Tensor:
        """``[N, T, V]`` what the backward pass starts from: ``s_t sqrt(w_t) (p_t - onehot(y_t))`` on these rows."""
        sign = signs(seed, self.anchors, self.tokens, torch.tensor(probe, device=self.anchors.device))
        weight = sign / (group_size * self.lengths.double()).sqrt()
        inside = torch.isin(self.place[0], torch.tensor(rows, device=self.anchors.device))
        weight = (weight * inside).to(self.probabilities.dtype)
        errors = self.probabilities * weight[:, None]
        errors[torch.arange(len(drawn), device=drawn.device), drawn] -= weight
        signal = torch.zeros(self.shape, dtype=self.dtype, device=errors.device)
        signal[self.place] = errors.to(self.dtype)
        return signal


def too_few(wanted: int, tokens: int, anchors: int, where: str = "") -> str:
    return (
        f"{wanted} probes from {tokens} answer tokens of {anchors} anchors{where}: "
        f"add anchors (anchors.path), or ask for fewer ({tokens} at most)"
    )


def _rows_by_group(anchors: Anchors, indices: Iterable[int]) -> dict[Hashable, list[int]]:
    rows: dict[Hashable, list[int]] = {}
    for row, index in enumerate(indices):
        rows.setdefault(anchors.groups[index], []).append(row)
    return rows


def gradients_of(of: Tensor, signal: Tensor | None, parameters: dict[str, nn.Parameter], keep: bool) -> Vectors:
    """By plain autograd, in at least fp32; ``keep`` keeps the graph for another call."""
    found = torch.autograd.grad(of, list(parameters.values()), signal, retain_graph=keep, allow_unused=True)
    return {name: wide(gradient) for name, gradient in zip(parameters, found, strict=True) if gradient is not None}


def zeros(parameters: dict[str, nn.Parameter], *leading: int) -> Vectors:
    return {
        name: wide(torch.zeros((), dtype=parameter.dtype, device=parameter.device)).new_zeros(
            *leading, *parameter.shape
        )
        for name, parameter in parameters.items()
    }


@contextmanager
def asking(parameters: dict[str, nn.Parameter]) -> Iterator[None]:
    """The scope asks for gradients, whatever it did before."""
    before = {parameter: parameter.requires_grad for parameter in parameters.values()}
    try:
        for parameter in before:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for parameter, asked in before.items():
            parameter.requires_grad_(asked)

"""From encoded samples to the tensors of one forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ostlight.data.sample import Sample
from ostlight.errors import BadRecord
from ostlight.models.encoding.encoder import SEQUENCE_KEYS, Encoded
from ostlight.models.losses import IGNORED
from ostlight.models.vision.features import VisionFeatures

Side = Literal["left", "right"]
Place = tuple[slice, ...]
"""Of a sample's own values in a tensor of the whole batch."""


@dataclass
class Batch:
    """Some samples, and, for selectors that use the proxy, the same samples encoded for it.

    Attributes:
        samples: in the order of the rows.
        inputs: keyword arguments of the model's forward; empty where nothing was encoded. ``input_ids`` and
            ``attention_mask`` are ``[N, T]``; image tensors hold the images of all samples, in order.
        labels: ``[N, T]``, ``IGNORED`` outside the answers; ``[N, 0]`` where nothing was encoded.
        encoded: each sample alone; where ``places`` says so its tensors are parts of ``inputs`` on the CPU, no copies.
        places: by sample and input, which part of ``inputs`` is the sample's own.
        features: of its images, kept from one pass to the next; for batches that are run many times.
    """

    samples: list[Sample]
    inputs: dict[str, Tensor] = field(default_factory=dict)
    labels: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.long))
    encoded: list[Encoded] = field(default_factory=list)
    collator: Collator | None = None
    places: list[dict[str, Place]] = field(default_factory=list)
    features: VisionFeatures | None = field(default=None, compare=False)

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def tokens(self) -> list[int]:
        """Length of every sample in tokens, padding left out."""
        return [len(e) for e in self.encoded]

    @property
    def padded_tokens(self) -> int:
        """Tokens of all samples with padding: what a pass computes."""
        return len(self) * max(self.tokens, default=0)

    def __getstate__(self) -> dict[str, Any]:
        """What another process is sent: each image tensor once, and small ones inside the message.

        Every tensor of its own would cost a file descriptor and a handshake.
        """
        packed = [
            ({k: None if k in places else v.numpy() for k, v in one.inputs.items()}, one.labels.numpy(), one.answer_cut)
            for one, places in zip(self.encoded, self.places, strict=True)
        ]
        return self.__dict__ | {"encoded": packed, "features": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        packed = state.pop("encoded")
        self.__dict__.update(state)
        self.encoded = [
            Encoded(
                {k: self.inputs[k][places[k]] if v is None else torch.from_numpy(v) for k, v in small.items()},
                torch.from_numpy(labels),
                answer_cut,
            )
            for (small, labels, answer_cut), places in zip(packed, self.places, strict=True)
        ]

    @property
    def shape(self) -> tuple[Any, ...]:
        """What decides the cost of a pass over the batch: the sizes of its tensors, and how many tokens are answers."""
        sizes = tuple((name, tuple(tensor.shape)) for name, tensor in self.inputs.items())
        return len(self), sizes, int((self.labels != IGNORED).sum())

    def to(self, device: torch.device | str, **kwargs: Any) -> Batch:
        """On another device."""
        inputs = {k: v.to(device, **kwargs) for k, v in self.inputs.items()}
        return replace(self, inputs=inputs, labels=self.labels.to(device, **kwargs), features=None)

    def rows(self, wanted: Sequence[int]) -> Batch:
        """Some of the samples, padded among themselves only."""
        samples = [self.samples[i] for i in wanted]
        if self.collator is None:
            return Batch(samples)
        return self.collator.batch(samples, [self.encoded[i] for i in wanted]).to(self.labels.device)

    def singles(self) -> Iterator[Batch]:
        """Every sample in a batch of its own, without padding."""
        return (self.rows([i]) for i in range(len(self)))

    @staticmethod
    def together(batches: Sequence[Batch]) -> Batch:
        """The samples of several encoded batches in one, on the first one's device."""
        collator = batches[0].collator
        assert collator is not None, "encoded batches have a collator"
        samples = [sample for batch in batches for sample in batch.samples]
        encoded = [one for batch in batches for one in batch.encoded]
        return collator.batch(samples, encoded).to(batches[0].labels.device)


@dataclass
class Collator:
    """Pads and stacks encoded samples.

    Attributes:
        pad_id: token to pad with; it is masked, so any id works.
        side: where to pad. Losses and utilities do not depend on it.
        images_by_sample: the model wants images as ``[N, images, ...]``, padded with empty ones (Idefics3, SmolVLM,
            Mllama), rather than those of all samples in one row.
        positions: write ``position_ids`` that start at ``first_position`` at each sample's first token. For models that
            compute their own (Qwen-VL) this is off.
        first_position: 0, or 1 where the model counts from there (PaliGemma).
        answers_after_prefix: the model reads tokens of type 0 in both directions (PaliGemma): those from a sample's
            first answer token on get type 1, so that no answer token sees the ones behind it.
    """

    pad_id: int = 0
    side: Side = "right"
    images_by_sample: bool = False
    positions: bool = True
    first_position: int = 0
    answers_after_prefix: bool = False

    def batch(self, samples: Sequence[Sample], encoded: Sequence[Encoded]) -> Batch:
        """One batch of all the given samples.

        Tokens are padded on ``side``; images of several sizes, or of several numbers of tiles, with zeros behind, as
        the processors do it.
        """
        inputs: dict[str, Tensor] = {}
        places: list[dict[str, Place]] = [{} for _ in encoded]
        for key in {k: None for e in encoded for k in e.inputs if k != "labels"}:
            parts = [e.inputs.get(key) for e in encoded]
            if key in SEQUENCE_KEYS:
                fill = self.pad_id if key == "input_ids" else 0
                inputs[key] = self._pad(_of_every_sample(parts, encoded), fill)
            elif self.images_by_sample:
                inputs[key] = _stack_images(parts)
                if key == "aspect_ratio_mask":
                    inputs[key][..., 0] = 1  # also of an image that is padding, as Mllama's processor has it
            else:
                inputs[key] = torch.cat(_same_sizes([p for p in parts if p is not None]))
            if key not in SEQUENCE_KEYS:
                for own, place in zip(places, _places(parts, self.images_by_sample), strict=True):
                    own.update({} if place is None else {key: place})
        mask = self._pad([torch.ones(len(e), dtype=torch.long) for e in encoded], 0)
        inputs["attention_mask"] = mask
        if self.positions:
            inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0) + self.first_position
        labels = self._pad([e.labels for e in encoded], IGNORED)
        if self.answers_after_prefix:
            inputs["token_type_ids"] = self._pad([_from_first(e.labels != IGNORED) for e in encoded], 1)
        # From here on the batch alone holds the images.
        held = [
            replace(e, inputs={k: inputs[k][place[k]] if k in place else v for k, v in e.inputs.items()})
            for e, place in zip(encoded, places, strict=True)
        ]
        return Batch(list(samples), inputs, labels, held, self, places)

    def _pad(self, rows: list[Tensor], fill: int) -> Tensor:
        return pad_sequence(rows, batch_first=True, padding_value=fill, padding_side=self.side)


class TrainingStep:
    """The samples of one optimizer step, on one rank.

    No dataclass: Lightning would look into one for numbers to convert, and refuse the frozen samples it finds.

    Args:
        micro_batches: forward and backward are done on these one after the other.
        weight: what each sample's loss counts: 1 over the samples of the step on all ranks, times the number of ranks,
            since gradients are averaged over ranks.
        filler: a batch of text, computed with weight 0 where another rank has more micro-batches than this one and the
            model is sharded: all ranks exchange weights and gradients at the same time. Text, so that it uses no part
            of the model that no sample of the step uses.
        rejections: records of the step that cannot be used, by position.
        cut: positions of samples whose answer was cut.
    """

    def __init__(
        self,
        micro_batches: list[Batch],
        weight: float,
        filler: Batch | None = None,
        rejections: Mapping[int, BadRecord] | None = None,
        cut: frozenset[int] = frozenset(),
    ) -> None:
        self.micro_batches, self.weight, self.filler = micro_batches, weight, filler
        self.rejections, self.cut = dict(rejections or {}), cut

    @property
    def tokens(self) -> int:
        """Of all samples, padding left out."""
        return sum(sum(micro.tokens) for micro in self.micro_batches)

    @property
    def padded_tokens(self) -> int:
        """Of all samples, with padding: what forward and backward compute."""
        return sum(micro.padded_tokens for micro in self.micro_batches)

    def to(self, device: torch.device | str, **kwargs: Any) -> TrainingStep:
        """On another device; Lightning calls it."""
        filler = None if self.filler is None else self.filler.to(device, **kwargs)
        micro_batches = [b.to(device, **kwargs) for b in self.micro_batches]
        return TrainingStep(micro_batches, self.weight, filler, self.rejections, self.cut)


def _of_every_sample(parts: Sequence[Tensor | None], encoded: Sequence[Encoded]) -> list[Tensor]:
    """``[T, ...]`` each, axes behind the tokens of one size, zero for a sample that has none."""
    given = [p for p in parts if p is not None]
    empty = [p if p is not None else given[0].new_zeros(0, *given[0].shape[1:]) for p in parts]
    rows = _same_sizes(empty)
    return [
        row if part is not None else row.new_zeros(len(e), *row.shape[1:])
        for row, part, e in zip(rows, parts, encoded, strict=True)
    ]


def _same_sizes(parts: Sequence[Tensor]) -> list[Tensor]:
    """Tensors that differ in their first axis alone: the other axes padded with zeros behind."""
    sizes = [max(p.shape[d] for p in parts) for d in range(1, parts[0].ndim)]
    return [
        p if list(p.shape[1:]) == sizes else _within(p.new_zeros(len(p), *sizes), p, slice(0, len(p))) for p in parts
    ]


def _within(empty: Tensor, part: Tensor, *first: int | slice) -> Tensor:
    empty[(*first, *(slice(0, n) for n in part.shape[1:]))] = part
    return empty


def _stack_images(parts: Sequence[Tensor | None]) -> Tensor:
    """``[1, images, ...]`` each, some missing -> ``[N, most images, ...]``, missing ones zero."""
    given = [p for p in parts if p is not None]
    sizes = [max(p.shape[d] for p in given) for d in range(1, given[0].ndim)]
    stacked = given[0].new_zeros(len(parts), *sizes)
    for row, part in enumerate(parts):
        if part is not None:
            place = (row, *(slice(0, n) for n in part.shape[1:]))
            stacked[place] = part[0]  # type: ignore[index]
    return stacked


def _places(parts: Sequence[Tensor | None], stacked: bool) -> list[Place | None]:
    """Where each sample's part is: in its row of a stack, or behind the parts before it."""
    places: list[Place | None] = []
    begin = 0
    for row, part in enumerate(parts):
        if part is None:
            places.append(None)
            continue
        first = slice(row, row + 1) if stacked else slice(begin, begin + len(part))
        places.append((first, *(slice(0, n) for n in part.shape[1:])))
        begin += len(part)
    return places


def _from_first(chosen: Tensor) -> Tensor:
    """``[T]``: 1 from the first chosen place on, 0 before it."""
    return (chosen.cumsum(0) > 0).long()


def by_token_budget(lengths: Sequence[int], tokens_per_batch: int) -> list[list[int]]:
    """Groups of indices of similar length whose padded size stays within the budget.

    A sample longer than the budget makes a batch of its own. The grouping depends on the lengths alone.
    """
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        # Lengths are ascending, so sample i is the longest and sets the padded width.
        if groups and (len(groups[-1]) + 1) * lengths[i] <= tokens_per_batch:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups

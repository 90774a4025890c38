"""From a sample to the inputs of a model: chat template, image placeholders, labels on the answers only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ostlight.data.sample import IMAGE_PLACEHOLDER, Sample, open_images
from ostlight.errors import BadRecord, ModelError
from ostlight.models.losses import IGNORED


@dataclass
class Encoded:
    """One sample, encoded alone.

    Attributes:
        inputs: what the model's forward takes; ``input_ids`` is ``[T]``, image tensors are as the processor made them
            for this one sample.
        labels: ``[T]``, ``IGNORED`` outside the answers.
        answer_cut: the length limit took part of the answer.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    answer_cut: bool = False

    def __len__(self) -> int:
        return len(self.labels)


class Encoder:
    """Encodes samples with a model's own processor and chat template.

    Args:
        processor: what ``AutoProcessor`` gave, or a bare tokenizer for a text-only model.
        max_length: tokens kept of a sample.

    Raises:
        ModelError: the processor has no chat template.
    """

    def __init__(self, processor: Any, max_length: int) -> None:
        self.processor = processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.takes_images = self.tokenizer is not processor
        self.max_length = max_length
        if not (getattr(processor, "chat_template", None) or getattr(self.tokenizer, "chat_template", None)):
            raise ModelError(
                f"{type(processor).__name__} has no chat template, so turns cannot be rendered; "
                "add chat_template.jinja to the model folder"
            )
        # The image token as the chat template and the processor write it; a text-only model has none.
        self.image_token: str | None = getattr(processor, "image_token", None) if self.takes_images else None

    @property
    def image_token_id(self) -> int | None:
        """Id of the tokens that stand for an image; ``None`` for a text-only model."""
        return self.tokenizer.convert_tokens_to_ids(self.image_token) if self.image_token else None

    def encode(self, sample: Sample) -> Encoded:
        """The whole sample, with labels on its trained turns, cut to ``max_length`` tokens.

        Raises:
            BadRecord: images for a model that takes none; no answer left after cutting; the cut falls into an image;
                answers that cannot be found again in the rendered text.
        """
        text, spans = self._render(sample)
        inputs = self._process(text, sample)
        ids = inputs["input_ids"]
        labels = torch.full_like(ids, IGNORED)
        for start, stop in self._token_spans(text, spans, ids, sample):
            labels[start:stop] = ids[start:stop]
        return self._cut(inputs, labels)

    def encode_prompt(self, sample: Sample) -> Encoded:
        """The sample up to its last answer, ready for generation; no label is set."""
        last = sample.last_reply
        text = self._template(sample, last, prompt=True)
        image_count = sum(t.text.count(IMAGE_PLACEHOLDER) for t in sample.turns[:last])
        inputs = self._process(text, sample, image_count)
        return Encoded(inputs, torch.full_like(inputs["input_ids"], IGNORED))

    def _render(self, sample: Sample) -> tuple[str, list[tuple[int, int]]]:
        """The whole conversation as text, and the character span of every trained turn in it."""
        text = self._template(sample, len(sample.turns))
        spans = []
        for k, turn in enumerate(sample.turns):
            if turn.trained:
                before, after = self._template(sample, k, prompt=True), self._template(sample, k + 1)
                if not (after.startswith(before) and text.startswith(after)):
                    raise BadRecord(
                        "unstable_template",
                        "the chat template rewrites earlier turns, so the answer cannot be found; split the record "
                        "into one record per answer",
                        "turns",
                    )
                spans.append((len(before), len(after)))
        if not spans:
            raise BadRecord("no_answer", "the record has no assistant turn to train on", "turns")
        return text, spans

    def _template(self, sample: Sample, turns: int, prompt: bool = False) -> str:
        messages = [self._message(t.role, t.text) for t in sample.turns[:turns]]
        if not messages:
            return ""
        rendered = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        return str(rendered)

    def _message(self, role: str, text: str) -> dict[str, Any]:
        if not self.takes_images:
            return {"role": role, "content": text}
        content: list[dict[str, str]] = []
        for k, part in enumerate(text.split(IMAGE_PLACEHOLDER)):
            if k:
                content.append({"type": "image"})
            if part.strip() or (not content and IMAGE_PLACEHOLDER not in text):
                content.append({"type": "text", "text": part})
        return {"role": role, "content": content}

    def _process(self, text: str, sample: Sample, image_count: int | None = None) -> dict[str, Tensor]:
        images = open_images(sample.images[:image_count])
        if images and not self.takes_images:
            raise BadRecord("no_vision", "the record has images and the model takes none; use a vision model", "images")
        if self.takes_images:
            encoded = self.processor(text=[text], images=[images] if images else None, return_tensors="pt", **_NO_BOS)
        else:
            encoded = self.tokenizer([text], return_tensors="pt", **_NO_BOS)
        inputs = {k: v for k, v in encoded.items() if isinstance(v, Tensor) and k != "attention_mask"}
        for key in [k for k in inputs if k in SEQUENCE_KEYS]:
            inputs[key] = inputs[key][0]
        return inputs

    def _token_spans(
        self, text: str, spans: Sequence[tuple[int, int]], ids: Tensor, sample: Sample
    ) -> list[tuple[int, int]]:
        """Where the answers are in ``ids``, after the processor has expanded each placeholder to many tokens.

        Text behind the last image gives the same tokens with and without the images before it, so it is counted from
        the end. An answer with an image behind it is counted from the start instead, by processing the conversation
        up to there.
        """
        last_image = text.rfind(self.image_token) if self.image_token and sample.images else -1
        tail_start = last_image + len(self.image_token or "") if last_image >= 0 else 0
        tail = self.tokenizer(text[tail_start:], return_offsets_mapping=True, **_NO_BOS)
        tail_ids, offsets = tail["input_ids"], tail["offset_mapping"]
        shift = len(ids) - len(tail_ids)
        found: list[tuple[int, int]] = []
        for start, stop in spans:
            if start >= tail_start:
                if ids[shift:].tolist() != list(tail_ids):
                    raise BadRecord("lost_answer", "the processor changes the text behind the images", "turns")
                inside = [
                    k for k, (a, b) in enumerate(offsets) if b > start - tail_start and a < stop - tail_start and b > a
                ]
                if inside:
                    found.append((shift + inside[0], shift + inside[-1] + 1))
            else:
                found.append((self._length(text[:start], sample), self._length(text[:stop], sample)))
        return found

    def _length(self, text: str, sample: Sample) -> int:
        image_count = text.count(self.image_token) if self.image_token else 0
        return len(self._process(text, sample, image_count)["input_ids"])

    def _cut(self, inputs: dict[str, Tensor], labels: Tensor) -> Encoded:
        if len(labels) <= self.max_length:
            return Encoded(inputs, labels)
        limit = f"the sample has {len(labels)} tokens, the limit is {self.max_length} (max_length)"
        token_id = self.image_token_id
        if token_id is not None and bool((inputs["input_ids"][self.max_length :] == token_id).any()):
            raise BadRecord("image_cut", f"{limit}, and the cut falls before the end of an image; raise it", "images")
        kept = {k: v[: self.max_length] if k in SEQUENCE_KEYS else v for k, v in inputs.items()}
        if bool((labels[: self.max_length] == IGNORED).all()):
            raise BadRecord("all_masked", f"{limit}, and no answer token is left; raise it", "turns")
        return Encoded(kept, labels[: self.max_length], answer_cut=bool((labels[self.max_length :] != IGNORED).any()))


def encode_reduced(encoder: Encoder, sample: Sample, whole: Encoded) -> Encoded:
    """A sample with less to read (no images, say), with as many answer tokens as ``max_length`` left in the whole."""
    encoded = encoder.encode(sample)
    answer = (encoded.labels != IGNORED).nonzero()[:, 0]
    labels = encoded.labels.clone()
    labels[answer[int((whole.labels != IGNORED).sum()) :]] = IGNORED
    return Encoded(encoded.inputs, labels)


class QuestionEncoder(Encoder):
    """Encodes every sample up to its last answer only; a sample needs no answer."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder.processor, encoder.max_length)

    def encode(self, sample: Sample) -> Encoded:
        return self.encode_prompt(sample)


SEQUENCE_KEYS = frozenset({"input_ids", "token_type_ids", "mm_token_type_ids", "cross_attention_mask"})
"""Inputs with one value per token."""

_NO_BOS = {"add_special_tokens": False}
"""The chat template writes the special tokens itself."""

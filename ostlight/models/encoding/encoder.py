"""From a sample to the inputs of a model: chat template, image placeholders, labels on the answers only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from PIL.Image import Image, Resampling
from torch import Tensor

from ostlight.data.sample import IMAGE_PLACEHOLDER, ImageRef, Sample, open_images
from ostlight.errors import BadRecord, ModelError, rejecting
from ostlight.models.encoding.answer_marks import unproved
from ostlight.models.encoding.answer_tokens import RecordingTokenizer, Tokenized, answer_tokens, recorded
from ostlight.models.encoding.chat import ChatTemplate
from ostlight.models.encoding.limits import Limits
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

    @property
    def nbytes(self) -> int:
        """Memory of its tensors."""
        return self.labels.nbytes + sum(t.nbytes for t in self.inputs.values())


class Encoder:
    """Encodes samples with a model's own processor and chat template.

    Args:
        processor: what ``AutoProcessor`` gave, or a bare tokenizer for a text-only model.
        max_length: tokens kept of a sample.
        max_pixels: larger images are made smaller; ``None`` leaves them.

    Attributes:
        limits: of the model that will see the samples; ``None`` checks nothing.

    Raises:
        ModelError: the processor has no chat template, or its tokenizer does not say which characters a token stands
            for.
    """

    def __init__(self, processor: Any, max_length: int, max_pixels: int | None = None) -> None:
        self.processor, self.max_pixels = processor, max_pixels
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.takes_images = self.tokenizer is not processor
        self.max_length = max_length
        self.limits: Limits | None = None
        # The image token as the chat template and the processor write it; a text-only model has none.
        self.image_token: str | None = getattr(processor, "image_token", None) if self.takes_images else None
        self.chat = ChatTemplate(processor, self.tokenizer, self.image_token)
        if not getattr(self.tokenizer, "is_fast", True):
            raise ModelError(
                f"{type(self.tokenizer).__name__} does not say which characters a token stands for, so answers cannot "
                "be labelled; convert it to a fast tokenizer (tokenizer.json)"
            )

    @property
    def image_token_id(self) -> int | None:
        """Id of the tokens whose embeddings an image's features replace; ``None`` for a text-only model."""
        if not self.image_token:
            return None
        # Gemma 3 writes another token for the image as a whole.
        own = getattr(self.tokenizer, "image_token_id", None)
        return int(own if own is not None else self.tokenizer.convert_tokens_to_ids(self.image_token))

    @cached_property
    def _media_tokens(self) -> dict[str, int]:
        """Tokens that stand for a part of an image, a video or a sound, with their ids."""
        if not self.takes_images:
            return {}
        owners = (self.processor, self.tokenizer)
        names = ("image_token", "context_image_token", "video_token", "audio_token")
        tokens = {getattr(owner, name, None) for owner in owners for name in names}
        known = set(self.tokenizer.get_vocab())
        return {t: self.tokenizer.convert_tokens_to_ids(t) for t in tokens if isinstance(t, str) and t in known}

    @cached_property
    def _bos(self) -> tuple[str, int] | None:
        """The token that the tokenizer's own rule puts before a text, and how many it puts behind."""
        bare = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        whole = self.tokenizer("a")["input_ids"]
        if self.tokenizer.bos_token is None or whole[:1] != [self.tokenizer.bos_token_id] or whole[:1] == bare[:1]:
            return None
        return str(self.tokenizer.bos_token), len(whole) - 1 - len(bare)

    def encode(self, sample: Sample) -> Encoded:
        """The whole sample, with labels on its trained turns, cut to ``max_length`` tokens.

        The end of an answer's turn is labelled too, where the chat template writes one. Each label is proved: the
        labelled tokens, decoded, are the record's answers (``ostlight.models.encoding.answer_tokens``).

        Raises:
            BadRecord: images for a model that takes none; what chat template and processor refuse; answers that cannot
                be found again in the rendered text; no answer left after cutting; the cut falls into an image; more
                tokens, or other tokens, than the model has a place for.
        """
        self._refuse_media(sample)
        if not any(turn.trained for turn in sample.turns):
            raise BadRecord("no_answer", "the record has no assistant turn to train on", "turns")
        text, answers = self.chat.render_answers(sample.turns, sample.tools)
        inputs, tokenized = self._process(text, sample.images)
        ids = inputs["input_ids"]
        labels = torch.full_like(ids, IGNORED)
        placeholders = {self.image_token} if self.image_token else set()
        for start, stop in answer_tokens(text, answers, tokenized, placeholders, self.tokenizer):
            labels[start:stop] = ids[start:stop]
        return self._checked(self._cut(inputs, labels))

    def encode_prompt(self, sample: Sample) -> Encoded:
        """The sample up to its last answer, ready for generation; no label is set.

        The template's own prompt, unless a training on the answer would have it stand behind another text: templates of
        reasoning models open the reasoning in the prompt, or write an empty one before an answer without. Then the
        prompt is what stands before the answer in training.

        Raises:
            BadRecord: images for a model that takes none; what chat template and processor refuse; more tokens, or
                other tokens, than the model has a place for.
        """
        self._refuse_media(sample)
        asked = sample.up_to(sample.last_reply)
        text = self.chat.render(asked.turns, prompt=True, tools=sample.tools)
        inputs = self._trained_prompt(sample, text, asked.images) or self._process(text, asked.images)[0]
        return self._checked(Encoded(inputs, torch.full_like(inputs["input_ids"], IGNORED)))

    def _trained_prompt(self, sample: Sample, prompt: str, images: Sequence[ImageRef]) -> dict[str, Tensor] | None:
        """What stands before the last answer in training; ``None`` where that is the template's prompt, or unknown."""
        turns = [replace(turn, trained=False) for turn in sample.turns[: sample.last_reply + 1]]
        if len(turns) == sample.last_reply or IMAGE_PLACEHOLDER in turns[-1].text or not turns[-1].text.strip():
            return None
        turns[-1] = replace(turns[-1], trained=True)
        try:
            text, (answer,) = self.chat.render_answers(turns, sample.tools)
            if text[: answer.span[0]].rstrip() == prompt.rstrip():
                return None
            inputs, tokenized = self._process(text, images)
            placeholders = {self.image_token} if self.image_token else set()
            ((start, _),) = answer_tokens(text, [answer], tokenized, placeholders, self.tokenizer)
        except BadRecord:
            return None
        return {k: v[:start] if k in SEQUENCE_KEYS else v for k, v in inputs.items()}

    def _refuse_media(self, sample: Sample) -> None:
        """Checks that the sample's images have a place, and that its texts hold no token that stands for one."""
        if sample.images and not self.takes_images:
            raise BadRecord("no_vision", "the record has images and the model takes none; use a vision model", "images")
        for turn in sample.turns:
            if turn.trained and IMAGE_PLACEHOLDER in turn.text and sample.images:
                raise BadRecord(
                    "image_in_answer", "an answer to train on holds an image; models answer in text", "turns"
                )
            text = turn.text.replace(IMAGE_PLACEHOLDER, "")
            found = next((token for token in self._media_tokens if token in text), None)
            if found is not None:
                detail = f"the text holds {found}, which the model takes for a part of an image; write it another way"
                raise BadRecord("media_token_in_text", detail, "turns")

    def _process(self, text: str, refs: Sequence[ImageRef]) -> tuple[dict[str, Tensor], Tokenized]:
        """The model's inputs for a rendered conversation, and what the tokenizer was given.

        Begins with the token that the tokenizer's own rule puts first, if the template does not write it.
        """
        with rejecting("corrupt_image", "an image cannot be decoded", "images"):
            images = [within(image, self.max_pixels) for image in open_images(refs)]
        bos, closing = self._bos or ("", 0)
        if not bos or text.startswith(bos):
            return self._call(text, images, False)
        inputs, tokenized = self._call(text, images, True)
        if tokenized.ids[:2] == [self.tokenizer.bos_token_id] * 2:  # the processor wrote it
            return self._call(text, images, False)
        length = len(tokenized.ids) - closing
        kept = {k: v[:length] if k in SEQUENCE_KEYS else v for k, v in inputs.items()}
        return kept, Tokenized(tokenized.text, tokenized.ids[:length], tokenized.offsets[:length])

    def _call(self, text: str, images: list[Image], special: bool) -> tuple[dict[str, Tensor], Tokenized]:
        options = {"return_tensors": "pt", "add_special_tokens": special}
        with rejecting("processor_refused", "the processor refuses the record", "images" if images else "turns"):
            if self.takes_images:
                with recorded(self.processor) as recorder:
                    encoded = self.processor(text=[text], images=[images] if images else None, **options)
            else:
                recorder = RecordingTokenizer(self.tokenizer)
                encoded = recorder([text], **options)
            inputs = {
                k: v for k, v in encoded.items() if isinstance(v, Tensor) and k not in ("attention_mask", "labels")
            }
        for key in [k for k in inputs if k in SEQUENCE_KEYS]:
            inputs[key] = inputs[key][0]
        tokenized = recorder.of(inputs["input_ids"].tolist())
        if tokenized is None:
            raise unproved("the processor does not give the tokens of its tokenizer")
        return inputs, tokenized

    def _checked(self, encoded: Encoded) -> Encoded:
        """The same, if the model has an embedding for each token, a position for all of them, and takes the images."""
        if self.limits is None:
            return encoded
        if self.limits.positions is not None and len(encoded) > self.limits.positions:
            detail = f"the sample has {len(encoded)} tokens, the model's table of positions {self.limits.positions}"
            raise BadRecord("too_long", f"{detail}; lower max_length, or take another model", "turns")
        side, pixels = self.limits.image, encoded.inputs.get("pixel_values")
        if side is not None and pixels is not None and tuple(pixels.shape[-2:]) != (side, side):
            height, width = pixels.shape[-2:]
            detail = (
                f"an image becomes {width} x {height} pixels, and the model takes {side} x {side}; scale it to that"
            )
            raise BadRecord("image_size", f"{detail}, or set the size in the model's processor_config.json", "images")
        ids = encoded.inputs["input_ids"]
        media = torch.tensor(sorted(self._media_tokens.values()), dtype=ids.dtype)
        unknown = ids[(ids >= self.limits.vocabulary) & ~torch.isin(ids, media)]
        if len(unknown):
            token = self.tokenizer.convert_ids_to_tokens(int(unknown[0]))
            detail = f"token {token!r} has the id {int(unknown[0])}, the model's embeddings end at "
            detail += f"{self.limits.vocabulary - 1}; the tokenizer is another model's"
            raise BadRecord("unknown_token", detail, "turns")
        return encoded

    def _cut(self, inputs: dict[str, Tensor], labels: Tensor) -> Encoded:
        if len(labels) <= self.max_length:
            return Encoded(inputs, labels)
        limit = f"the sample has {len(labels)} tokens, the limit is {self.max_length} (max_length)"
        lost = inputs["input_ids"][self.max_length :]
        media = torch.tensor(sorted(self._media_tokens.values()), dtype=lost.dtype)
        if bool(torch.isin(lost, media).any()):
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


def text_alone(encoded: Encoded, tokens: int = 8) -> Encoded:
    """The first tokens of a sample's answer, without anything before them: no image, and hardly any memory."""
    answer = encoded.inputs["input_ids"][encoded.labels != IGNORED][:tokens]
    ids = torch.cat([answer[:1], answer])  # the first one predicts
    labels = torch.cat([torch.full_like(answer[:1], IGNORED), answer])
    kinds = [key for key in ("token_type_ids", "mm_token_type_ids") if key in encoded.inputs]
    return Encoded({"input_ids": ids} | {key: torch.zeros_like(ids) for key in kinds}, labels)


class QuestionEncoder(Encoder):
    """Encodes every sample up to its last answer only; a sample needs no answer."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder.processor, encoder.max_length, encoder.max_pixels)
        self.limits = encoder.limits

    def encode(self, sample: Sample) -> Encoded:
        return self.encode_prompt(sample)


SEQUENCE_KEYS = frozenset({"input_ids", "token_type_ids", "mm_token_type_ids", "cross_attention_mask"})
"""Inputs with one value per token."""


def within(image: Image, max_pixels: int | None) -> Image:
    """The image itself, or one of the same shape with at most so many pixels."""
    width, height = image.size
    if max_pixels is None or width * height <= max_pixels:
        return image
    scale = math.sqrt(max_pixels / (width * height))
    wide = max(1, math.floor(width * scale))
    high = max(1, min(math.floor(height * scale), max_pixels // wide))
    return image.resize((min(wide, max_pixels // high), high), Resampling.BICUBIC)

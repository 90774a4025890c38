"""Generates answers by greedy decoding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby

import torch

from ostlight.config.schema import Evaluation
from ostlight.data.sample import Sample
from ostlight.evaluation.share import ALONE, Share
from ostlight.models.encoding.encoder import Encoded
from ostlight.models.generation import AnswerEnd
from ostlight.models.module import MultimodalModel
from ostlight.models.vision.cache import reused
from ostlight.progress import phase


class GeneratedAnswer(str):
    """A model's answer.

    Attributes:
        ended: the model ended it; if not, it ran into the limit of new tokens.
    """

    ended: bool

    def __new__(cls, text: str, ended: bool = True) -> GeneratedAnswer:
        self = super().__new__(cls, text)
        self.ended = ended
        return self


def generate_answers(
    model: MultimodalModel,
    samples: Sequence[Sample],
    settings: Evaluation,
    prompts: Sequence[Encoded] | None = None,
    share: Share = ALONE,
) -> list[GeneratedAnswer]:
    """Returns the model's answer to each sample's last question, in the order of ``samples``.

    An answer ends where the chat template ends a turn, or where the model folder's generation settings say.

    Args:
        prompts: ``encode_prompt`` of each sample; encoded here if left out.
        share: of the batches that this process generates; every rank returns all answers.

    Raises:
        BadRecord: a sample cannot be encoded.
    """
    prompts = prompts if prompts is not None else [model.encoder.encode_prompt(s) for s in samples]
    # New tokens are appended on the right, so prompts are padded on the left; positions follow from the mask.
    collator = replace(model.collator, side="left", positions=False)
    end = AnswerEnd(model)
    own: dict[int, GeneratedAnswer] = {}
    with phase("generating answers", -(-len(prompts) // share.ranks), "answers") as generated:
        for group, new_tokens in share.of(_groups(model, prompts, settings)):
            batch = collator.batch([samples[i] for i in group], [prompts[i] for i in group]).to(model.device)
            inputs = {k: v.to(model.dtype) if v.is_floating_point() else v for k, v in batch.inputs.items()}
            with torch.no_grad(), reused(model.model, inputs):
                out = model.model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False, **end.options)  # type: ignore[operator]
            for i, row in zip(group, out[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
                own[i] = GeneratedAnswer(*end.read(row))
            generated.advance(len(group))
    answers, none = share.gathered(own), GeneratedAnswer("", ended=False)
    return [answers.get(i, none) for i in range(len(prompts))]


def _groups(
    model: MultimodalModel, prompts: Sequence[Encoded], settings: Evaluation
) -> Iterator[tuple[list[int], int]]:
    """Prompts of similar length, and how many tokens to generate: fewer where the model has no positions for more."""
    limits, most = model.encoder.limits, settings.max_new_tokens
    positions = limits.positions if limits is not None else None
    room = [most if positions is None else min(most, positions - len(prompt)) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda i: (-room[i], len(prompts[i])))
    for new_tokens, of_room in groupby(order, key=lambda i: room[i]):
        group = list(of_room)
        if new_tokens > 0:
            yield from (
                (group[start : start + settings.batch_size], new_tokens)
                for start in range(0, len(group), settings.batch_size)
            )

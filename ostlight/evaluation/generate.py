"""Generates answers by greedy decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ostlight.config.schema import Evaluation
from ostlight.data.sample import Sample
from ostlight.models.encode import Encoded
from ostlight.models.module import MultimodalModel


def generate_answers(
    model: MultimodalModel, samples: Sequence[Sample], settings: Evaluation, prompts: Sequence[Encoded] | None = None
) -> list[str]:
    """Returns the model's answer to each sample's last question, in the order of ``samples``.

    Args:
        prompts: ``encode_prompt`` of each sample; encoded here if left out.

    Raises:
        BadRecord: a sample cannot be encoded.
    """
    prompts = prompts if prompts is not None else [model.encoder.encode_prompt(s) for s in samples]
    # New tokens are appended on the right, so prompts are padded on the left; positions follow from the mask.
    collator = replace(model.collator, side="left", positions=False)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers = [""] * len(prompts)
    for start in range(0, len(order), settings.batch_size):
        group = order[start : start + settings.batch_size]
        batch = collator.batch([samples[i] for i in group], [prompts[i] for i in group]).to(model.device)
        inputs = {k: v.to(model.dtype) if v.is_floating_point() else v for k, v in batch.inputs.items()}
        with torch.no_grad():
            out = model.model.generate(**inputs, max_new_tokens=settings.max_new_tokens, do_sample=False)  # type: ignore[operator]
        texts = model.encoder.tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for i, text in zip(group, texts, strict=True):
            answers[i] = text
    return answers

"""A model of a family that is not tested is tried on a few small samples before it is used.

What is built here rests on three things: a token's logits do not depend on tokens behind it, a sample's loss does not
depend on the samples beside it, and the model takes what its processor gives. Encoders (BERT), prefix language models
and unusual layouts of images break one of them, often without an error.
"""

from __future__ import annotations

import io
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor, nn

from ostlight.data.sample import IMAGE_PLACEHOLDER, ImageRef, Sample, Turn
from ostlight.errors import ModelError
from ostlight.models.batch import Batch, Collator
from ostlight.models.encoding.encoder import Encoded, Encoder
from ostlight.models.losses import IGNORED, per_sample_losses

TESTED = frozenset({
    "llama", "qwen3", "gemma3_text", "mistral",
    "llava", "llava_next", "llava_onevision", "idefics3", "smolvlm", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe",
    "internvl", "mllama", "paligemma", "gemma3", "mistral3",
})  # fmt: skip
"""Model types of docs/reference/models.md, whose tests show more than a trial could."""

ROUNDING = {torch.float64: 1e-5, torch.float32: 1e-5, torch.bfloat16: 0.02, torch.float16: 0.003}
"""Largest change of a logit by a token behind it, over the largest logit: kernels that round in another way."""

DRIFT = {torch.float64: 1e-5, torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}
"""Largest change of a loss by the padding around it, over the loss, at least 1 nat."""

ADVICE = "name a model of a tested family (docs/reference/models.md)"


def check_family(model: nn.Module, encoder: Encoder, collator: Collator, where: str) -> None:
    """Tries a model on samples with and without images, alone and in one batch; nothing for a tested family.

    Args:
        model: in eval mode.
        where: the setting's name (``proxy``), for messages.

    Raises:
        ModelError: the model does not run on what its processor gives; logits depend on tokens behind them; or a
            sample's loss depends on the batch. Says which.
    """
    kind = str(getattr(getattr(model, "config", None), "model_type", ""))
    if kind in TESTED:
        return
    encoded = _encoded(encoder)
    if not encoded:
        return  # each record will be rejected with its reason
    name, setting = f"{where}.path: {type(model).__name__} ({kind})", f"{where}.path"
    losses = []
    for sample, one in encoded:
        try:
            losses.append(_losses(model, collator.batch([sample], [one])))
        except Exception as error:
            problem = f"{name} does not run on a sample with {len(sample.images)} images: {_line(error)}; {ADVICE}"
            raise ModelError(problem, setting) from error
    alone = torch.cat(losses)
    for sample, one in encoded:
        if _sees_ahead(model, collator, sample, one):
            raise ModelError(
                f"{name} lets a token see the tokens behind it, so its loss on an answer is no prediction; {ADVICE}",
                setting,
            )
    samples, parts = (list(one) for one in zip(*encoded, strict=True))
    trials: dict[str, tuple[Collator, bool]] = {
        "in a batch padded on the right": (replace(collator, side="right"), True),
        "in a batch padded on the left, as answers are generated": (replace(collator, side="left"), True),
        "without position_ids, which it counts in another way": (replace(collator, positions=False), False),
    }
    dtype = next(model.parameters()).dtype
    for what, (by, together) in trials.items():
        if dtype == torch.float64 and by.side == "left":
            continue  # transformers' plain attention gives NaN there: its float64 mask overflows in float32
        try:
            rows = [(samples, parts)] if together else [([s], [e]) for s, e in encoded]
            other = torch.cat([_losses(model, by.batch(*row)) for row in rows])
        except Exception as error:
            problem = f"{name} runs on single samples and not {what}: {_line(error)}; {ADVICE}"
            raise ModelError(problem, setting) from error
        change = ((other - alone).abs() / alone.abs().clamp_min(1)).nan_to_num(nan=float("inf"))
        worst = int(change.argmax())
        if float(change[worst]) > DRIFT[dtype]:
            raise ModelError(
                f"{name} gives a sample the loss {float(alone[worst]):.6g} alone and {float(other[worst]):.6g} {what}; "
                f"{ADVICE}",
                setting,
            )


def _encoded(encoder: Encoder) -> list[tuple[Sample, Encoded]]:
    """The samples that the processor takes."""
    found = []
    for sample in _samples(encoder.takes_images):
        try:
            found.append((sample, encoder.encode(sample)))
        except Exception:
            continue
    return found


def _samples(with_images: bool) -> list[Sample]:
    def sample(question: str, answer: str, *sizes: tuple[int, int]) -> Sample:
        images = tuple(_image(*size) for size in sizes)
        text = f"{IMAGE_PLACEHOLDER}\n" * len(sizes) + question
        return Sample(question, (Turn("user", text), Turn("assistant", answer, trained=True)), images)

    made = [sample("What is one and two?", "It is three."), sample("Say yes.", "Yes, and no.")]
    if with_images:
        made += [
            sample("What is this?", "An image of one colour.", (64, 64)),
            sample("Which is wider?", "The first.", (160, 64), (48, 96)),
        ]
    return made


def _image(width: int, height: int) -> ImageRef:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(file, "PNG")
    return ImageRef(data=file.getvalue())


def _losses(model: nn.Module, batch: Batch) -> Tensor:
    return per_sample_losses(_logits(model, batch), batch.labels).double()


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    device, dtype = (next(model.parameters()).device, next(model.parameters()).dtype)
    inputs = {k: v.to(device, dtype) if v.is_floating_point() else v.to(device) for k, v in batch.inputs.items()}
    with torch.no_grad():
        logits: Tensor = model(**inputs, use_cache=False).logits
    return logits.cpu()


def _sees_ahead(model: nn.Module, collator: Collator, sample: Sample, one: Encoded) -> bool:
    """Whether another last answer token changes a logit before it."""
    last = int((one.labels != IGNORED).nonzero()[-1])
    ids = one.inputs["input_ids"].clone()
    ids[last] = one.inputs["input_ids"][int((one.labels != IGNORED).nonzero()[0])]
    if bool(ids[last] == one.inputs["input_ids"][last]):
        return False
    other = Encoded({**one.inputs, "input_ids": ids}, one.labels)
    before, after = (_logits(model, collator.batch([sample], [e]))[0, :last].double() for e in (one, other))
    allowed = ROUNDING[next(model.parameters()).dtype]
    return not bool((before - after).abs().max() <= allowed * before.abs().max())


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

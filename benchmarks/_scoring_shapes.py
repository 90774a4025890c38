"""The models `bench_scoring.py` times, with random weights, and batches of random tokens for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from ostlight.models.losses import IGNORED

DIGITMATH_PROXY = Path(__file__).parents[1] / "ostlight" / "digitmath" / "checkpoints" / "proxy"


@dataclass(frozen=True)
class Shape:
    """A model and the batch it is timed on.

    Attributes:
        name: as it stands in the records.
        build: the model in fp32, on the CPU, weights from torch's global generator.
        tokens: T, images' tokens among them; no padding.
        answer_tokens: at the end of each sample; the loss is taken on them.
        batch: N.
        dtype: of the weights on the device.
        image_tokens: placeholders of each sample's one image; 0 for text only.
        image: ``[channels, height, width]`` of it.
    """

    name: str
    build: Callable[[], nn.Module]
    tokens: int
    answer_tokens: int
    batch: int
    dtype: torch.dtype = torch.float32
    image_tokens: int = 0
    image: tuple[int, int, int] = (3, 0, 0)

    def samples(self, model: Any, count: int, seed: int, device: str) -> tuple[dict[str, Tensor], Tensor]:
        """Model inputs and ``labels [count, T]``."""
        generator = torch.Generator().manual_seed(seed)
        config = model.config
        vocabulary = config.get_text_config().vocab_size
        ids = torch.randint(vocabulary // 2, (count, self.tokens), generator=generator)
        if self.image_tokens:
            ids[ids == config.image_token_id] += 1
            ids[:, 1 : 1 + self.image_tokens] = config.image_token_id
        labels = ids.clone()
        labels[:, : -self.answer_tokens] = IGNORED
        inputs = {"input_ids": ids.to(device)}
        if self.image_tokens:
            pixels = torch.randn(count, *self.image, generator=generator)
            inputs["pixel_values"] = pixels.to(device, self.dtype)
        return inputs, labels.to(device)


def llama(width: int, layers: int, vocabulary: int = 512) -> nn.Module:
    """The vocabulary is small on purpose: a head's weight gradient is work that scoring blocks leaves out."""
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64),
        num_key_value_heads=max(1, width // 64),
        tie_word_embeddings=False,
    )
    return transformers.LlamaForCausalLM(config)


def digitmath_proxy() -> nn.Module:
    config = transformers.AutoConfig.from_pretrained(DIGITMATH_PROXY)
    return transformers.AutoModelForImageTextToText.from_config(config)


def internvl3_1b() -> nn.Module:
    """The sizes of InternVL3-1B, 938M parameters: Qwen2.5-0.5B with an untied head behind InternViT-300M."""
    text = transformers.Qwen2Config(
        vocab_size=151_674,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=32_768,
        tie_word_embeddings=False,
    )
    vision = transformers.InternVLVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=[448, 448],
        patch_size=[14, 14],
        attention_bias=True,
        use_absolute_position_embeddings=True,
    )
    config = transformers.InternVLConfig(
        vision_config=vision, text_config=text, image_token_id=151_667, image_seq_length=256, tie_word_embeddings=False
    )
    return transformers.InternVLForConditionalGeneration(config)


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("256x4", lambda: llama(256, 4), tokens=128, answer_tokens=96, batch=16),
        Shape(
            "digitmath",
            digitmath_proxy,
            tokens=32,
            answer_tokens=14,
            batch=16,
            image_tokens=4,
            image=(3, 16, 16),
        ),
        Shape(
            "1b",
            internvl3_1b,
            tokens=512,
            answer_tokens=224,
            batch=16,
            dtype=torch.bfloat16,
            image_tokens=256,
            image=(3, 448, 448),
        ),
    )
}

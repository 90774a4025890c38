"""LLaVA-style models for DigitMath: one vision token for each digit, a small Llama behind it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from ostlight.data.sample import IMAGE_MARK
from ostlight.digitmath.digits import CELL_PIXELS, GRID, PICTURE_PIXELS
from ostlight.digitmath.tokenizer import CHAT_TEMPLATE, MAX_TOKENS, build_tokenizer, vocabulary
from ostlight.errors import ConfigError

CHECKPOINTS = Path(__file__).parent / "checkpoints"
CLASS_TOKENS = 1


@dataclass(frozen=True, slots=True)
class Shape:
    """Widths and depths; the head is untied."""

    hidden: int
    layers: int
    heads: int
    feed_forward: int
    vision_hidden: int
    vision_layers: int = 1


SIZES = {
    "proxy": Shape(hidden=96, layers=2, heads=4, feed_forward=192, vision_hidden=64),
    "target": Shape(hidden=160, layers=3, heads=4, feed_forward=448, vision_hidden=96),
    "judge": Shape(hidden=256, layers=4, heads=8, feed_forward=704, vision_hidden=128),
}
"""About 0.3, 1.2 and 3.5 million parameters."""


def checkpoint(size: str) -> Path:
    """Folder of a committed base checkpoint (``proxy`` or ``target``), for ``from_pretrained``.

    Raises:
        ConfigError: no checkpoint of that name is part of the package.
    """
    folder = CHECKPOINTS / size
    if not (folder / "config.json").is_file():
        there = sorted(path.parent.name for path in CHECKPOINTS.glob("*/config.json"))
        raise ConfigError([f"no base checkpoint {size!r}; there are {', '.join(there) or 'none'}"], "digitmath")
    return folder


def build_processor() -> LlavaProcessor:
    """Tokenizer and image processor. Pictures are taken as they are: never resized, cropped or blurred."""
    side = {"height": PICTURE_PIXELS, "width": PICTURE_PIXELS}
    images = CLIPImageProcessorPil(
        do_resize=False,
        do_center_crop=False,
        do_convert_rgb=True,
        size=side,
        crop_size=side,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=build_tokenizer(),
        patch_size=CELL_PIXELS,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=CLASS_TOKENS,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(size: str) -> LlavaForConditionalGeneration:
    """A fresh model with random weights (torch's global generator), float32.

    Raises:
        ConfigError: ``size`` is none of ``SIZES``.
    """
    if size not in SIZES:
        raise ConfigError([f"no model size {size!r}; the sizes are {', '.join(SIZES)}"], "digitmath")
    shape, tokenizer = SIZES[size], build_tokenizer()
    vision = CLIPVisionConfig(
        hidden_size=shape.vision_hidden,
        intermediate_size=2 * shape.vision_hidden,
        num_hidden_layers=shape.vision_layers,
        num_attention_heads=4,
        projection_dim=shape.vision_hidden,
        image_size=PICTURE_PIXELS,
        patch_size=CELL_PIXELS,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=MAX_TOKENS,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=vocabulary()[IMAGE_MARK],
        image_seq_length=GRID * GRID,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model

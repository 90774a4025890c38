"""Small models for DigitMath, LLaVA- and Idefics3-style: one vision token for each digit, a small Llama behind it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from transformers import (
    CLIPVisionConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from ostlight.data.sample import IMAGE_PLACEHOLDER
from ostlight.digitmath.digits import CELL_PIXELS, GRID, PICTURE_PIXELS
from ostlight.digitmath.tokenizer import CHAT_TEMPLATE, IDEFICS3_SPECIALS, MAX_TOKENS, build_tokenizer, vocabulary
from ostlight.errors import ConfigError

CHECKPOINTS = Path(__file__).parent / "checkpoints"
CLASS_TOKENS = 1
HALF = [0.5, 0.5, 0.5]
"""Mean and spread by which pixels come to lie from -1 to 1."""

AnyModel = TypeVar("AnyModel", LlavaForConditionalGeneration, Idefics3ForConditionalGeneration)


@dataclass(frozen=True, slots=True)
class Shape:
    """Widths, depths, family and the square pictures it takes; the head is untied.

    A vision token stands for a patch of ``patch`` x ``patch`` pixels; as it is here, for a digit.
    """

    hidden: int
    layers: int
    heads: int
    feed_forward: int
    vision_hidden: int
    vision_layers: int = 1
    family: str = "llava"
    pixels: int = PICTURE_PIXELS
    patch: int = CELL_PIXELS


SIZES = {
    "proxy": Shape(hidden=96, layers=2, heads=4, feed_forward=192, vision_hidden=64),
    "medium": Shape(hidden=128, layers=2, heads=4, feed_forward=352, vision_hidden=80),
    "target": Shape(hidden=160, layers=3, heads=4, feed_forward=448, vision_hidden=96),
    "large": Shape(hidden=208, layers=4, heads=4, feed_forward=576, vision_hidden=112),
    "idefics3": Shape(hidden=160, layers=3, heads=4, feed_forward=448, vision_hidden=64, family="idefics3"),
}
"""About 0.3, 0.6, 1.2, 2.4 and 1.1 million parameters."""


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


def build_processor(family: str = "llava") -> LlavaProcessor | Idefics3Processor:
    """Tokenizer and image processor. Pictures are taken as they are: never resized, cropped or blurred."""
    return _idefics3_processor() if family == "idefics3" else llava_processor(SIZES["proxy"], build_tokenizer())


def build_model(size: str) -> LlavaForConditionalGeneration | Idefics3ForConditionalGeneration:
    """A fresh model with random weights (torch's global generator), float32.

    Raises:
        ConfigError: ``size`` is none of ``SIZES``.
    """
    if size not in SIZES:
        raise ConfigError([f"no model size {size!r}; the sizes are {', '.join(SIZES)}"], "digitmath")
    shape = SIZES[size]
    tokenizer = build_tokenizer(IDEFICS3_SPECIALS if shape.family == "idefics3" else ())
    return _idefics3_model(shape, tokenizer) if shape.family == "idefics3" else llava_model(shape, tokenizer)


def llava_processor(shape: Shape, tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """What lays out text and pictures for ``llava_model``."""
    side = {"height": shape.pixels, "width": shape.pixels}
    images = CLIPImageProcessorPil(
        do_resize=False,
        do_center_crop=False,
        do_convert_rgb=True,
        size=side,
        crop_size=side,
        image_mean=HALF,
        image_std=HALF,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=shape.patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=CLASS_TOKENS,
        chat_template=CHAT_TEMPLATE,
    )


def llava_model(shape: Shape, tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """A fresh LLaVA with random weights (torch's global generator), float32: CLIP's vision tower before a Llama."""
    vision = CLIPVisionConfig(
        hidden_size=shape.vision_hidden,
        intermediate_size=2 * shape.vision_hidden,
        num_hidden_layers=shape.vision_layers,
        num_attention_heads=4,
        projection_dim=shape.vision_hidden,
        image_size=shape.pixels,
        patch_size=shape.patch,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=_text(shape, tokenizer),
        image_token_index=tokenizer.get_vocab()[IMAGE_PLACEHOLDER],
        image_seq_length=(shape.pixels // shape.patch) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    return _with_ends(LlavaForConditionalGeneration(config), tokenizer)


def _idefics3_processor() -> Idefics3Processor:
    side = {"longest_edge": PICTURE_PIXELS}
    images = Idefics3ImageProcessorPil(
        do_resize=False, do_image_splitting=False, max_image_size=side, size=side, image_mean=HALF, image_std=HALF
    )
    return Idefics3Processor(
        image_processor=images,
        tokenizer=build_tokenizer(IDEFICS3_SPECIALS),
        image_seq_len=GRID * GRID,
        chat_template=CHAT_TEMPLATE,
    )


def _idefics3_model(shape: Shape, tokenizer: PreTrainedTokenizerFast) -> Idefics3ForConditionalGeneration:
    """Four patches a digit, which the connector shuffles into one vision token."""
    vision = {
        "hidden_size": shape.vision_hidden,
        "intermediate_size": 2 * shape.vision_hidden,
        "num_hidden_layers": shape.vision_layers,
        "num_attention_heads": 4,
        "image_size": PICTURE_PIXELS,
        "patch_size": CELL_PIXELS // 2,
    }
    config = Idefics3Config(
        vision_config=vision,
        text_config=_text(shape, tokenizer).to_dict(),
        image_token_id=vocabulary()[IMAGE_PLACEHOLDER],
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,  # type: ignore[call-arg]
        tie_word_embeddings=False,
    )
    return _with_ends(Idefics3ForConditionalGeneration(config), tokenizer)


def _with_ends(model: AnyModel, tokenizer: PreTrainedTokenizerFast) -> AnyModel:
    """The model, knowing where an answer it writes begins and ends."""
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model


def _text(shape: Shape, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
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

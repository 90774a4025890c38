"""Small LLaVA and Idefics3 models, untrained: one vision token for each image patch, a small Llama behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from _digitmath_tokenizer import CHAT_TEMPLATE, IDEFICS3_SPECIALS, MAX_TOKENS, build_tokenizer, vocabulary
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
from ostlight.digitmath.digits import CELL_PIXELS, GRID, IMAGE_PIXELS

CLASS_TOKENS = 1
HALF = [0.5, 0.5, 0.5]
"""Mean and standard deviation that scale pixels to -1 to 1."""

AnyModel = TypeVar("AnyModel", LlavaForConditionalGeneration, Idefics3ForConditionalGeneration)


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Widths, depths, family and the square images it takes, ``pixels`` wide; the head is untied.

    A vision token stands for a patch of ``patch`` x ``patch`` pixels, by default one digit.
    """

    hidden: int
    layers: int
    heads: int
    feed_forward: int
    vision_hidden: int
    vision_layers: int = 1
    family: str = "llava"
    pixels: int = IMAGE_PIXELS
    patch: int = CELL_PIXELS


SIZES = {
    "proxy": ModelSize(hidden=96, layers=2, heads=4, feed_forward=192, vision_hidden=64),
    "medium": ModelSize(hidden=128, layers=2, heads=4, feed_forward=352, vision_hidden=80),
    "target": ModelSize(hidden=160, layers=3, heads=4, feed_forward=448, vision_hidden=96),
    "large": ModelSize(hidden=208, layers=4, heads=4, feed_forward=576, vision_hidden=112),
    "idefics3": ModelSize(hidden=160, layers=3, heads=4, feed_forward=448, vision_hidden=64, family="idefics3"),
}
"""About 0.3, 0.6, 1.2, 2.4 and 1.1 million parameters."""


def build_processor(family: str = "llava") -> LlavaProcessor | Idefics3Processor:
    """Tokenizer and image processor. Images are taken as they are: never resized, cropped or blurred."""
    return _idefics3_processor() if family == "idefics3" else llava_processor(SIZES["proxy"], build_tokenizer())


def build_model(name: str) -> LlavaForConditionalGeneration | Idefics3ForConditionalGeneration:
    """A fresh model of one of ``SIZES`` with random weights (torch's global generator), float32."""
    size = SIZES[name]
    tokenizer = build_tokenizer(IDEFICS3_SPECIALS if size.family == "idefics3" else ())
    return _idefics3_model(size, tokenizer) if size.family == "idefics3" else llava_model(size, tokenizer)


def llava_processor(size: ModelSize, tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """The processor of ``llava_model``."""
    side = {"height": size.pixels, "width": size.pixels}
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
        patch_size=size.patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=CLASS_TOKENS,
        chat_template=CHAT_TEMPLATE,
    )


def llava_model(size: ModelSize, tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """A fresh LLaVA with random weights (torch's global generator), float32: CLIP's vision tower before a Llama."""
    vision = CLIPVisionConfig(
        hidden_size=size.vision_hidden,
        intermediate_size=2 * size.vision_hidden,
        num_hidden_layers=size.vision_layers,
        num_attention_heads=4,
        projection_dim=size.vision_hidden,
        image_size=size.pixels,
        patch_size=size.patch,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=_text(size, tokenizer),
        image_token_index=tokenizer.get_vocab()[IMAGE_PLACEHOLDER],
        image_seq_length=(size.pixels // size.patch) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    return _with_special_tokens(LlavaForConditionalGeneration(config), tokenizer)


def _idefics3_processor() -> Idefics3Processor:
    side = {"longest_edge": IMAGE_PIXELS}
    images = Idefics3ImageProcessorPil(
        do_resize=False, do_image_splitting=False, max_image_size=side, size=side, image_mean=HALF, image_std=HALF
    )
    return Idefics3Processor(
        image_processor=images,
        tokenizer=build_tokenizer(IDEFICS3_SPECIALS),
        image_seq_len=GRID * GRID,
        chat_template=CHAT_TEMPLATE,
    )


def _idefics3_model(size: ModelSize, tokenizer: PreTrainedTokenizerFast) -> Idefics3ForConditionalGeneration:
    """Four patches a digit, which the connector shuffles into one vision token."""
    vision = {
        "hidden_size": size.vision_hidden,
        "intermediate_size": 2 * size.vision_hidden,
        "num_hidden_layers": size.vision_layers,
        "num_attention_heads": 4,
        "image_size": IMAGE_PIXELS,
        "patch_size": CELL_PIXELS // 2,
    }
    config = Idefics3Config(
        vision_config=vision,
        text_config=_text(size, tokenizer).to_dict(),
        image_token_id=vocabulary()[IMAGE_PLACEHOLDER],
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,  # type: ignore[call-arg]
        tie_word_embeddings=False,
    )
    return _with_special_tokens(Idefics3ForConditionalGeneration(config), tokenizer)


def _with_special_tokens(model: AnyModel, tokenizer: PreTrainedTokenizerFast) -> AnyModel:
    """The model, with the special tokens that its generation needs."""
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model


def _text(size: ModelSize, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        intermediate_size=size.feed_forward,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=MAX_TOKENS,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )

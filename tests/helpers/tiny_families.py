"""A folder with a tiny model of each family as users have it: random weights, a small tokenizer, the real processor.

Written in the test, nothing is downloaded. ``FAMILIES`` names what each one takes; ``save`` writes the folder.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from _digitmath_tokenizer import CHAT_TEMPLATE, IDEFICS3_SPECIALS, build_tokenizer
from PIL import Image
from torch import nn
from transformers import PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from ostlight.data.sample import IMAGE_PLACEHOLDER, ImageRef, Sample, Turn

QWEN = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
GEMMA = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
INTERN = {
    "context_image_token": "<IMG_CONTEXT>", "start_image_token": "<img>", "end_image_token": "</img>",
    "video_token": "<video>",
}  # fmt: skip
PIXTRAL = ("[IMG]", "[IMG_BREAK]", "[IMG_END]")
MLLAMA = "<|image|>"
SPECIALS = (*QWEN, *GEMMA.values(), *INTERN.values(), *IDEFICS3_SPECIALS, *PIXTRAL, MLLAMA)

TEXT: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512,
    "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8,
    "patch_size": 4,
}  # fmt: skip
QWEN_VISION: dict[str, Any] = {
    "depth": 2, "hidden_size": 24, "intermediate_size": 40, "num_heads": 2, "out_hidden_size": 32, "patch_size": 2,
    "temporal_patch_size": 2, "spatial_merge_size": 2,
}  # fmt: skip
QWEN3_VISION = {**QWEN_VISION, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
GRID = [[8, 16], [16, 8], [16, 16], [8, 24], [24, 8]]
EIGHT = {"height": 8, "width": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


@dataclass(frozen=True)
class Family:
    """How a family is built.

    Attributes:
        model: from the ids of its special tokens to the model.
        processor: class name; ``None`` for a text-only model.
        images: image processor.
        settings: of the processor.
        image: what the chat template writes for an image.
        tokens: attributes of the tokenizer that the processor asks for.
        video: settings of the video processor.
        needs: what must be installed.
        text_alone: samples without an image are taken too.
    """

    model: Callable[[Callable[[str], int]], nn.Module]
    processor: str | None = None
    images: Callable[[], Any] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    image: str = IMAGE_PLACEHOLDER
    tokens: dict[str, str] = field(default_factory=dict)
    video: dict[str, Any] = field(default_factory=dict)
    needs: str | None = None
    text_alone: bool = True


def _text(kind: str, **more: Any) -> Callable[[Callable[[str], int]], nn.Module]:
    def build(ids: Callable[[str], int]) -> nn.Module:
        config = getattr(transformers, f"{kind}Config")(**TEXT, vocab_size=len(VOCABULARY), **more)
        return getattr(transformers, f"{kind.removesuffix('Text')}ForCausalLM")(config)

    return build


def _vision(
    kind: str, text: str, vision: Any, image: str = IMAGE_PLACEHOLDER, text_more: Any = None, **more: Any
) -> Callable[[Callable[[str], int]], nn.Module]:
    def build(ids: Callable[[str], int]) -> nn.Module:
        texts = {"model_type": text, **TEXT, "vocab_size": len(VOCABULARY), **(text_more or {})}
        config = getattr(transformers, f"{kind}Config")(
            vision_config=dict(vision), text_config=texts, image_token_id=ids(image),
            **{key: ids(value) if key.endswith("_token_id") and key != "pad_token_id" else value
               for key, value in more.items()},
        )  # fmt: skip
        return getattr(transformers, f"{kind}ForConditionalGeneration")(config)

    return build


QWEN_IDS = {"video_token_id": QWEN[1], "vision_start_token_id": QWEN[2], "vision_end_token_id": QWEN[3]}
SIGLIP = {"model_type": "siglip_vision_model", **VISION, "vision_use_head": False}
GEMMA_TEXT = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}


def _qwen_images() -> Any:
    return Qwen2VLImageProcessorPil(
        patch_size=2, temporal_patch_size=2, merge_size=2, size={"shortest_edge": 64, "longest_edge": 160}
    )


def _split_images(made: Callable[..., Any]) -> Callable[[], Any]:
    return lambda: made(do_image_splitting=True, max_image_size={"longest_edge": 16}, size={"longest_edge": 32})


def _mllama(ids: Callable[[str], int]) -> nn.Module:
    vision = {
        "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_global_layers": 1,
        "attention_heads": 2, "image_size": 8, "patch_size": 4, "vision_output_dim": 48,
        "intermediate_layers_indices": [0],
    }  # fmt: skip
    texts = {key: value for key, value in TEXT.items() if key != "head_dim"}
    texts |= {"vocab_size": len(VOCABULARY), "num_hidden_layers": 3, "cross_attention_layers": [1]}
    config = transformers.MllamaConfig(vision_config=vision, text_config=texts, image_token_index=ids(MLLAMA))
    return transformers.MllamaForConditionalGeneration(config)


FAMILIES: dict[str, Family] = {
    "llama": Family(_text("Llama")),
    "qwen3": Family(_text("Qwen3", tie_word_embeddings=True)),
    "gemma3_text": Family(_text("Gemma3Text", **GEMMA_TEXT)),
    "mistral": Family(_text("Mistral", sliding_window=16)),
    "llava": Family(
        _vision("Llava", "llama", {"model_type": "clip_vision_model", **VISION}),
        "LlavaProcessor", lambda: CLIPImageProcessorPil(size=EIGHT, crop_size=EIGHT),
        {"patch_size": 4, "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"},
    ),
    "llava_next": Family(
        _vision("LlavaNext", "mistral", {"model_type": "clip_vision_model", **VISION}, image_grid_pinpoints=GRID),
        "LlavaNextProcessor",
        lambda: LlavaNextImageProcessorPil(size={"shortest_edge": 8}, crop_size=EIGHT, image_grid_pinpoints=GRID),
        {"patch_size": 4, "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"},
    ),
    "llava_onevision": Family(
        _vision("LlavaOnevision", "qwen2", SIGLIP, image_grid_pinpoints=GRID, video_token_id="<video>"),
        "LlavaOnevisionProcessor", lambda: LlavaOnevisionImageProcessorPil(size=EIGHT, image_grid_pinpoints=GRID),
        {"num_image_tokens": 4, "vision_feature_select_strategy": "full"},
        video={"video_processor_type": "LlavaOnevisionVideoProcessor", "size": EIGHT},
    ),
    "idefics3": Family(
        _vision("Idefics3", "llama", VISION | {"image_size": 16}, scale_factor=2, pad_token_id=0),
        "Idefics3Processor", _split_images(Idefics3ImageProcessorPil), {"image_seq_len": 4},
    ),
    "smolvlm": Family(
        _vision("SmolVLM", "llama", VISION | {"image_size": 16}, scale_factor=2, pad_token_id=0),
        "SmolVLMProcessor", _split_images(SmolVLMImageProcessorPil), {"image_seq_len": 4},
        video={"video_processor_type": "SmolVLMVideoProcessor", "fps": 1, "num_frames": 64},
    ),
    "qwen2_5_vl": Family(
        _vision(
            "Qwen2_5_VL", "qwen2_5_vl_text", {**QWEN_VISION, "window_size": 8, "fullatt_block_indexes": [1]}, QWEN[0],
            {"rope_parameters": ROPE}, **QWEN_IDS,
        ),
        "Qwen2_5_VLProcessor", _qwen_images, image=f"{QWEN[2]}{QWEN[0]}{QWEN[3]}",
        video={"video_processor_type": "Qwen2VLVideoProcessor", "patch_size": 2, "merge_size": 2},
    ),
    "qwen3_vl": Family(
        _vision("Qwen3VL", "qwen3_vl_text", QWEN3_VISION, QWEN[0], {"rope_parameters": ROPE}, **QWEN_IDS),
        "Qwen3VLProcessor", _qwen_images, image=f"{QWEN[2]}{QWEN[0]}{QWEN[3]}",
        video={"video_processor_type": "Qwen3VLVideoProcessor", "patch_size": 2, "merge_size": 2},
    ),
    "qwen3_vl_moe": Family(
        _vision(
            "Qwen3VLMoe", "qwen3_vl_moe_text", QWEN3_VISION, QWEN[0], {"rope_parameters": ROPE} | EXPERTS, **QWEN_IDS
        ),
        "Qwen3VLProcessor", _qwen_images, image=f"{QWEN[2]}{QWEN[0]}{QWEN[3]}",
        video={"video_processor_type": "Qwen3VLVideoProcessor", "patch_size": 2, "merge_size": 2},
    ),
    "internvl": Family(
        _vision(
            "InternVL", "qwen2",
            {
                **VISION, "image_size": [8, 8], "patch_size": [2, 2], "layer_scale_init_value": 0.7,
                "use_absolute_position_embeddings": True, "use_qk_norm": True,
            },
            INTERN["context_image_token"], image_seq_length=4,
        ),
        "InternVLProcessor", lambda: GotOcr2ImageProcessorPil(size=EIGHT, min_patches=1, max_patches=3),
        {"image_seq_length": 4}, image=INTERN["context_image_token"], tokens=INTERN,
        video={"video_processor_type": "InternVLVideoProcessor", "size": EIGHT},
    ),
    "mllama": Family(_mllama, "MllamaProcessor", lambda: MllamaImageProcessorPil(size=EIGHT), image=MLLAMA),
    "paligemma": Family(
        _vision("PaliGemma", "gemma", SIGLIP, projection_dim=32, hidden_size=32),
        "PaliGemmaProcessor", lambda: SiglipImageProcessorPil(size=EIGHT, image_seq_length=4), text_alone=False,
    ),
    "gemma3": Family(
        _vision(
            "Gemma3", "gemma3_text", SIGLIP | {"image_size": 16}, GEMMA["image_token"], GEMMA_TEXT,
            mm_tokens_per_image=4, boi_token_id=GEMMA["boi_token"], eoi_token_id=GEMMA["eoi_token"],
        ),
        "Gemma3Processor", lambda: Gemma3ImageProcessorPil(size={"height": 16, "width": 16}), {"image_seq_length": 4},
        image=GEMMA["boi_token"], tokens=GEMMA,
    ),
    "mistral3": Family(
        _vision(
            "Mistral3", "mistral", {"model_type": "pixtral", **VISION, "image_size": 32, "head_dim": 12}, PIXTRAL[0],
            spatial_merge_size=2,
        ),
        "PixtralProcessor",
        lambda: PixtralImageProcessorPil(patch_size={"height": 4, "width": 4}, size={"longest_edge": 24}),
        {"patch_size": 4, "spatial_merge_size": 2}, image=PIXTRAL[0], needs="torchvision",
    ),
}  # fmt: skip
"""Name to family; ``llava`` and ``internvl`` and the Qwen models read images one way, the others each in their own."""


def tokenizer_of(family: Family) -> PreTrainedTokenizerFast:
    tokenizer = build_tokenizer(SPECIALS)
    if family.tokens:
        tokenizer._set_model_specific_special_tokens(family.tokens)
        tokenizer.init_kwargs |= family.tokens
    return tokenizer


VOCABULARY = tokenizer_of(Family(_text("Llama"))).get_vocab()


def save(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Writes the folder of a model that can be named as a proxy or target; returns it."""
    family = FAMILIES[name]
    tokenizer = tokenizer_of(family)
    torch.manual_seed(0)
    model: Any = family.model(tokenizer.convert_tokens_to_ids).to(dtype)
    with torch.no_grad():
        # Norms at one, gates, biases and class tokens at zero would hide a wrong treatment of theirs.
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.generation_config.suppress_tokens = tokenizer.all_special_ids  # an untrained model would write these alone
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE.replace(IMAGE_PLACEHOLDER, family.image))
    if family.processor is not None:
        assert family.images is not None, "a processor has images"
        settings = {"processor_class": family.processor, "image_processor": family.images().to_dict()}
        settings |= family.settings
        if family.video:
            settings["video_processor"] = family.video
        (folder / "processor_config.json").write_text(json.dumps(settings))
    return folder


def picture(seed: int, width: int, height: int) -> ImageRef:
    noise = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    file = io.BytesIO()
    Image.fromarray(noise.numpy()).save(file, "PNG")
    return ImageRef(data=file.getvalue())


SQUARE, WIDE, TALL = (picture(seed, *size) for seed, size in enumerate([(16, 16), (40, 16), (12, 36)]))


def samples(name: str) -> list[Sample]:
    """Records of several lengths with no image, one, and two, of several sizes; without images for a text model."""
    family = FAMILIES[name]
    made = [
        sample("square", [("<image> what is the digit", "one")], SQUARE),
        sample("none", [("what is in text", "two or three digits and a row")]),
        sample("two", [("<image> <image> compare the order", "the first is smallest")], SQUARE, WIDE),
        sample("tall", [("<image> look with care", "a")], TALL),
        sample("later", [("<image> what", "one odd digit"), ("<image> and what", "even")], SQUARE, TALL),
        sample("wide", [("look <image> read the row", "wrong")], WIDE),
    ]
    if family.processor is None:
        made = [without_images(one) for one in made]
    return [one for one in made if family.text_alone or one.images]


def sample(name: str, turns: list[tuple[str, str]], *images: ImageRef) -> Sample:
    spoken = [Turn(role, text, role == "assistant") for pair in turns for role, text in zip(ROLES, pair, strict=True)]
    return Sample(name, tuple(spoken), images)


ROLES: Any = ("user", "assistant")


def without_images(one: Sample) -> Sample:
    turns = tuple(Turn(t.role, t.text.replace(IMAGE_PLACEHOLDER, "").strip(), t.trained) for t in one.turns)
    return Sample(one.id, turns)

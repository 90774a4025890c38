"""Tiny models of the real families as users have them: weights, processor settings, tokenizer and chat template."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from _digitmath_tokenizer import CHAT_TEMPLATE, IDEFICS3_SPECIALS, build_tokenizer
from transformers import PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from ostlight.data.sample import IMAGE_PLACEHOLDER

sys.path.insert(0, str(Path(__file__).parents[1] / "influence"))

import families

QWEN = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
INTERN = {
    "context_image_token": "<IMG_CONTEXT>", "start_image_token": "<img>", "end_image_token": "</img>",
    "video_token": "<video>",
}  # fmt: skip
IMAGE_TOKEN = {"qwen2_5_vl": QWEN[0], "qwen3_vl": QWEN[0], "internvl": INTERN["context_image_token"]}
"""What stands for one token of an image, where it is not ``<image>``."""

TOKENS = 4
"""Of every image, in all families."""

PROCESSORS = {
    "llava": "LlavaProcessor", "internvl": "InternVLProcessor", "idefics3": "Idefics3Processor",
    "smolvlm": "SmolVLMProcessor", "qwen2_5_vl": "Qwen2_5_VLProcessor", "qwen3_vl": "Qwen3VLProcessor",
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "llava": {"patch_size": 4, "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"},
    "internvl": {"image_seq_length": TOKENS},
    "idefics3": {"image_seq_len": TOKENS},
    "smolvlm": {"image_seq_len": TOKENS},
}
VIDEOS: dict[str, dict[str, Any]] = {
    "internvl": {"video_processor_type": "InternVLVideoProcessor", "size": {"height": 8, "width": 8}},
    "smolvlm": {"video_processor_type": "SmolVLMVideoProcessor", "fps": 1, "num_frames": 64},
    "qwen2_5_vl": {"video_processor_type": "Qwen2VLVideoProcessor", "patch_size": 2, "merge_size": 2},
    "qwen3_vl": {"video_processor_type": "Qwen3VLVideoProcessor", "patch_size": 2, "merge_size": 2},
}


def save(family: str, folder: Path, legacy: bool = False) -> Path:
    """The folder, a model of the family in it, ready to be named as a proxy.

    Args:
        family: one of ``families.FAMILIES``.
        folder: written to.
        legacy: settings in the files older models have: no ``processor_config.json``, the template in JSON.
    """
    tokenizer = _tokenizer(family)
    _model(family, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    template = CHAT_TEMPLATE.replace(IMAGE_PLACEHOLDER, _image(family))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    if legacy:
        write(folder / "chat_template.json", {"chat_template": template})
    else:
        (folder / "chat_template.jinja").write_text(template)
    if family == "llama":
        return folder
    images, name = _images(family).to_dict(), {"processor_class": PROCESSORS[family]}
    if legacy:
        write(folder / "preprocessor_config.json", images | name)
        write(folder / "video_preprocessor_config.json", VIDEOS[family] | name)
    else:
        videos = {"video_processor": VIDEOS[family]} if family in VIDEOS else {}
        write(folder / "processor_config.json", {"image_processor": images} | videos | SETTINGS.get(family, {}) | name)
    return folder


def write(file: Path, settings: dict[str, Any]) -> None:
    file.write_text(json.dumps(settings))


def _image(family: str) -> str:
    image = IMAGE_TOKEN.get(family, IMAGE_PLACEHOLDER)
    return f"{QWEN[2]}{image}{QWEN[3]}" if family.startswith("qwen") else image


def _tokenizer(family: str) -> PreTrainedTokenizerFast:
    tokenizer = build_tokenizer([*QWEN, *INTERN.values(), *IDEFICS3_SPECIALS])
    if family == "internvl":
        tokenizer._set_model_specific_special_tokens(INTERN)
        tokenizer.init_kwargs |= INTERN
    return tokenizer


def _model(family: str, tokenizer: PreTrainedTokenizerFast) -> Any:
    torch.manual_seed(0)
    model: Any = families.FAMILIES[family]()
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    for name, token in zip(names, (IMAGE_TOKEN.get(family, IMAGE_PLACEHOLDER), *QWEN[1:]), strict=True):
        if hasattr(model.config, name):
            setattr(model.config, name, tokenizer.convert_tokens_to_ids(token))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def _images(family: str) -> Any:
    if family == "llava":
        side = {"height": 8, "width": 8}
        return CLIPImageProcessorPil(size=side, crop_size=side)
    if family == "internvl":
        return GotOcr2ImageProcessorPil(size={"height": 8, "width": 8}, min_patches=1, max_patches=1)
    if family in ("idefics3", "smolvlm"):
        made = Idefics3ImageProcessorPil if family == "idefics3" else SmolVLMImageProcessorPil
        side = {"longest_edge": 16}
        return made(do_image_splitting=False, max_image_size=side, size=side)
    area = 8 * 8
    return Qwen2VLImageProcessorPil(
        patch_size=2, temporal_patch_size=2, merge_size=2, size={"shortest_edge": area, "longest_edge": area}
    )

"""Pools of photograph-sized JPEGs, and models that read them with a family's own processor, made here."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from _digitmath_tokenizer import CHAT_TEMPLATE, build_tokenizer
from PIL import Image
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

QWEN = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
INTERN = {
    "context_image_token": "<IMG_CONTEXT>", "start_image_token": "<img>", "end_image_token": "</img>",
    "video_token": "<video>",
}  # fmt: skip
IDEFICS = ("<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<image>")


@dataclass(frozen=True)
class Reader:
    """A family's processor at the settings its models are published with.

    Attributes:
        settings: of ``processor_config.json``.
        image: what the chat template writes for an image.
        specials: tokens beside the tokenizer's own.
        named: attributes of the tokenizer that the processor asks for.
    """

    settings: dict[str, Any]
    image: str
    specials: tuple[str, ...]
    named: dict[str, str] | None = None


READERS = {
    "qwen2_5_vl": Reader(
        {
            "processor_class": "Qwen2_5_VLProcessor",
            "image_processor": Qwen2VLImageProcessorPil().to_dict(),
            "video_processor": {"video_processor_type": "Qwen2VLVideoProcessor"},
        },
        f"{QWEN[2]}{QWEN[0]}{QWEN[3]}",
        QWEN,
    ),
    "internvl3": Reader(
        {
            "processor_class": "InternVLProcessor",
            "image_processor": GotOcr2ImageProcessorPil(
                size={"height": 448, "width": 448}, crop_to_patches=True, min_patches=1, max_patches=12
            ).to_dict(),
            "image_seq_length": 256,
            "video_processor": {"video_processor_type": "InternVLVideoProcessor"},
        },
        INTERN["context_image_token"],
        tuple(INTERN.values()),
        INTERN,
    ),
    "smolvlm": Reader(
        {
            "processor_class": "SmolVLMProcessor",
            "image_processor": SmolVLMImageProcessorPil().to_dict(),
            "image_seq_len": 81,
            "video_processor": {"video_processor_type": "SmolVLMVideoProcessor", "fps": 1, "num_frames": 64},
        },
        "<image>",
        (*IDEFICS, *(f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7))),
    ),
}


def write_processor(name: str, folder: Path) -> Path:
    """Writes the processor of a family; returns the folder."""
    reader = READERS[name]
    tokenizer = build_tokenizer(reader.specials)
    if reader.named:
        tokenizer._set_model_specific_special_tokens(reader.named)
        tokenizer.init_kwargs |= reader.named
    tokenizer.model_max_length = 100_000
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE.replace("<image>", reader.image))
    (folder / "processor_config.json").write_text(json.dumps(reader.settings))
    return folder


def write_qwen(folder: Path, width: int, layers: int, tower: int = 64, depth: int = 2) -> Path:
    """Writes a Qwen2.5-VL with random weights and the real processor; returns the folder."""
    write_processor("qwen2_5_vl", folder)
    tokenizer = build_tokenizer(QWEN)
    ids = dict(zip(QWEN, tokenizer.convert_tokens_to_ids(list(QWEN)), strict=True))
    text = {
        "hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": layers, "num_attention_heads": 4,
        "num_key_value_heads": 4, "vocab_size": len(tokenizer), "max_position_embeddings": 8192,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e4, "mrope_section": [width // 32, width // 32, width // 16],
        },
    }  # fmt: skip
    vision = {
        "depth": depth, "hidden_size": tower, "intermediate_size": 2 * tower, "num_heads": tower // 32,
        "out_hidden_size": width, "fullatt_block_indexes": [1],
    }  # fmt: skip
    config = transformers.Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=ids[QWEN[0]], video_token_id=ids[QWEN[1]],
        vision_start_token_id=ids[QWEN[2]], vision_end_token_id=ids[QWEN[3]],
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    return folder


def photograph(side: int, seed: int) -> bytes:
    """A JPEG of smooth areas and some noise: about as many bytes as a photograph of this size."""
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, (side // 16, side // 16, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC), dtype=np.int16)
    noisy = np.clip(smooth + generator.integers(-8, 9, smooth.shape), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noisy).save(file, "JPEG", quality=90)
    return file.getvalue()


def write_pool(folder: Path, side: int, records: int, photographs: int = 16) -> Path:
    """A JSON Lines file of questions about photographs; each of them lies there once, and serves several records."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for k in range(min(records, photographs)):
        (folder / "images" / f"{side}-{k}.jpg").write_bytes(photograph(side, k))
    file = folder / f"{side}.jsonl"
    with file.open("w") as lines:
        for n in range(records):
            turns = [
                {"from": "human", "value": f"<image>\nwhat is in row {n} of the picture"},
                {"from": "gpt", "value": "the first is smallest and the last is largest"},
            ]
            record = {"id": str(n), "image": f"images/{side}-{n % photographs}.jpg", "conversations": turns}
            lines.write(json.dumps(record) + "\n")
    return file

"""Pretrained models as folders that transformers loads: a text model, a vision-language model, and shallower copies."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from _registry_weights import EFFICIENTNET_LITE0, SMOLLM2, get
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    EfficientNetConfig,
    FastVlmConfig,
    FastVlmForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

IMAGE = "<image>"
PIXELS, PATCH = 128, 32
"""Images are enlarged to 128 x 128 pixels; the tower makes one token of 32 x 32, so 16 of an image."""

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message.role + '\n' -}}"
    "{%- if message.content is string -%}{{- message.content -}}{%- else -%}"
    "{%- for part in message.content -%}"
    "{%- if part.type == 'image' -%}<image>{%- else -%}{{- part.text -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{{- '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
"""SmolLM2's, without its system prompt of 20 tokens, with images."""


def smollm2(packages: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """SmolLM2-135M-Instruct in float32, with its tokenizer."""
    file = get(SMOLLM2, packages)
    loaded = LlamaForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    settings = {k: v for k, v in loaded.config.to_dict().items() if k not in ("quantization_config", "_name_or_path")}
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(loaded.state_dict())  # `loaded` itself refuses to be saved
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    _with_special_tokens(model, tokenizer)
    return model.eval(), tokenizer


def keep_blocks(model: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """A copy with some of the decoder's blocks, by number and in order; all else as it is."""
    shallow = copy.deepcopy(model)
    decoder: Any = shallow.get_decoder()
    decoder.layers = nn.ModuleList(decoder.layers[k] for k in kept)
    for number, layer in enumerate(decoder.layers):
        layer.self_attn.layer_idx = number
    shallow.config.get_text_config().num_hidden_layers = len(kept)
    decoder.config.num_hidden_layers = len(kept)
    return shallow


def evenly(blocks: int, kept: int) -> list[int]:
    """``kept`` numbers below ``blocks``, the first and the last among them, as far apart as they can be."""
    return [round(k * (blocks - 1) / (kept - 1)) for k in range(kept)]


def efficientnet_config() -> EfficientNetConfig:
    """EfficientNet-Lite0: EfficientNet-B0 with ReLU6 and without squeeze-and-excitation."""
    return EfficientNetConfig(
        image_size=PIXELS,
        width_coefficient=1.0,
        depth_coefficient=1.0,
        hidden_act="relu6",
        hidden_dim=1280,
        dropout_rate=0.0,
        drop_connect_rate=0.0,
    )


def efficientnet_weights(tower: nn.Module, packages: Path) -> dict[str, Tensor]:
    """Lite0's weights under the names of transformers' ``EfficientNetModel``.

    Its squeeze-and-excitation layers, which Lite0 has not, get weights under which their gate is 1: sigmoid(40) is 1 in
    float32.
    """
    given = torch.load(get(EFFICIENTNET_LITE0, packages), map_location="cpu", weights_only=True)
    names = {
        "_conv_stem": "embeddings.convolution",
        "_bn0": "embeddings.batchnorm",
        "_conv_head": "encoder.top_conv",
        "_bn1": "encoder.top_bn",
    }
    in_block = {
        "_expand_conv": "expansion.expand_conv",
        "_bn0": "expansion.expand_bn",
        "_depthwise_conv": "depthwise_conv.depthwise_conv",
        "_bn1": "depthwise_conv.depthwise_norm",
        "_project_conv": "projection.project_conv",
        "_bn2": "projection.project_bn",
    }
    state = {}
    for name, tensor in given.items():
        if block := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name):
            state[f"encoder.blocks.{block[1]}.{in_block[block[2]]}.{block[3]}"] = tensor
        elif not name.startswith("_fc."):
            module, kind = name.split(".")
            state[f"{names[module]}.{kind}"] = tensor
    for name, tensor in tower.state_dict().items():
        if ".squeeze_excite." in name:
            state[name] = torch.full_like(tensor, 40.0 if name.endswith("expand.bias") else 0.0)
    return state


def vision_language(
    text_model: Path, packages: Path, seed: int = 0
) -> tuple[FastVlmForConditionalGeneration, LlavaProcessor]:
    """EfficientNet-Lite0, a projector with random weights and a Llama: FastVLM's architecture, which is LLaVA's with a
    convolutional tower.

    Args:
        text_model: a folder of SmolLM2, or of a copy with fewer blocks.
        packages: where weights are downloaded to.
    """
    text, tokenizer = LlamaForCausalLM.from_pretrained(text_model), AutoTokenizer.from_pretrained(text_model)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    tokenizer.image_token = IMAGE
    text.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    torch.manual_seed(seed)
    config = FastVlmConfig(
        vision_config=efficientnet_config(),
        text_config=text.config,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(PIXELS // PATCH) ** 2,
        tie_word_embeddings=True,
    )
    config.vision_config.hidden_size = 1280
    model = FastVlmForConditionalGeneration(config)
    model.model.language_model.load_state_dict(text.model.state_dict())
    tower = model.model.vision_tower
    missing, unexpected = tower.load_state_dict(efficientnet_weights(tower, packages), strict=False)
    if unexpected or any(not name.endswith("num_batches_tracked") for name in missing):
        raise SystemExit(f"the tower's weights do not fit: {[*missing, *unexpected][:3]}")
    model.tie_weights()
    _with_special_tokens(model, tokenizer)
    side = {"height": PIXELS, "width": PIXELS}
    images = CLIPImageProcessorPil(
        size=side, do_center_crop=False, do_convert_rgb=True, image_mean=[127 / 255] * 3, image_std=[128 / 255] * 3
    )
    processor = LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
    )
    return model.eval(), processor


def _with_special_tokens(model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(model.generation_config, name, getattr(tokenizer, name))
        setattr(model.config, name, getattr(tokenizer, name))

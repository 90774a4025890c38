"""Tiny random models of the real families, saved and loaded through the real classes, and batches for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

IMAGE_TOKEN = 90
VOCAB = 96
TEXT: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
IMAGES_OF_SAMPLE = (2, 0, 1)
"""Several pictures in one sample and none in another: where a row map goes wrong if it can."""


def llama(tied: bool = False) -> nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT, tie_word_embeddings=tied))


def llava() -> nn.Module:
    vision = transformers.CLIPVisionConfig(
        hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=transformers.LlamaConfig(**TEXT), image_token_id=IMAGE_TOKEN
    )
    return transformers.LlavaForConditionalGeneration(config)


def internvl() -> nn.Module:
    vision = transformers.InternVLVisionConfig(
        hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2, image_size=[8, 8],
        patch_size=[2, 2], layer_scale_init_value=0.7, use_absolute_position_embeddings=True, use_qk_norm=True,
    )  # fmt: skip
    config = transformers.InternVLConfig(
        vision_config=vision,
        text_config=transformers.Qwen2Config(**TEXT),
        image_token_id=IMAGE_TOKEN,
        image_seq_length=4,
    )
    return transformers.InternVLForConditionalGeneration(config)


def idefics3() -> nn.Module:
    config = transformers.Idefics3Config(
        vision_config={
            "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 16, "patch_size": 4,
        },
        text_config={"model_type": "llama", **TEXT},
        image_token_id=IMAGE_TOKEN, scale_factor=2, pad_token_id=0,
    )  # fmt: skip
    return transformers.Idefics3ForConditionalGeneration(config)


def smolvlm() -> nn.Module:
    config = transformers.SmolVLMConfig(
        vision_config={
            "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 16, "patch_size": 4,
        },
        text_config={"model_type": "llama", **TEXT},
        image_token_id=IMAGE_TOKEN, scale_factor=2, pad_token_id=0,
    )  # fmt: skip
    return transformers.SmolVLMForConditionalGeneration(config)


ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}


def qwen2_5_vl() -> nn.Module:
    vision = {
        "depth": 2, "hidden_size": 24, "intermediate_size": 40, "num_heads": 2, "out_hidden_size": 32, "patch_size": 2,
        "temporal_patch_size": 2, "spatial_merge_size": 2, "window_size": 8, "fullatt_block_indexes": [1],
    }  # fmt: skip
    config = transformers.Qwen2_5_VLConfig(
        vision_config=vision, text_config={**TEXT, "rope_parameters": ROPE},
        image_token_id=IMAGE_TOKEN, video_token_id=91, vision_start_token_id=92, vision_end_token_id=93,
    )  # fmt: skip
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def qwen3_vl() -> nn.Module:
    vision = {
        "depth": 2, "hidden_size": 24, "intermediate_size": 40, "num_heads": 2, "out_hidden_size": 32, "patch_size": 2,
        "temporal_patch_size": 2, "spatial_merge_size": 2, "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    }  # fmt: skip
    config = transformers.Qwen3VLConfig(
        vision_config=vision, text_config={**TEXT, "rope_parameters": ROPE},
        image_token_id=IMAGE_TOKEN, video_token_id=91, vision_start_token_id=92, vision_end_token_id=93,
    )  # fmt: skip
    return transformers.Qwen3VLForConditionalGeneration(config)


PIXTRAL = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 12,
    "image_size": 16, "patch_size": 4,
}  # fmt: skip


def mistral3() -> nn.Module:
    config = transformers.Mistral3Config(
        vision_config={"model_type": "pixtral", **PIXTRAL}, text_config={"model_type": "mistral", **TEXT},
        image_token_id=IMAGE_TOKEN, spatial_merge_size=2,
    )  # fmt: skip
    return transformers.Mistral3ForConditionalGeneration(config)


def pixtral() -> nn.Module:
    config = transformers.LlavaConfig(
        vision_config={"model_type": "pixtral", **PIXTRAL}, text_config={"model_type": "mistral", **TEXT},
        image_token_id=IMAGE_TOKEN, vision_feature_layer=-1, vision_feature_select_strategy="full",
    )  # fmt: skip
    return transformers.LlavaForConditionalGeneration(config)


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "llama": llama, "llava": llava, "internvl": internvl, "idefics3": idefics3, "smolvlm": smolvlm,
    "qwen2_5_vl": qwen2_5_vl, "qwen3_vl": qwen3_vl,
}  # fmt: skip
WITHOUT_PROCESSOR: dict[str, Callable[[], nn.Module]] = {"mistral3": mistral3, "pixtral": pixtral}
"""Families whose processor needs torchvision: made of tensors here, tested without it."""


def load(family: str, folder: Path, seed: int = 0, **options: Any) -> nn.Module:
    """A float64 model in eval mode that went through ``save_pretrained`` and ``from_pretrained``."""
    torch.manual_seed(seed)
    built = (FAMILIES | WITHOUT_PROCESSOR)[family](**options)
    with torch.no_grad():
        # Norms at one, biases and class tokens at zero would hide a wrong treatment of theirs.
        for parameter in built.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    built.save_pretrained(folder)
    return type(built).from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()


def batch(family: str, seed: int = 1) -> dict[str, Tensor]:
    """Three samples with 2, 0 and 1 pictures, of unequal lengths, padded on the right; ``labels`` beside the inputs."""
    generator = torch.Generator().manual_seed(seed)
    vision = _pictures(family, generator)
    tokens_of_picture: list[int] = vision.pop("tokens_of_picture", torch.zeros(0)).long().tolist()  # type: ignore[arg-type]
    texts, labels, picture = [], [], 0
    for sample, count in enumerate(IMAGES_OF_SAMPLE):
        ids: list[int] = [1]
        for _ in range(count if tokens_of_picture else 0):
            start, end = ([92], [93]) if family.startswith("qwen") else ([], [])
            ids += start + [IMAGE_TOKEN] * tokens_of_picture[picture] + end
            picture += 1
        question = torch.randint(3, 80, (3 + sample,), generator=generator).tolist()
        answer = torch.randint(3, 80, (2 + 2 * sample,), generator=generator).tolist()
        texts.append(ids + question + answer)
        labels.append([-100] * (len(ids) + len(question)) + answer)
    width = max(len(text) for text in texts)
    out = {
        "input_ids": torch.tensor([t + [0] * (width - len(t)) for t in texts]),
        "attention_mask": torch.tensor([[1] * len(t) + [0] * (width - len(t)) for t in texts]),
        "labels": torch.tensor([t + [-100] * (width - len(t)) for t in labels]),
        **vision,
    }
    if family.startswith("qwen"):
        out["mm_token_type_ids"] = (out["input_ids"] == IMAGE_TOKEN).long()
    return out


def alone(family: str, whole: dict[str, Tensor], sample: int) -> dict[str, Tensor]:
    """One sample of a batch as its own batch, without the padding that the others forced on it."""
    length = int(whole["attention_mask"][sample].sum())
    text = ("input_ids", "attention_mask", "labels", "mm_token_type_ids")
    out = {name: whole[name][sample : sample + 1, :length] for name in text if name in whole}
    first, count = sum(IMAGES_OF_SAMPLE[:sample]), IMAGES_OF_SAMPLE[sample]
    if "pixel_values" not in whole or not count:
        return out
    pixels = whole["pixel_values"]
    if family in ("idefics3", "smolvlm"):
        out["pixel_values"] = pixels[sample : sample + 1, :count]
    elif family.startswith("qwen"):
        grids = whole["image_grid_thw"]
        ends = grids.prod(1).cumsum(0).tolist()
        out["image_grid_thw"] = grids[first : first + count]
        out["pixel_values"] = pixels[([0, *ends])[first] : ends[first + count - 1]]
    elif family in WITHOUT_PROCESSOR:
        sizes = whole["image_sizes"][first : first + count]
        height, width = sizes.amax(0).tolist()
        out["image_sizes"] = sizes
        out["pixel_values"] = pixels[first : first + count, :, :height, :width]
    else:
        out["pixel_values"] = pixels[first : first + count]
    return out


def _pictures(family: str, generator: torch.Generator) -> dict[str, Tensor]:
    def pixels(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    count = sum(IMAGES_OF_SAMPLE)
    if family == "llava":
        return {"pixel_values": pixels(count, 3, 8, 8), "tokens_of_picture": torch.full((count,), 4)}
    if family == "internvl":
        return {"pixel_values": pixels(count, 3, 8, 8), "tokens_of_picture": torch.full((count,), 4)}
    if family in ("idefics3", "smolvlm"):
        values = torch.zeros(len(IMAGES_OF_SAMPLE), max(IMAGES_OF_SAMPLE), 3, 16, 16, dtype=torch.float64)
        for sample, pictures in enumerate(IMAGES_OF_SAMPLE):
            values[sample, :pictures] = pixels(pictures, 3, 16, 16)
        return {"pixel_values": values, "tokens_of_picture": torch.full((count,), 4)}
    if family in WITHOUT_PROCESSOR:
        sizes = torch.tensor([[8, 8], [8, 16], [16, 8]])
        values = torch.zeros(count, 3, 16, 16, dtype=torch.float64)
        for image, (height, width) in enumerate(sizes.tolist()):
            values[image, :, :height, :width] = pixels(3, height, width)
        tokens = (sizes // (8 if family == "mistral3" else 4)).prod(1)
        return {"pixel_values": values, "image_sizes": sizes, "tokens_of_picture": tokens}
    if family.startswith("qwen"):
        grids = torch.tensor([[1, 4, 4], [1, 6, 4], [1, 4, 8]])
        patches = int(grids.prod(1).sum())
        return {
            "pixel_values": pixels(patches, 3 * 2 * 2 * 2),
            "image_grid_thw": grids,
            "tokens_of_picture": grids.prod(1) // 4,
        }
    return {}


class DoublePrecision(TorchFunctionMode):
    """Keeps fp64 where the families' code casts to fp32 (norms, softmax), or no oracle could agree beyond 1e-7."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("dtype") == torch.float32 and args and isinstance(args[0], Tensor):
            kwargs["dtype"] = args[0].dtype if args[0].dtype == torch.float64 else torch.float32
        doubles = bool(args) and isinstance(args[0], Tensor) and args[0].dtype == torch.float64
        if doubles and (func is Tensor.float or (func is Tensor.to and torch.float32 in args[1:])):
            return args[0]
        return func(*args, **kwargs)

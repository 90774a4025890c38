"""Mllama's layers that look at images: what a sample gets from them does not depend on what else is in the batch.

transformers lets tokens before a sample's first image, whose row of the mask is empty, look at all columns: also at
images that only pad the batch. All tokens of a sample without images look at such padding. Alone, a sample has no such
columns, and without images the layer is not run at all; the hooks here make a batch do the same.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def keep_samples_apart(model: nn.Module) -> None:
    """Adds the hooks to a model's cross-attention layers; a model without any is left as it is."""
    layers = [module for module in model.modules() if type(module).__name__ == "MllamaCrossAttentionDecoderLayer"]
    if layers:
        vision: Any = next(m for m in model.modules() if type(m).__name__ == "MllamaVisionModel")
        columns = vision.config.max_num_tiles * vision.num_patches
        for layer in layers:
            layer.register_forward_pre_hook(partial(_hide_padding, columns), with_kwargs=True)
            layer.register_forward_hook(_skip_without_images, with_kwargs=True)


def _hide_padding(columns: int, _: nn.Module, args: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    """Masks the images that the sample does not have, in rows that the mask leaves open.

    Args:
        columns: of an image in the mask.
    """
    mask: Tensor | None = given["cross_attention_mask"]
    if mask is None:
        return None
    seen = (mask == 0) & given["full_text_row_masked_out_mask"].bool()
    of_images = seen.any(2)[:, 0].unflatten(1, (-1, columns)).any(2)
    own = of_images.repeat_interleave(columns, 1)[:, None, None]
    hidden = ~own & own.any(3, keepdim=True)
    return args, given | {"cross_attention_mask": mask.masked_fill(hidden, torch.finfo(mask.dtype).min)}


def _skip_without_images(_: nn.Module, args: Any, given: dict[str, Any], returned: Tensor) -> Tensor:
    """The layer's input where a sample's tokens look at no image."""
    rows: Tensor | None = given["full_text_row_masked_out_mask"]
    if rows is None:
        return returned
    entered: Tensor = args[0] if args else given["hidden_states"]
    return torch.where(rows.bool().any(2), returned, entered)

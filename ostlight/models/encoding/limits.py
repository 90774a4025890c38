"""What a model has a place for: tokens of its vocabulary, positions, and images of its size."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import nn

POSITION_TABLE = re.compile(r"(^|\.)(wpe|pos_emb\w*|positions_embed|position\w*_embeddings?|embed_positions?)$")
"""Names of tables with a row for every position (GPT-2, OPT, BioGPT, CTRL, GPT-J's sines)."""
OTHER_TOWER = re.compile(
    r"(^|\.)(vision\w*|visual|image\w*|vit\w*|audio\w*|encoder|\w*_tower|perceiver\w*|qformer)(\.|$)"
)
"""Parts of a multimodal model that see no text."""

ONE_IMAGE_SIZE = frozenset({"clip_vision_model", "siglip_vision_model"})
"""Vision towers with a table of positions for one size of images."""


@dataclass(frozen=True)
class Limits:
    """What a model can take.

    Attributes:
        vocabulary: rows of its table of embeddings.
        positions: rows of its table of positions that text can use; ``None`` where it computes positions and takes any
            length.
        image: side in pixels of the images that its vision tower takes; ``None`` where it takes several sizes.
    """

    vocabulary: int
    positions: int | None = None
    image: int | None = None


def limits_of(model: Any) -> Limits:
    """The limits of a causal language model, with or without other towers, by the sizes of its tables."""
    tables = [
        table.num_embeddings - _skipped(table)
        for name, table in model.named_modules()
        if isinstance(table, nn.Embedding) and POSITION_TABLE.search(name) and not OTHER_TOWER.search(name)
    ]
    tables += [
        len(buffer)
        for name, buffer in model.named_buffers()
        if POSITION_TABLE.search(name) and not OTHER_TOWER.search(name) and buffer.ndim == 2
    ]
    return Limits(model.get_input_embeddings().weight.shape[0], min(tables, default=None), _image_side(model))


def _image_side(model: Any) -> int | None:
    vision = getattr(getattr(model, "config", None), "vision_config", None)
    side = getattr(vision, "image_size", None)
    return side if isinstance(side, int) and getattr(vision, "model_type", None) in ONE_IMAGE_SIZE else None


def _skipped(table: nn.Embedding) -> int:
    """Rows at the beginning that no position uses: OPT's offset, and up to the padding's row in XLM-R and its heirs."""
    offset = getattr(table, "offset", None)
    if isinstance(offset, int):
        return offset
    return 0 if table.padding_idx is None else table.padding_idx + 1

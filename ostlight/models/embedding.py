"""Samples as vectors of unit length."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ostlight.data.sample import IMAGE_PLACEHOLDER, Sample
from ostlight.errors import ModelError
from ostlight.models.batch import Batch
from ostlight.models.last_token import at_last_token
from ostlight.models.module import MultimodalModel

Embedder = Callable[[Batch], np.ndarray]
"""``[N, D]`` fp32 vectors of unit length; NaN where a sample has none."""


def load_embedder(path: str | None, model: MultimodalModel) -> Embedder:
    """The proxy ``model`` as an embedder of texts and images, or a sentence-transformers model, of texts alone.

    Args:
        path: folder or hub name of the sentence-transformers model; ``None`` for the proxy, whose embedding is the last
            hidden state at the last token.

    Raises:
        ModelError: sentence-transformers is not installed, or the model cannot be loaded.
    """

    def embed_by_proxy(batch: Batch) -> np.ndarray:
        inputs = {k: v.to(model.dtype) if v.is_floating_point() else v for k, v in batch.inputs.items()}
        hidden, _ = at_last_token(model.model, inputs)
        return unit(hidden.float().cpu().numpy())

    if path is None:
        return embed_by_proxy
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ModelError(
            "selector.options.embedder needs sentence-transformers; pip install 'ostlight[deita]', or leave it null to "
            "embed with the proxy",
            "selector.options.embedder",
        ) from error
    try:
        sentences = SentenceTransformer(path, device=str(model.device), local_files_only=Path(path).is_dir())
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        setting = "selector.options.embedder"
        raise ModelError(f"{setting}: cannot load {path!r}: {first}", setting) from error

    def embed(batch: Batch) -> np.ndarray:
        with torch.no_grad():
            vectors = sentences.encode([_text(s) for s in batch.samples], show_progress_bar=False)
        return unit(np.asarray(vectors, dtype=np.float32))

    return embed


def _text(sample: Sample) -> str:
    return "\n".join(turn.text.replace(IMAGE_PLACEHOLDER, "").strip() for turn in sample.turns)


def unit(vectors: np.ndarray) -> np.ndarray:
    """``[N, D]`` each divided by its length, fp32; NaN for a vector of length 0."""
    wide = vectors.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (wide / np.linalg.norm(wide, axis=1, keepdims=True)).astype(np.float32)

"""Samples as vectors of unit length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from ostlight.data.sample import IMAGE_PLACEHOLDER, Sample, open_images
from ostlight.errors import ModelError
from ostlight.models.batch import Batch
from ostlight.models.last_token import at_last_token, attention_outputs, hidden_states
from ostlight.models.model_path import check_model_path
from ostlight.models.module import MultimodalModel

Embedder = Callable[[Batch], np.ndarray]
"""``[N, D]`` fp32 vectors of unit length; NaN where a sample has none."""

States = Literal["hidden", "attention"]
Tokens = Literal["all", "text", "image", "both"]
Pooling = Literal["mean", "weighted_mean", "last"]


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
    check_model_path(path, "selector.options.embedder")
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


def pooled_states_embedder(
    model: MultimodalModel, states: States, layers: Sequence[float], tokens: Tokens, pooling: Pooling
) -> Embedder:
    """The proxy's hidden states, or the outputs of its self-attention, pooled over tokens.

    Each part (layer, kind of token) is scaled to unit length before the parts are joined. With ``both``, the image part
    of a sample without images is 0.

    Args:
        model: the proxy.
        states: ``hidden`` states, or ``attention``: the hyperbolic tangent of its pooled outputs.
        layers: shares of the depth; 1 is the last layer.
        tokens: ``all`` pools over all tokens, ``text`` and ``image`` over these alone, ``both`` gives the image tokens
            and the text tokens a part each. A text-only model has no image part.
        pooling: ``mean``; ``weighted_mean``, weights 1, 2, 3 ... in the order of these tokens; ``last``, the last one.

    Raises:
        ModelError: image tokens are asked for and the model has none.
    """
    image_id = model.encoder.image_token_id
    if tokens == "image" and image_id is None:
        raise ModelError("selector.options.tokens=image: the proxy is a text-only model; use tokens=text")

    def embed(batch: Batch) -> np.ndarray:
        inputs = {k: v.to(model.dtype) if v.is_floating_point() else v for k, v in batch.inputs.items()}
        by_layer = (hidden_states if states == "hidden" else attention_outputs)(model.model, inputs)
        present = inputs["attention_mask"].bool()
        is_image = present & (inputs["input_ids"] == (-1 if image_id is None else image_id))
        chosen = {"all": present, "image": is_image, "text": present & ~is_image}
        parts = []
        for share in layers:
            layer = by_layer[max(1, round(share * len(by_layer))) - 1]
            for kind in kinds_of_tokens(tokens, model):
                pooled = _pooled(layer, chosen[kind], pooling)
                part = unit(pooled if states == "hidden" else np.tanh(pooled))
                if tokens == "both":
                    part[~chosen[kind].any(1).cpu().numpy()] = 0
                parts.append(part)
        return unit(np.concatenate(parts, axis=1))

    return embed


def kinds_of_tokens(tokens: Tokens, model: MultimodalModel) -> list[str]:
    """The tokens that are pooled apart in each layer, in the order in which ``pooled_states_embedder`` joins them."""
    if tokens != "both":
        return [tokens]
    return ["text"] if model.encoder.image_token_id is None else ["image", "text"]


def load_folder_embedder(path: str, tokens: Tokens, pooling: Pooling, device: torch.device | str) -> Embedder:
    """A text encoder, a CLIP-like model or an image encoder, loaded by ``AutoModel``.

    A text encoder's last hidden states are pooled over tokens; a CLIP-like model gives its text and image features; an
    image encoder (DINOv2, ViT) the last hidden state of its class token, or the mean over its patches where it has
    none. Texts are those of all turns, cut at the model's limit; several images of a sample are averaged.

    Args:
        path: folder or hub name that ``AutoModel`` loads.
        tokens: ``text`` or ``image``; ``all`` and ``both`` are text and image joined, or text alone where the model
            reads no images.
        pooling: of a text encoder, as for ``pooled_states_embedder``.
        device: where it runs.

    Raises:
        ModelError: it cannot be loaded, embeds neither text nor images, or not what ``tokens`` asks for.
    """
    setting = "selector.options.source"
    check_model_path(path, setting)
    try:
        model: Any = AutoModel.from_pretrained(path, dtype=torch.float32).eval().to(device)
        is_clip = hasattr(model, "get_text_features") and hasattr(model, "get_image_features")
        reads_images = is_clip or model.main_input_name == "pixel_values"
        reads_text = is_clip or not reads_images
        # Encoders count positions from the left, padding included.
        tokenizer = AutoTokenizer.from_pretrained(path, padding_side="right") if reads_text else None
        image_processor = AutoImageProcessor.from_pretrained(path) if reads_images else None
    except (ImportError, OSError, RuntimeError, SafetensorError, ValueError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{setting}: cannot load {path!r} as an embedding model: {first}", setting) from error
    name = f"selector.options.tokens={tokens}: {path!r} ({type(model).__name__})"
    if tokens == "image" and not reads_images:
        raise ModelError(f"{name} does not embed images; use tokens=text")
    if tokens != "image" and not reads_text:
        raise ModelError(f"{name} does not embed text; use tokens=image")
    kinds = [tokens] if tokens in ("text", "image") else ["image", "text"] if reads_images else ["text"]

    def of_texts(texts: Sequence[str]) -> np.ndarray:
        assert tokenizer is not None, "only models that read text are given texts"
        limit = min(tokenizer.model_max_length, _positions(model.config) or tokenizer.model_max_length)
        inputs = tokenizer(list(texts), padding=True, truncation=True, max_length=limit, return_tensors="pt").to(device)
        if is_clip:
            return _features(model.get_text_features(**inputs))
        return _pooled(model(**inputs).last_hidden_state, inputs["attention_mask"].bool(), pooling)

    def of_images(images: Sequence[Image.Image]) -> np.ndarray:
        assert image_processor is not None, "only models that read images are shown some"
        pixels = image_processor(list(images), return_tensors="pt")["pixel_values"].to(device)
        return _features(model.get_image_features(pixel_values=pixels)) if is_clip else _image_states(model, pixels)

    try:
        with torch.no_grad():
            widths = {
                kind: (of_texts(["a"]) if kind == "text" else of_images([Image.new("RGB", (64, 64))])).shape[1]
                for kind in kinds
            }
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"{setting}: {path!r} ({type(model).__name__}) does not embed {' and '.join(kinds)}: {first}; name a "
            "sentence-transformers or CLIP-like model, or an image encoder",
            setting,
        ) from error

    def of_samples_images(samples: Sequence[Sample]) -> np.ndarray:
        """Sums over each sample's images; 0 where it has none."""
        images = [image for sample in samples for image in open_images(sample.images)]
        owners = np.repeat(np.arange(len(samples)), [len(sample.images) for sample in samples])
        sums = np.zeros((len(samples), widths["image"]))
        if images:
            np.add.at(sums, owners, unit(of_images(images)))
        return sums

    def embed(batch: Batch) -> np.ndarray:
        parts = []
        with torch.no_grad():
            for kind in kinds:
                if kind == "text":
                    parts.append(unit(of_texts([_text(sample) for sample in batch.samples])))
                    continue
                part = unit(of_samples_images(batch.samples))
                if len(kinds) > 1:
                    part[[not sample.images for sample in batch.samples]] = 0
                parts.append(part)
        return unit(np.concatenate(parts, axis=1))

    return embed


def _image_states(model: Any, pixels: Tensor) -> np.ndarray:
    """``[N, D]`` of an image encoder: its class token, or the mean over the patches where it has none."""
    states: Tensor = model(pixel_values=pixels).last_hidden_state.double()
    if getattr(getattr(model, "embeddings", None), "cls_token", None) is not None:
        return states[:, 0].cpu().numpy()
    # [N, patches, D], or feature maps [N, D, height, width]
    return (states.mean(1) if states.ndim == 3 else states.flatten(2).mean(2)).cpu().numpy()


def _positions(config: Any) -> int | None:
    """The most tokens a text encoder takes, where its configuration says."""
    return getattr(getattr(config, "text_config", config), "max_position_embeddings", None)


def _features(returned: Any) -> np.ndarray:
    """``[N, D]`` of a CLIP-like model's tower, as the versions of transformers return it."""
    features: Tensor = returned if isinstance(returned, Tensor) else returned.pooler_output
    return features.double().cpu().numpy()


def _pooled(hidden: Tensor, chosen: Tensor, pooling: Pooling) -> np.ndarray:
    """``[N, D]`` over the chosen tokens ``[N, T]`` of hidden states ``[N, T, D]``; NaN where none is chosen."""
    position = chosen.cumsum(1)
    if pooling == "last":
        weights = (chosen & (position == position[:, -1:])).double()
    else:
        weights = (chosen * position if pooling == "weighted_mean" else chosen).double()
    weights /= weights.sum(1, keepdim=True)
    wide = hidden if hidden.dtype == torch.float64 else hidden.float()
    # Selected, not multiplied by 0: what stands at padding may not be finite.
    kept = torch.where(chosen[..., None], wide, 0)
    return torch.einsum("nt,ntd->nd", weights.to(wide.dtype), kept).double().cpu().numpy()


def _text(sample: Sample) -> str:
    return "\n".join(turn.text_with_calls.replace(IMAGE_PLACEHOLDER, "").strip() for turn in sample.turns)


def unit(vectors: np.ndarray) -> np.ndarray:
    """``[N, D]`` each divided by its length, fp32; NaN for a vector of length 0."""
    wide = vectors.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (wide / np.linalg.norm(wide, axis=1, keepdims=True)).astype(np.float32)

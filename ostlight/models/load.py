"""Models and processors from ordinary Hugging Face folders or hub names."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.utils.logging import disable_progress_bar

from ostlight.config.schema import Model
from ostlight.data.remote import local_model
from ostlight.errors import ConfigError, ModelError, OstlightError
from ostlight.models.adapters import base_of, processor_home, with_adapters
from ostlight.models.batch import Collator
from ostlight.models.cross_attention import keep_samples_apart
from ostlight.models.encoding.encoder import Encoder
from ostlight.models.encoding.processor import load_processor
from ostlight.models.memory import out_of_memory
from ostlight.models.model_path import setting_of

disable_progress_bar()  # the stage that loads logs it once


def load_model(settings: Model, where: str) -> PreTrainedModel:
    """The model, in eval mode, dropout off; adapters that peft saved come on their base model, unmerged.

    Args:
        settings: path, dtype, attention and whether the model's own code may run.
        where: the setting's name (``proxy``), for messages.

    Raises:
        ConfigError: no path.
        ModelError: the folder or name, or the base model its adapters name, cannot be loaded; says why.
    """
    path = model_path(settings, where)
    trust = {"trust_remote_code": settings.trust_remote_code}
    base = base_of(path, where)
    with model_class(settings, path, where, base) as (auto, _):
        chosen = {} if settings.attention is None else {"attn_implementation": settings.attention}
        model: Any = auto.from_pretrained(base or path, dtype=getattr(torch, settings.dtype), **chosen, **trust)
        if base is not None:
            model = with_adapters(model, path)
        if settings.dtype == "float64" and hasattr(model, "set_experts_implementation"):
            model.set_experts_implementation("eager")  # the grouped kernels of experts have no float64
        keep_samples_apart(model)
    return model.eval()


@contextmanager
def model_class(settings: Model, path: str, where: str, base: str | None = None) -> Iterator[tuple[Any, Any]]:
    """The class of transformers that builds the model, and the model's configuration.

    Args:
        path: folder or hub name, for messages.
        base: the one its adapters name.

    Raises:
        ModelError: the configuration cannot be read, or the block within fails to build the model; says why.
    """
    with _loading("model", path, where):
        config = AutoConfig.from_pretrained(base or path, trust_remote_code=settings.trust_remote_code)
        if getattr(config, "is_encoder_decoder", False):
            raise ModelError(
                f"{where}.path: {path!r} ({config.model_type}) reads with an encoder and writes with a decoder; only "
                "models that continue a text are supported, so name one of them",
                f"{where}.path",
            )
        takes_images = (
            config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
            or "AutoModelForImageTextToText" in (getattr(config, "auto_map", None) or {})
        )
        yield AutoModelForImageTextToText if takes_images else AutoModelForCausalLM, config


def load_encoder(settings: Model, where: str) -> Encoder:
    """The processor (or, for a text-only model, tokenizer) of the same folder, or of the base its adapters name.

    Raises:
        ConfigError: no path.
        ModelError: it cannot be loaded, or has no chat template.
    """
    path = model_path(settings, where)
    home = processor_home(path, base_of(path, where))
    with _loading("processor", home, where):
        processor = load_processor(home, trust_remote_code=settings.trust_remote_code)
    try:
        return Encoder(processor, settings.max_length, settings.max_pixels)
    except ModelError as error:
        if error.setting is not None:
            raise
        raise ModelError(f"{setting_of(where)}: {home!r}: {error}", setting_of(where)) from error


def model_path(settings: Model, where: str) -> str:
    """The folder or hub name of a model.

    Raises:
        ConfigError: none is named.
    """
    if settings.path is None:
        raise ConfigError([f"{setting_of(where)} is missing: name a model folder or hub name"])
    return local_model(settings.path)


@contextmanager
def _loading(what: str, path: str, where: str) -> Iterator[None]:
    try:
        yield
    except OstlightError:
        raise
    except Exception as error:  # tokenizers and configurations raise what they like on a damaged file
        problem = f"{setting_of(where)}: cannot load the {what} of {path!r}: {_reason(error, where)}"
        raise ModelError(problem, setting_of(where)) from error


def _reason(error: Exception, where: str) -> str:
    if out_of_memory(error):
        return f"out of memory; name a smaller model, or load it in half the bytes with {where}.dtype=bfloat16"
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, ImportError) and "torchvision" in str(error).lower():
        return f"{first}; install the torchvision that goes with your torch (docs/reference/models.md)"
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"{first}; pip install {error.name.partition('.')[0]}"
    return f"{first}; install what is missing" if isinstance(error, ImportError) else first


def collator_for(model: PreTrainedModel, encoder: Encoder) -> Collator:
    """How this model's inputs are padded and stacked."""
    whole: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    kind = whole.config.model_type
    pad_id = encoder.tokenizer.pad_token_id
    return Collator(
        pad_id=0 if pad_id is None else pad_id,
        images_by_sample=kind in ("idefics2", "idefics3", "smolvlm", "mllama"),
        # Models with rotary positions in three dimensions compute them from the image grids themselves.
        positions=not hasattr(getattr(whole, "model", whole), "get_rope_index") and _takes(whole, "position_ids"),
        first_position=1 if kind == "paligemma" else 0,
        answers_after_prefix=kind == "paligemma",
    )


def _takes(model: Any, name: str) -> bool:
    """Whether the forward has an argument of this name, or any."""
    arguments = inspect.signature(model.forward).parameters
    return name in arguments or any(one.kind is one.VAR_KEYWORD for one in arguments.values())

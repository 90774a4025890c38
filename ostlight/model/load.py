"""Models and processors from ordinary Hugging Face folders or hub names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.models.auto.processing_auto import processor_class_from_name
from transformers.utils.logging import disable_progress_bar

from ostlight.config.schema import Model
from ostlight.errors import ConfigError, OstlightError
from ostlight.model.adapters import adapters_base, processor_home, with_adapters
from ostlight.model.batch import Collator
from ostlight.model.encode import Encoder

disable_progress_bar()  # loading is told once, by the stage that loads

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def load_model(settings: Model, where: str) -> PreTrainedModel:
    """The model, in eval mode, dropout off; adapters that peft saved come on their base model, unmerged.

    Args:
        settings: path, dtype and whether the model's own code may run.
        where: the setting's name (``proxy``), for messages.

    Raises:
        ConfigError: no path, unknown dtype.
        OstlightError: the folder or name, or the base model its adapters name, cannot be loaded; says why.
    """
    if settings.path is None:
        raise ConfigError([f"{where}.path is missing: name a model folder or hub name"])
    if settings.dtype not in DTYPES:
        raise ConfigError([f"{where}.dtype must be one of {', '.join(DTYPES)}; got {settings.dtype!r}"])
    trust = {"trust_remote_code": settings.trust_remote_code}
    try:
        base = adapters_base(settings.path, where)
        whole = base or settings.path
        config = AutoConfig.from_pretrained(whole, **trust)
        sees = config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES or "AutoModelForImageTextToText" in (
            getattr(config, "auto_map", None) or {}
        )
        auto = AutoModelForImageTextToText if sees else AutoModelForCausalLM
        model: Any = auto.from_pretrained(whole, dtype=DTYPES[settings.dtype], **trust)
        if base is not None:
            model = with_adapters(model, settings.path)
    except (OSError, ValueError) as error:
        raise _cannot_load(where, settings, "model", error) from error
    return model.eval()


def load_encoder(settings: Model, where: str) -> Encoder:
    """The processor (or, for a text-only model, tokenizer) of the same folder, or of the base its adapters name.

    Raises:
        OstlightError: it cannot be loaded, or has no chat template.
    """
    if settings.path is not None:
        settings = replace(settings, path=processor_home(settings.path, adapters_base(settings.path, where)))
    return Encoder(_load_processor(settings, where), settings.max_length)


def _load_processor(settings: Model, where: str) -> Any:
    trust = {"trust_remote_code": settings.trust_remote_code}
    try:
        return AutoProcessor.from_pretrained(settings.path, **trust)
    except ImportError:
        # Qwen-VL's and InternVL's processors insist on a video part that needs torchvision. Pictures do not.
        return _without_video(settings, trust)
    except (OSError, ValueError) as error:
        raise _cannot_load(where, settings, "processor", error) from error


def _without_video(settings: Model, trust: dict[str, bool]) -> Any:
    from transformers.processing_utils import ProcessorMixin

    assert settings.path is not None, "checked when the model was loaded"
    stored, _ = ProcessorMixin.get_processor_dict(settings.path)
    cls = processor_class_from_name(stored["processor_class"])
    tokenizer = AutoTokenizer.from_pretrained(settings.path, **trust)
    images = AutoImageProcessor.from_pretrained(settings.path, **trust)
    template = getattr(tokenizer, "chat_template", None) or stored.get("chat_template")
    template_file = Path(settings.path) / "chat_template.jinja"
    if template is None and template_file.is_file():
        template = template_file.read_text()
    return cls(image_processor=images, tokenizer=tokenizer, video_processor=None, chat_template=template)


def _cannot_load(where: str, settings: Model, what: str, error: Exception) -> OstlightError:
    first = str(error).strip().splitlines()[0]
    return OstlightError(f"{where}.path: cannot load the {what} of {settings.path!r}: {first}")


def collator_for(model: PreTrainedModel, encoder: Encoder) -> Collator:
    """How this model's inputs are padded and stacked."""
    whole: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    kind = whole.config.model_type
    pad_id = encoder.tokenizer.pad_token_id
    return Collator(
        pad_id=0 if pad_id is None else pad_id,
        pictures_by_sample=kind in ("idefics2", "idefics3", "smolvlm"),
        # Models with rotary positions in three dimensions compute them from the picture grids themselves.
        positions=not hasattr(getattr(whole, "model", whole), "get_rope_index"),
    )

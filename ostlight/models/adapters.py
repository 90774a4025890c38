"""Folders that peft saved: LoRA weights on a base model named inside."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import CONFIG_NAME, ModulesToSaveWrapper
from torch import nn

from ostlight.errors import ModelError
from ostlight.models.model_path import check_model_path, setting_of

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")


def adapters_base(path: str, where: str) -> str | None:
    """The base model's folder or hub name, where ``path`` is a folder of adapters; ``None`` for a whole model.

    Raises:
        ModelError: adapters other than LoRA, a base that is not named, or a file that is no JSON.
    """
    file = Path(path) / CONFIG_NAME
    if not file.is_file():
        return None
    setting = setting_of(where)
    try:
        config = json.loads(file.read_text())
    except ValueError as error:
        raise ModelError(f"{setting}: {file} is no JSON ({error}); save the adapters again", setting) from error
    if config.get("peft_type") != "LORA":
        raise ModelError(
            f"{setting}: {path!r} holds adapters of type {config.get('peft_type')}; only LoRA is supported, so merge "
            "them into their model and name that",
            setting,
        )
    base = config.get("base_model_name_or_path")
    if not base:
        raise ModelError(
            f"{setting}: {file} names no base model; write its folder or hub name as base_model_name_or_path", setting
        )
    return str(base)


def base_of(path: str, where: str) -> str | None:
    """As ``adapters_base``, after a check that both can be had: the path, and the base its adapters name.

    Raises:
        ModelError: as ``check_model_path`` and ``adapters_base``.
    """
    setting = setting_of(where)
    check_model_path(path, setting)
    base = adapters_base(path, where)
    if base is not None:
        check_model_path(base, setting, named_by=str(Path(path) / CONFIG_NAME))
    return base


def with_adapters(base: nn.Module, path: str) -> PeftModel:
    """The base model, frozen, with the adapters of ``path``, which are trainable.

    Adapters take the base model's dtype: peft would hold them in float32 beside half-precision weights.
    """
    with quiet_peft():
        return PeftModel.from_pretrained(base, path, is_trainable=True, autocast_adapter_dtype=False)


def merged(model: Any) -> Any:
    """The whole model with its adapters merged into the weights, all of them trainable; others as they are.

    A weight that a module with an adapter shares with another module (a head that is the table of embeddings) becomes
    its own first: the adapter changes the one and not the other.
    """
    if not isinstance(model, PeftModel):
        return model
    _untie(model.get_base_model())
    with quiet_peft():
        return model.merge_and_unload().requires_grad_(True)


def _untie(model: Any) -> None:
    """Gives each module with an adapter weights of its own."""
    uses = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    untied = False
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):  # a trained copy takes the place of the original
            untied |= any(uses[id(parameter)] > 1 for parameter in module.original_module.parameters())
        if not isinstance(module, BaseTunerLayer):
            continue
        base: Any = module.get_base_layer()
        if uses[id(base.weight)] > 1:
            base.weight = nn.Parameter(base.weight.detach().clone(), requires_grad=base.weight.requires_grad)
            untied = True
    if untied:
        for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
            config.tie_word_embeddings = False
        model.all_tied_weights_keys = {}  # what transformers leaves out when it saves


def processor_home(path: str, base: str | None) -> str:
    """Folder of a model's processor: adapters are often saved without one, or with the tokenizer alone."""
    if base is None or any((Path(path) / name).is_file() for name in PROCESSOR_FILES):
        return path
    whole = any((Path(base) / name).is_file() for name in PROCESSOR_FILES)
    return path if not whole and (Path(path) / "tokenizer_config.json").is_file() else base


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Hides that peft uses an old name of transformers, and its warning of tied weights, which ``merged`` unties."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings(
            "ignore", "Model has `tie_word_embeddings=True` and a tied layer is part of the adapter"
        )
        yield

"""Which parameters a utility is taken over."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from typing import Any

from torch import nn

from ostlight.errors import InfluenceError

NOT_TEXT = re.compile(r"(^|[._])(vision|visual|image|vit|audio|speech|patch|perceiver|resampler)", re.IGNORECASE)
"""Module paths that never hold the language model's blocks; asked only where the model does not name its decoder."""

NO_ADAPTERS = (
    "it has no LoRA adapters: name a folder that peft saved (adapter_config.json) as proxy.path, or choose "
    "others, such as blocks or last:1"
)
CHOICES = "blocks, last:N, head, all, lora, or a regular expression on parameter names"


def select_parameters(model: nn.Module, choice: str) -> dict[str, nn.Parameter]:
    """The chosen parameters, by the names ``model.named_parameters()`` gives them.

    Args:
        model: any model; Hugging Face ones tell their decoder and head, others are searched for a list of blocks.
        choice: ``blocks`` (every parameter of the language model's transformer blocks, never the vision tower's),
            ``last:N`` (its last N blocks), ``head`` (the output embedding), ``all``, ``lora`` (peft's adapters), or a
            regular expression searched for in the names.

    Returns:
        Name to parameter, in the model's order. A tied parameter appears once, under the first of its names, and
        stands for all its uses: on a model with tied embeddings ``head`` is the input embedding too.

    Raises:
        InfluenceError: the choice matches nothing, has a bad number, or is no regular expression. Lists the names.
    """
    named = dict(model.named_parameters())
    chosen = _chosen(model, choice, named)
    found = {name: parameter for name, parameter in named.items() if id(parameter) in chosen}
    if not found:
        missing = NO_ADAPTERS if choice == "lora" else f"parameters takes {CHOICES}"
        raise InfluenceError(
            f"parameters={choice!r} matches no parameter of {type(model).__name__}; "
            f"{missing}. Its {len(named)} parameters, nearest names first, are {_abbreviated(named, choice)}"
        )
    return found


def text_blocks(model: nn.Module) -> nn.ModuleList:
    """The transformer blocks of the language model inside ``model``.

    Raises:
        InfluenceError: no list of blocks is found outside the vision and audio parts.
    """
    decoder, depth = _decoder(model)
    within = {id(module) for module in decoder.modules()}
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and id(module) in within
        if decoder is not model or not NOT_TEXT.search(name)
    ]
    exact = [(name, module) for name, module in lists if len(module) == depth]
    candidates = exact or lists
    if not candidates:
        raise InfluenceError(
            f"{type(model).__name__} has no list of transformer blocks to be found; "
            "name the parameters with a regular expression instead of blocks or last:N"
        )
    # The outermost list of the model: experts and adapters inside a block are lists too.
    return min(candidates, key=lambda entry: entry[0].count("."))[1]


def _chosen(model: nn.Module, choice: str, named: dict[str, nn.Parameter]) -> set[int]:
    if choice == "all":
        return {id(parameter) for parameter in named.values()}
    if choice == "blocks":
        return {id(parameter) for parameter in text_blocks(model).parameters()}
    if choice.startswith("last:"):
        blocks, count = text_blocks(model), choice.removeprefix("last:")
        if not count.isdigit() or not 1 <= int(count) <= len(blocks):
            raise InfluenceError(
                f"parameters={choice!r}: N is a whole number from 1 to {len(blocks)}, the number of blocks"
            )
        return {id(parameter) for block in list(blocks)[-int(count) :] for parameter in block.parameters()}
    if choice == "head":
        head = _head(model)
        return {id(parameter) for parameter in head.parameters()} if head is not None else set()
    if choice == "lora":
        return {id(parameter) for name, parameter in named.items() if "lora_" in name}
    try:
        pattern = re.compile(choice)
    except re.error as error:
        raise InfluenceError(f"parameters={choice!r} is no regular expression ({error}); it takes {CHOICES}") from error
    return {id(parameter) for name, parameter in named.items() if pattern.search(name)}


def unwrapped(model: Any) -> Any:
    """The model inside peft's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _decoder(model: nn.Module) -> tuple[nn.Module, int | None]:
    """The text model and its number of blocks; the whole model and ``None`` where it does not say."""
    core = unwrapped(model)
    decoder, depth = model, None
    if hasattr(core, "get_decoder"):
        named = core.get_decoder()
        decoder = named if isinstance(named, nn.Module) and named is not core else model
    if hasattr(core, "config") and hasattr(core.config, "get_text_config"):
        depth = getattr(core.config.get_text_config(), "num_hidden_layers", None)
    return decoder, depth


def text_modules(model: nn.Module) -> list[nn.Module]:
    """The parts whose rows are samples' tokens: the text model and both its embeddings; the rest sees images."""
    decoder, _ = _decoder(model)
    core = unwrapped(model)
    embeddings = [core.get_input_embeddings()] if hasattr(core, "get_input_embeddings") else []
    head = _head(model)
    return [decoder, *embeddings, *([head] if head is not None else [])]


def _head(model: nn.Module) -> nn.Module | None:
    core = unwrapped(model)
    if hasattr(core, "get_output_embeddings"):
        core = core.get_output_embeddings()
        return core if isinstance(core, nn.Module) else None
    head = getattr(core, "lm_head", None)
    return head if isinstance(head, nn.Module) else None


def _abbreviated(named: dict[str, nn.Parameter], choice: str, most: int = 40) -> str:
    """Names with their block numbers starred, each pattern once: a 7B model has hundreds of names and few patterns."""
    patterns: dict[str, int] = {}
    for name in named:
        pattern = re.sub(r"(?<=\.)\d+(?=\.)", "*", name)
        patterns[pattern] = patterns.get(pattern, 0) + 1
    nearest = sorted(patterns.items(), key=lambda entry: -_likeness(choice, entry[0]))
    shown = [f"{name} (x{count})" if count > 1 else name for name, count in nearest[:most]]
    return ", ".join(shown) + (f" and {len(patterns) - most} more patterns" if len(patterns) > most else "")


def _likeness(choice: str, name: str) -> float:
    """From 0 to 1; the choice may be meant for the whole name or for one part of it."""
    return max(SequenceMatcher(None, choice.lower(), part.lower()).ratio() for part in (name, *name.split(".")))

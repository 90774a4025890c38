"""The parts of a vision-language model that are trained or frozen as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ostlight.errors import ConfigError
from ostlight.influence.parameters import unwrapped

PARTS = ("vision", "projector", "language")

PROJECTORS = ("projector", "connector", "merger")
"""In the names of the modules that turn what the vision tower sees into tokens of the language model."""


def part_of_parameters(model: nn.Module) -> dict[str, str]:
    """The part of each parameter, by its name in ``model``.

    ``language`` is the decoder with its embeddings and output layer, ``projector`` what goes by such a name outside of
    it, and ``vision`` the rest.
    """
    whole: Any = unwrapped(model)
    core, decoder = getattr(whole, "model", whole), whole.get_decoder()
    children = [] if core is decoder else core.children()  # of a text-only model they are the decoder's
    seeing = [child for child in children if all(module is not decoder for module in child.modules())]
    ids = {id(parameter) for child in seeing for parameter in child.parameters()}
    return {
        name: "language" if id(parameter) not in ids else "projector" if is_projector(name) else "vision"
        for name, parameter in model.named_parameters()
    }


def is_projector(name: str) -> bool:
    """Whether a module or parameter of this name, outside of the language model, is of the projector."""
    return any(known in piece for piece in name.split(".") for known in PROJECTORS)


def freeze(model: nn.Module, parts: Sequence[str]) -> None:
    """Training leaves these parts as they are.

    Raises:
        ConfigError: the model has no such part, or nothing would be left to train.
    """
    part_of = part_of_parameters(model)
    missing = [part for part in parts if part not in part_of.values()]
    if missing:
        there = ", ".join(part for part in PARTS if part in part_of.values())
        raise ConfigError([f"target.freeze: {type(model).__name__} has no part {missing[0]}; it has {there}"])
    for name, parameter in model.named_parameters():
        if part_of[name] in parts:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError([f"target.freeze: nothing is left to train without {', '.join(parts)}; leave one out"])

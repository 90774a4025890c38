"""Parameters of a model whose weights are sharded over ranks (FSDP2), replaced for one pass as they are gathered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from ostlight.errors import InfluenceError
from ostlight.influence.shared_passes import SharedPasses


def places_of(model: nn.Module, parameters: Mapping[int, Any]) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """Where parameters of these ids are: a tied one in several modules."""
    return [
        (module, key, parameter)
        for module in model.modules()
        for key, parameter in module._parameters.items()
        if parameter is not None and id(parameter) in parameters
    ]


@contextmanager
def replaced_as_gathered(
    model: nn.Module, names: Mapping[int, str], stand_in: Callable[[str, Tensor], Tensor]
) -> Iterator[None]:
    """Inside, for one forward and one backward pass, parameters have stand-ins; afterwards each rank has its parts.

    FSDP puts gathered weights in the place of their parts as a block begins, and takes them away as it ends; for the
    backward pass it fills the same memory again, which is the stand-ins' too. All ranks make the same pass.

    Args:
        names: id of a sharded parameter to its name.
        stand_in: makes one from the name and the whole parameter.

    Raises:
        InfluenceError: the model has no such parameter.
    """
    passes = SharedPasses.of(model)
    passes.reshard()
    places = [(module, key, names[id(parameter)]) for module, key, parameter in places_of(model, names)]
    if missing := [*{*names.values()} - {name for _, _, name in places}]:
        raise InfluenceError(f"{missing[0]} is no parameter of the sharded model; select them after it is sharded")
    made: dict[str, Tensor] = {}

    def replace(unit: Any, arguments: Any) -> None:
        for module, key, name in places:
            gathered = module._parameters[key]
            assert gathered is not None, "it was none where its part was"
            if isinstance(gathered, nn.Parameter) and not isinstance(gathered, DTensor):
                if name not in made:
                    made[name] = stand_in(name, gathered)
                module._parameters[key] = made[name]  # type: ignore[assignment]

    units = [unit for unit in model.modules() if isinstance(unit, FSDPModule)]
    hooks = [unit.register_forward_pre_hook(replace) for unit in units]  # after FSDP's own
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        passes.reshard()

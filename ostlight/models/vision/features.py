"""Vision features of batches that are run many times, computed once while what sees images is frozen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from ostlight.influence.parameters import unwrapped
from ostlight.influence.task import adapter_settings

MOST_BYTES = 2**30
"""Of the device's memory, for the features of all batches; those beyond it are computed each time."""


class VisionFeatures:
    """Features of the images of one batch, as they were computed last.

    They hold while every parameter outside of the language model is the same, unchanged, and asks for no gradient.
    """

    def __init__(self) -> None:
        self.nbytes = 0
        self._state: tuple[Any, ...] | None = None
        self._values: list[Any] = []
        _HELD.add(self)

    @contextmanager
    def reused(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside, a forward pass of the model on this batch takes the features instead of computing them, where they
        hold; where not, it computes them, and they are kept.

        Args:
            inputs: of the batch.
        """
        whole = unwrapped(model)
        core: Any = getattr(whole, "model", None)
        state = _frozen_state(core, whole) if hasattr(core, "get_image_features") else None
        if state is None:
            yield
            return
        state += tuple((name, id(tensor), tensor._version) for name, tensor in inputs.items())
        if state != self._state:
            self._state, self._values, self.nbytes = state, [], 0
        compute, calls = core.get_image_features, iter(range(1_000))

        @wraps(compute)
        def features(*arguments: Any, **options: Any) -> Any:
            call = next(calls)
            if call < len(self._values):
                return self._values[call]
            value = compute(*arguments, **options)
            tensors = list(_tensors(value))
            size = sum(tensor.nbytes for tensor in tensors)
            fits = sum(held.nbytes for held in _HELD) + size <= MOST_BYTES
            if call == len(self._values) and fits and not any(tensor.requires_grad for tensor in tensors):
                self._values.append(value)
                self.nbytes += size
            return value

        with replaced(core, "get_image_features", features):
            yield


_HELD: WeakSet[VisionFeatures] = WeakSet()


def _frozen_state(core: nn.Module, whole: Any) -> tuple[Any, ...] | None:
    """What the features depend on beside the batch; ``None`` where some parameter may get a gradient, or is none of
    the model's own (one that is tracked, moved or sharded)."""
    decoder = whole.get_decoder()
    parts = [child for child in core.children() if all(module is not decoder for module in child.modules())]
    parameters = [p for part in parts for p in part.parameters()] + list(core.parameters(recurse=False))
    state = frozen_state(parameters)
    adapters = [adapter_settings(part) for part in parts]
    return None if state is None else (core.training, str(adapters), *state)


def frozen_state(parameters: Sequence[nn.Parameter], buffers: Sequence[Tensor] = ()) -> tuple[Any, ...] | None:
    """What the output of modules with these depends on beside their input; ``None`` where some parameter may get a
    gradient, or is none of the model's own (one that is tracked, moved or sharded)."""
    if any(type(p) is not nn.Parameter or p.requires_grad for p in parameters):
        return None
    device = parameters[0].device.type if parameters else "cpu"
    mode = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    return (*mode, *((id(t), t.data_ptr(), t._version) for t in (*parameters, *buffers)))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(part)


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Inside, an attribute of an object has another value."""
    before = owner.__dict__.get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)

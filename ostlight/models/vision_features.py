"""Vision features of batches that are run many times, computed once while what sees images is frozen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from ostlight.influence.parameters import unwrapped

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

        core.get_image_features = features
        try:
            yield
        finally:
            del core.get_image_features


_HELD: WeakSet[VisionFeatures] = WeakSet()


def _frozen_state(core: nn.Module, whole: Any) -> tuple[Any, ...] | None:
    """What the features depend on beside the batch; ``None`` where some parameter may get a gradient, or is none of
    the model's own (one that is tracked, moved or sharded)."""
    decoder = whole.get_decoder()
    parts = [child for child in core.children() if all(module is not decoder for module in child.modules())]
    parameters = [p for part in parts for p in part.parameters()] + list(core.parameters(recurse=False))
    if any(type(p) is not nn.Parameter or p.requires_grad for p in parameters):
        return None
    device = parameters[0].device.type if parameters else "cpu"
    mode = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device), core.training
    return (*mode, *((id(p), p.data_ptr(), p._version) for p in parameters))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(part)

"""The arguments of a vision tower, divided by image."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

GRID = "grid_thw"
"""Argument of towers that take the patches of all images in one row: frames, rows and columns of each image."""

PROOF_IMAGES = 2
"""How many are few."""


@dataclass(frozen=True)
class TowerCall:
    """Arguments of a vision tower, for several images.

    Attributes:
        arguments, options: of the call.
        sizes: of each image, in the unit of the first axis of what it is given: 1, or its patches.
    """

    arguments: tuple[Any, ...]
    options: dict[str, Any]
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, arguments: Sequence[Any], options: Mapping[str, Any]) -> TowerCall | None:
        """``None`` where the arguments do not divide by image."""
        tensors = [v for v in (*arguments, *options.values()) if isinstance(v, Tensor)]
        others = [v for v in (*arguments, *options.values()) if not isinstance(v, Tensor)]
        if not tensors or not all(map(_is_plain, others)) or any(t.ndim == 0 or not len(t) for t in tensors):
            return None
        grid = options.get(GRID)
        sizes = tuple(grid.prod(-1).tolist()) if isinstance(grid, Tensor) else (1,) * len(tensors[0])
        call = cls(tuple(arguments), dict(options), sizes)
        return call if all(call._parts(name, t) is not None for name, t in call._tensors()) else None

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def device(self) -> torch.device:
        return next(t for _, t in self._tensors()).device

    def keys(self, digest: str) -> list[str]:
        """Of each image, by all that the tower is given for it and the digest of the tower."""
        plain = repr([(name, value) for name, value in self._named() if not isinstance(value, Tensor)])
        hashes = [hashlib.sha256(f"{digest} {plain}".encode()) for _ in self.sizes]
        for name, tensor in self._tensors():
            for known, part in zip(hashes, self._parts(name, tensor.detach().cpu()) or (), strict=True):
                known.update(f"{name} {part.dtype} {tuple(part.shape)}".encode())
                known.update(bytes_of(part))
        return [known.hexdigest() for known in hashes]

    def only(self, images: Sequence[int]) -> TowerCall:
        """The call for some of the images."""

        def chosen(name: str, value: Any) -> Any:
            parts = self._parts(name, value) if isinstance(value, Tensor) else None
            return value if parts is None else torch.cat([parts[k] for k in images])

        arguments = tuple(chosen(str(k), value) for k, value in enumerate(self.arguments))
        options = {name: chosen(name, value) for name, value in self.options.items()}
        return TowerCall(arguments, options, tuple(self.sizes[k] for k in images))

    def few(self) -> TowerCall:
        """The call for a few images; for a single one, also for another that is made of it."""
        if len(self) > 1:
            return self.only(range(min(len(self), PROOF_IMAGES)))

        def two(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return torch.cat([value, -value if value.is_floating_point() else value])

        return TowerCall(tuple(map(two, self.arguments)), {n: two(v) for n, v in self.options.items()}, self.sizes * 2)

    def split(self, values: Sequence[Tensor]) -> list[list[Tensor]] | None:
        """What the tower returned for the images, image by image; ``None`` where it does not divide."""
        parts = [self._parts("", value) for value in values]
        return None if any(p is None for p in parts) else [list(image) for image in zip(*parts, strict=True)]

    def _named(self) -> list[tuple[str, Any]]:
        return [*((str(k), value) for k, value in enumerate(self.arguments)), *self.options.items()]

    def _tensors(self) -> list[tuple[str, Tensor]]:
        return [(name, value) for name, value in self._named() if isinstance(value, Tensor)]

    def _parts(self, name: str, tensor: Tensor) -> tuple[Tensor, ...] | None:
        """Those of each image, by its share of the first axis."""
        sizes = (1,) * len(self) if name == GRID else self.sizes
        total = sum(sizes)
        if tensor.ndim == 0 or any(len(tensor) * size % total for size in sizes):
            return None
        return tensor.split([len(tensor) * size // total for size in sizes])


def bytes_of(tensor: Tensor) -> Any:
    """The bytes of a tensor on the CPU, without a copy where it is contiguous."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)

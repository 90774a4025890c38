"""Where the uses of parameters send what a backward pass brings them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from ostlight.influence.gradients.tracking import Watched


class Sink(Protocol):
    """``products.Products`` is the one there is."""

    def num_units(self, name: str) -> int: ...
    def expect(self, name: str) -> None: ...
    def matrix(self, name: str, inputs: Tensor, grad: Tensor) -> None: ...
    def table(self, name: str, ids: Tensor, grad: Tensor) -> None: ...
    def dense(self, watched: Watched, grad: Tensor) -> None: ...

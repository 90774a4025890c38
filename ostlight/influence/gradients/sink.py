"""Where the uses of parameters send what a backward pass brings them."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ostlight.influence.gradients.experts import Routing

WAY_OUT = "leave it out of parameters, or use estimator=exact or finite_difference"
"""What to do about a parameter whose per-sample gradient is not known."""


class ParameterValue(Protocol):
    """A parameter, or a value computed from parameters alone.

    Attributes:
        graph: the value with an autograd graph back to the ``leaves``.
        leaves: the parameters' names with the leaves of that graph.
        alias: the parameter's name where the value is the parameter itself up to its dtype.
    """

    graph: Tensor
    leaves: dict[str, Tensor]
    alias: str | None


class GradientSink(Protocol):
    """Takes the gradients of one backward pass, use by use; ``products.Products`` takes inner products,
    ``kronecker`` collects factors of the curvature."""

    def num_units(self, name: str) -> int: ...
    def expect(self, name: str) -> None: ...
    def matrix(self, name: str, inputs: Tensor, grad: Tensor) -> None: ...
    def table(self, name: str, ids: Tensor, grad: Tensor) -> None: ...
    def experts(self, name: str, routing: Routing, inputs: Tensor, grad: Tensor) -> None: ...
    def dense(self, value: ParameterValue, grad: Tensor) -> None: ...

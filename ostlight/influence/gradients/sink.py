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
    ``random_products.RandomProducts`` random ones, ``kronecker`` collects factors of the curvature."""

    def num_units(self, name: str) -> int: ...
    def expect(self, name: str) -> None: ...
    def matrix(self, name: str, inputs: Tensor, grad: Tensor) -> None: ...
    def table(self, name: str, ids: Tensor, grad: Tensor) -> None: ...
    def experts(self, name: str, routing: Routing, inputs: Tensor, grad: Tensor) -> None: ...
    def dense(self, value: ParameterValue, grad: Tensor) -> None: ...


class Both:
    """Two sinks of one pass."""

    def __init__(self, first: GradientSink, second: GradientSink) -> None:
        self._first, self._second = first, second

    def num_units(self, name: str) -> int:
        return self._first.num_units(name)

    def expect(self, name: str) -> None:
        self._first.expect(name)
        self._second.expect(name)

    def matrix(self, name: str, inputs: Tensor, grad: Tensor) -> None:
        self._first.matrix(name, inputs, grad)
        self._second.matrix(name, inputs, grad)

    def table(self, name: str, ids: Tensor, grad: Tensor) -> None:
        self._first.table(name, ids, grad)
        self._second.table(name, ids, grad)

    def experts(self, name: str, routing: Routing, inputs: Tensor, grad: Tensor) -> None:
        self._first.experts(name, routing, inputs, grad)
        self._second.experts(name, routing, inputs, grad)

    def dense(self, value: ParameterValue, grad: Tensor) -> None:
        self._first.dense(value, grad)
        self._second.dense(value, grad)

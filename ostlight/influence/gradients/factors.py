"""Second moments of per-sample gradients, from one backward pass over a batch: what Kronecker factors are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

import ostlight.influence.gradients.parameter_uses  # noqa: F401  (fills the rules)
from ostlight.errors import BadRecord
from ostlight.influence.gradients.experts import Routing
from ostlight.influence.gradients.norms import wide
from ostlight.influence.gradients.products import Products, summed_to, to_leaves
from ostlight.influence.gradients.rows import RowMap, RowOwners
from ostlight.influence.gradients.sink import ParameterValue
from ostlight.influence.gradients.tracking import ParameterTracker
from ostlight.influence.task import Task

WIDEST = 8192
"""Widest side of a weight that gets a full factor: its eigenvectors take 256 MiB in fp32."""


@dataclass
class Moments:
    """Sums over samples, for one parameter.

    Attributes:
        square: ``sum_i G_i^2``: entry by entry in the parameter's shape, or of all entries together (no axes) for a
            matrix.
        outputs: ``sum b b' [D_out, D_out]``, or its diagonal where that is too wide; ``None`` for no matrix.
        inputs: ``sum a a' [D_in, D_in]``, likewise.
    """

    square: Tensor
    outputs: Tensor | None = None
    inputs: Tensor | None = None

    @property
    def is_matrix(self) -> bool:
        """Whether a layer's inputs and output gradients were seen."""
        return self.outputs is not None

    def plus(self, other: Moments) -> Moments:
        """The sums over both sets of samples."""
        outputs, inputs = _sum(self.outputs, other.outputs), _sum(self.inputs, other.inputs)
        squares = [self.square, other.square]
        if outputs is not None:  # a tied table may be used as a matrix by some samples only
            squares = [square.sum() for square in squares]
        return Moments(squares[0] + squares[1], outputs, inputs)

    def stays_finite(self, times: int) -> bool:
        """Whether sums this many times as large are finite, all entries taken together."""
        traces = [one.trace() if one.ndim == 2 else one.sum() for one in (self.outputs, self.inputs) if one is not None]
        return all(bool((total * times).isfinite()) for total in (self.square.sum(), *traces))


class HeldUses:
    """Sink of one backward pass that keeps the uses of some parameters: gradients of one sample at a time.

    Args:
        parameters: by name.
        names: of those whose uses are kept.
        rows: the sample of each row.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], names: frozenset[str], rows: RowOwners) -> None:
        self._parameters, self._names, self._rows = parameters, names, rows
        self._dense: dict[str, Tensor] = {}
        self._others: dict[str, list[Callable[[int], Tensor]]] = {}

    def num_units(self, name: str) -> int:
        return self._rows.num_units(self._parameters[name])

    def expect(self, name: str) -> None:
        pass

    def matrix(self, name: str, inputs: Tensor, grad: Tensor) -> None:
        if name in self._names:
            owners, inputs, grad = self._flat(name, inputs, grad)
            self._keep(name, lambda sample: grad[owners == sample].T @ inputs[owners == sample])

    def table(self, name: str, ids: Tensor, grad: Tensor) -> None:
        if name in self._names:
            owners, ids, grad = self._flat(name, ids.unsqueeze(-1), grad)
            shape = self._parameters[name].shape

            def of_sample(sample: int) -> Tensor:
                own = owners == sample
                return grad.new_zeros(shape).index_add_(0, ids[own, 0], grad[own])

            self._keep(name, of_sample)

    def experts(self, name: str, routing: Routing, inputs: Tensor, grad: Tensor) -> None:
        if name in self._names:
            owners = self._owners(name, routing.num_rows, inputs.device)[routing.row]
            parts = [one.split(routing.sizes) for one in (owners, wide(inputs), wide(grad))]

            def of_sample(sample: int) -> Tensor:
                pieces = zip(*parts, strict=True)
                return torch.stack([out[owner == sample].T @ some[owner == sample] for owner, some, out in pieces])

            self._keep(name, of_sample)

    def dense(self, value: ParameterValue, grad: Tensor) -> None:
        name = next(iter(value.leaves))
        if self._names.isdisjoint(value.leaves):
            return
        grad = self._rows.as_rows(self._parameters[name], grad)
        owners = self._owners(name, len(grad), grad.device)
        rows = summed_to(wide(grad), value.graph.shape, name)
        per_sample = rows.new_zeros(self._rows.num_samples, *value.graph.shape).index_add_(0, owners, rows)
        for leaf, gradients in to_leaves(value, per_sample).items():
            if leaf in self._names:
                held = self._held(leaf, gradients)
                self._dense[leaf] = self._dense[leaf] + held if leaf in self._dense else held

    def _held(self, name: str, gradients: Tensor) -> Tensor:
        """What is kept of gradients ``[N, *shape]``."""
        return gradients

    def gradient(self, name: str, sample: int) -> Tensor | None:
        """The sample's gradient, in the parameter's shape; ``None`` for a parameter that no gradient reached."""
        shape = self._parameters[name].shape
        parts = [one(sample).reshape(shape) for one in self._others.get(name, ())]
        if name in self._dense:
            parts.append(self._dense[name][sample].reshape(shape))
        return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0] if parts else None

    def squares(self, name: str) -> Tensor | None:
        """``sum_i G_i^2`` in the parameter's shape; ``None`` for a parameter that no gradient reached."""
        if name in self._dense and name not in self._others:
            return self._dense[name].square().sum(0).reshape(self._parameters[name].shape)
        total: Tensor | None = None
        for sample in range(self._rows.num_samples):
            gradient = self.gradient(name, sample)
            total = _sum(total, None if gradient is None else gradient.square())
        return total

    def _keep(self, name: str, of_sample: Callable[[int], Tensor]) -> None:
        self._others.setdefault(name, []).append(of_sample)

    def _flat(self, name: str, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The owner of each row, and both sides as rows ``[R, D]``; ids stay whole numbers."""
        first, second = (self._rows.as_rows(self._parameters[name], side) for side in (first, second))
        first, second = (side.reshape(len(side), -1, side.shape[-1]) for side in (first, second))
        owners = self._owners(name, len(first), first.device).repeat_interleave(first.shape[1])
        first, second = first.flatten(0, 1), wide(second.flatten(0, 1))
        return owners, wide(first) if first.is_floating_point() else first, second

    def _owners(self, name: str, length: int, device: torch.device) -> Tensor:
        return self._rows.owners(name, self._parameters[name], length, device)


class Basis(Protocol):
    """Of one parameter's gradients, as ``preconditioner.Block``.

    Attributes:
        left: ``U [D_out, D_out]``, orthonormal; ``None`` for the identity.
        right: ``V [D_in, D_in]``, likewise.
    """

    @property
    def left(self) -> Tensor | None: ...
    @property
    def right(self) -> Tensor | None: ...
    def rotated(self, gradients: Tensor) -> Tensor: ...


class UsesInBases(HeldUses):
    """The same, with gradients ``U' G V``: the tokens of a sample are rotated before their outer products are added up,
    which takes ``T (D_out^2 + D_in^2)`` operations, or the sum is, which takes ``D_out D_in (D_out + D_in)``.

    Args:
        bases: of the parameters whose uses are kept.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], bases: Mapping[str, Basis], rows: RowOwners) -> None:
        super().__init__(parameters, frozenset(bases), rows)
        self._bases = bases

    def matrix(self, name: str, inputs: Tensor, grad: Tensor) -> None:
        if name not in self._names:
            return
        basis = self._bases[name]
        if self._are_few(inputs, grad, basis):
            super().matrix(name, _rotated(inputs, basis.right), _rotated(grad, basis.left))
        else:
            owners, inputs, grad = self._flat(name, inputs, grad)
            self._keep(name, lambda sample: basis.rotated(grad[owners == sample].T @ inputs[owners == sample]))

    def table(self, name: str, ids: Tensor, grad: Tensor) -> None:
        if name in self._names:
            basis = self._bases[name]
            if basis.left is None:
                super().table(name, ids, _rotated(grad, basis.right))
            else:  # a row of U is a rotated one-hot vector
                super().matrix(name, _rotated(grad, basis.right), basis.left[ids])

    def _are_few(self, inputs: Tensor, grad: Tensor, basis: Basis) -> bool:
        """Whether rotating all tokens is cheaper than rotating every sample's gradient."""
        rows, columns = grad.shape[-1], inputs.shape[-1]
        left, right = rows * (basis.left is not None), columns * (basis.right is not None)
        tokens = grad.numel() // rows
        return tokens * (rows * left + columns * right) <= self._rows.num_samples * rows * columns * (left + right)

    def _held(self, name: str, gradients: Tensor) -> Tensor:
        return self._bases[name].rotated(gradients)


def _rotated(rows: Tensor, basis: Tensor | None) -> Tensor:
    """``[..., D]`` rows in a basis, fp32 or fp64."""
    if basis is None:
        return wide(rows)
    dtype = torch.promote_types(wide(rows).dtype, basis.dtype)
    return rows.to(dtype) @ basis.to(dtype)


class _FactorSink(HeldUses):
    """Takes factors and norms of matrices as they come, and keeps the uses of all other parameters.

    Experts are kept too, and go by their diagonal: one expert's weight meets too few tokens of a sample for factors of
    its own.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], names: frozenset[str], rows: RowOwners) -> None:
        super().__init__(parameters, names, rows)
        self._norms = Products(dict(parameters), rows, {}, norms=True, separate=True)
        self._factors: dict[str, tuple[Tensor, Tensor]] = {}

    def expect(self, name: str) -> None:
        self._norms.expect(name)

    def matrix(self, name: str, inputs: Tensor, grad: Tensor) -> None:
        if name not in self._names:
            return
        self._norms.matrix(name, inputs, grad)
        sides = [wide(side.reshape(-1, side.shape[-1])) for side in (grad, inputs)]
        found = [side.T @ side if side.shape[1] <= WIDEST else side.square().sum(0) for side in sides]
        if name in self._factors:
            found = [before + more for before, more in zip(self._factors[name], found, strict=True)]
        self._factors[name] = (found[0], found[1])

    def table(self, name: str, ids: Tensor, grad: Tensor) -> None:
        if name in self._names:
            self._norms.table(name, ids, grad)  # read where it is a matrix too: a tied head
            super().table(name, ids, grad)

    def dense(self, value: ParameterValue, grad: Tensor) -> None:
        if not self._names.isdisjoint(value.leaves):
            self._norms.dense(value, grad)
            super().dense(value, grad)

    def moments(self) -> dict[str, Moments]:
        """The sums over the batch of every parameter that a gradient reached."""
        self._norms.finish()
        found = {}
        for name in self._names:
            if name in self._factors:
                outputs, inputs = self._factors[name]
                found[name] = Moments(self._norms.norms[name].to(outputs.dtype).sum(), outputs, inputs)
            elif (squares := self.squares(name)) is not None:
                found[name] = Moments(squares)
        return found


def batch_moments(
    model: nn.Module, task: Task, parameters: Mapping[str, nn.Parameter], names: frozenset[str], batch: Any
) -> dict[str, Moments] | None:
    """The moments of a batch's samples by parameter, from one forward and one backward pass.

    Tokens that pad the batch would count as a sample's inputs: batch samples of one shape.

    Returns:
        of those parameters among ``names`` that a gradient reached; ``None`` where a loss is not finite.

    Raises:
        InfluenceError: a use of a parameter that is not treated, or rows that cannot be assigned to their samples.
    """
    sink = _FactorSink(parameters, names, _row_owners(model, task, batch))
    return sink.moments() if _backward(model, task, parameters, batch, sink) else None


def moments_in_bases(
    model: nn.Module, task: Task, parameters: Mapping[str, nn.Parameter], bases: Mapping[str, Basis], batch: Any
) -> dict[str, Tensor]:
    """``sum_i (U' G_i V)^2`` over a batch's samples, in the shape of each parameter that has a basis and that a
    gradient reached.

    Raises:
        InfluenceError: as ``batch_moments``.
    """
    sink = UsesInBases(parameters, bases, _row_owners(model, task, batch))
    _backward(model, task, parameters, batch, sink)
    found = {name: sink.squares(name) for name in bases}
    return {name: squares for name, squares in found.items() if squares is not None}


def gradient_in_bases(
    model: nn.Module, task: Task, parameters: Mapping[str, nn.Parameter], bases: Mapping[str, Basis], single: Any
) -> Iterator[tuple[str, Tensor]]:
    """Name and ``U' G V``, in the parameter's shape, of each parameter that has a basis and that the gradient of a
    single sample reached. One at a time; none is kept.

    Raises:
        BadRecord: ``loss_not_finite``.
        InfluenceError: as ``batch_moments``.
    """
    sink = UsesInBases(parameters, bases, RowOwners(1))
    if not _backward(model, task, parameters, single, sink):
        raise BadRecord("loss_not_finite", "the model's loss on this sample is not finite")
    for name in bases:
        gradient = sink.gradient(name, 0)
        if gradient is not None:
            yield name, gradient


def _row_owners(model: nn.Module, task: Task, batch: Any) -> RowOwners:
    """A sample alone owns all rows, also those of a vision tower whose layout is not known."""
    return RowOwners(1) if task.size(batch) == 1 else RowMap(model).of_batch(task, batch)


def _backward(model: nn.Module, task: Task, parameters: Mapping[str, nn.Parameter], batch: Any, sink: HeldUses) -> bool:
    """Whether all losses of the batch are finite."""
    tracker = ParameterTracker(model, dict(parameters), sink)
    return bool(tracker.backward(lambda: task.losses(model, batch), task.size(batch)).isfinite().all())


def _sum(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    return first + second if first is not None and second is not None else first if second is None else second

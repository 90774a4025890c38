"""Random products of every sample's gradient: from them its inner product with any vector is known later, about.

With directions of random signs, ``E[sum_m <g, s_m> <v, s_m>] = <g, v>`` for any ``v``: a few numbers a sample stand in
for a gradient (Johnson and Lindenstrauss 1984; Achlioptas 2003 for signs). A gradient is never formed. That of a linear
layer is ``G = sum_t b_t a_t'``, and with signs on either side

    L G R' = sum_t (L b_t) (R a_t)',    L [k_out, D_out], R [k_in, D_in],  k_out k_in <= M

are its products with the Kronecker products of ``L``'s and ``R``'s rows (cf. LoGra, Choe et al. 2024, arXiv
2405.13954). Every layer has signs of its own, and the layers' products are added up: what layers have with one another
has mean zero. A side no wider than its number of rows loses nothing. An embedding table is such a matrix with one-hot
inputs. Of a parameter with three axes (a group of experts, say) the rows of ``R`` are Kronecker products themselves. A
vector of parameters (a bias, a norm's scale) is added with random signs to the M products, entry by entry, in
turn (as in Charikar, Chen and Farach-Colton 2002).

Where utilities are of preconditioned steps, ``<g, P v>``, the products are of ``Q g``, with ``Q`` a Kronecker product
that is about the root of ``P``, and are held against ``Q^-1 P v``. Any ``Q`` is right in the mean; this one has by far
the smaller deviation: ``P`` magnifies exactly those directions in which gradients are small (docs/log.md).

The standard deviation of ``<g, v>`` from M products is about ``|Q g| |Q^-1 P v| / sqrt(M)``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor, nn

from ostlight.errors import InfluenceError
from ostlight.influence.gradients.experts import Routing
from ostlight.influence.gradients.norms import wide
from ostlight.influence.gradients.products import summed_to, to_leaves
from ostlight.influence.gradients.rows import RowOwners
from ostlight.influence.gradients.seeded_random import signs
from ostlight.influence.gradients.sink import ParameterValue
from ostlight.influence.preconditioner import Block, Preconditioner, ShardedPreconditioner


@dataclass(frozen=True)
class _Matrix:
    """Directions of a parameter with two axes or more, as the matrix ``[D_out, D_in]`` that it is.

    Attributes:
        left: ``L Q_out [k_out, D_out]``.
        right: ``R Q_in [k_in, D_in]``.
    """

    left: Tensor
    right: Tensor

    def of(self, gradients: Tensor) -> Tensor:
        """``[N, k_out * k_in]`` products of ``[N, *shape]``."""
        matrices = gradients.reshape(len(gradients), self.left.shape[1], self.right.shape[1])
        return (self.left @ matrices @ self.right.T).flatten(1)

    def of_inputs(self, inputs: Tensor) -> Tensor:
        """``R Q_in a [..., k_in]`` of ``a [..., D_in]``."""
        return inputs @ self.right.T.to(inputs.dtype)

    def of_pairs(self, inputs: Tensor, grad: Tensor) -> Tensor:
        """``[S, k_in]`` of rows of a table, ``grad [S, D_in]``; ``inputs [S, 1]`` weigh them."""
        return self.of_inputs(grad * inputs)


@dataclass(frozen=True)
class _Grouped:
    """Directions of a parameter ``[E, D_out, D_in]``: ``left [k_out, E]``, and for the rest products of two sides.

    Attributes:
        left: over the groups.
        middle: ``[k_in, D_out]``.
        right: ``[k_in, D_in]``.
    """

    left: Tensor
    middle: Tensor
    right: Tensor

    def of(self, gradients: Tensor) -> Tensor:
        """``[N, k_out * k_in]`` products of ``[N, *shape]``."""
        return (self.left @ ((gradients @ self.right.T) * self.middle.T).sum(2)).flatten(1)

    def of_inputs(self, inputs: Tensor) -> Tensor:
        """``[..., k_in]`` where the parameter is the matrix ``[E, D_out * D_in]``: a convolution."""
        both = (self.middle[:, :, None] * self.right[:, None, :]).flatten(1)
        return inputs @ both.T.to(inputs.dtype)

    def of_pairs(self, inputs: Tensor, grad: Tensor) -> Tensor:
        """``[S, k_in]`` of gradients ``grad [S, D_out]`` with ``inputs [S, D_in]`` of one group each."""
        return (grad @ self.middle.T.to(grad.dtype)) * (inputs @ self.right.T.to(inputs.dtype))


@dataclass(frozen=True)
class _Entries:
    """Directions of a parameter with one axis: its entry k goes into product ``places[k]``, times ``factors[k]``."""

    factors: Tensor
    places: Tensor

    def add(self, products: Tensor, gradients: Tensor) -> None:
        products.index_add_(1, self.places, (gradients.reshape(len(gradients), -1) * self.factors).to(products.dtype))


_Directions = _Matrix | _Grouped | _Entries


class RandomDirections:
    """M random directions in the space of all parameters; the same for the same names, shapes, count and seed.

    Args:
        parameters: by name.
        count: M.
        seed: of the signs.
        preconditioner: ``P`` of the steps whose utilities are wanted; ``None`` for SGD. A parameter of which it knows
            nothing (its part is zero) takes no step and has no part in the products.

    Raises:
        InfluenceError: a count below 1, or a preconditioner that is split over ranks.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        count: int,
        seed: int,
        preconditioner: Preconditioner | None = None,
    ) -> None:
        if count < 1:
            raise InfluenceError(f"random products: their number must be above 0; got {count}")
        if isinstance(preconditioner, ShardedPreconditioner):
            raise InfluenceError("random products need all factors of the preconditioner; do not split them over ranks")
        self.parameters, self.count, self._seed = dict(parameters), count, seed
        self._blocks = {} if preconditioner is None else dict(preconditioner.blocks)
        self.by_name: dict[str, _Directions] = {}
        for name in self.parameters:
            block = self._blocks.get(name)
            if block is None or bool((block.inverse > 0).any()):
                self.by_name[name] = self._scaled(name, block)

    @property
    def nbytes(self) -> int:
        """Bytes of the directions."""
        return sum(tensor.nbytes for one in self.by_name.values() for tensor in vars(one).values())

    def products(self, gradient: Mapping[str, Tensor]) -> Tensor:
        """``[M]`` products of one sample's whole gradient, which is otherwise never formed."""
        return self._sum({name: (gradient[name], directions) for name, directions in self.by_name.items()})

    def vector_products(self, vector: Mapping[str, Tensor]) -> Tensor:
        """``[M]`` what a sample's products are multiplied with for ``<g, P v>``: products of ``Q^-1 P v``."""
        parts = {}
        for name in self.by_name:
            block, given = self._blocks.get(name), wide(vector[name])
            if block is not None:
                given = _over_root(block, self._is_grouped(name)).apply(given)
            parts[name] = (given, self._plain(name))
        return self._sum(parts)

    def _sum(self, parts: Mapping[str, tuple[Tensor, _Directions]]) -> Tensor:
        first = next(iter(self.parameters.values()))
        total = torch.zeros(1, self.count, dtype=wide(first).dtype, device=first.device)
        for gradient, directions in parts.values():
            put(total, directions, wide(gradient).unsqueeze(0))
        return total[0]

    def _plain(self, name: str) -> _Directions:
        """Without ``Q``."""
        p = self.parameters[name]
        like, key = wide(p.detach()), _key(self._seed, name)
        if p.ndim < 2:
            entries = torch.arange(p.numel(), device=p.device)
            return _Entries(_signs(key, 0, 1, p.numel(), like)[0], (entries + key % self.count) % self.count)
        sides = (p.shape[0], p.numel() // p.shape[0])
        rows = _rows(*sides, self.count)
        if self._is_grouped(name):
            left = _side(key, 0, rows[0], sides[0], like)
            middle = _signs(key, 1, rows[1], p.shape[1], like)
            return _Grouped(left, middle, _signs(key, 2, rows[1], p.shape[2], like) / rows[1] ** 0.5)
        return _Matrix(_side(key, 0, rows[0], sides[0], like), _side(key, 1, rows[1], sides[1], like))

    def _is_grouped(self, name: str) -> bool:
        block = self._blocks.get(name)
        return self.parameters[name].ndim == 3 and (block is None or (block.left is None and block.right is None))

    def _scaled(self, name: str, block: Block | None) -> _Directions:
        plain = self._plain(name)
        if block is None:
            return plain
        if isinstance(plain, _Entries):
            return _Entries(plain.factors * block.inverse.flatten().sqrt(), plain.places)
        if isinstance(plain, _Grouped):
            sides = zip((plain.left, plain.middle, plain.right), _roots(block.inverse), strict=True)
            return _Grouped(*(side * roots.to(side.dtype) for side, roots in sides))
        outputs, inputs = _roots(block.inverse.flatten(1))
        return _Matrix(_turned(plain.left, outputs, block.left), _turned(plain.right, inputs, block.right))


class RandomProducts:
    """Sink of one pass that takes the products of every sample's gradient, ``[N, M]``.

    Args:
        directions: of the parameters that are tracked.
        rows: the sample of each row.
    """

    def __init__(self, directions: RandomDirections, rows: RowOwners) -> None:
        self._directions, self._rows = directions, rows
        first = next(iter(directions.parameters.values()))
        shape = (rows.num_samples, directions.count)
        self.products = torch.zeros(shape, dtype=wide(first).dtype, device=first.device)

    def num_units(self, name: str) -> int:
        return self._rows.num_units(self._directions.parameters[name])

    def expect(self, name: str) -> None:
        pass

    def matrix(self, name: str, inputs: Tensor, grad: Tensor) -> None:
        directions = self._directions.by_name.get(name)
        if directions is None:
            return
        assert not isinstance(directions, _Entries), "the weight of a linear layer has two axes"
        parameter = self._directions.parameters[name]
        inputs, grad = (self._rows.as_rows(parameter, side) for side in (inputs, grad))
        inputs, grad = (side.reshape(len(side), -1, side.shape[-1]) for side in (inputs, grad))
        self._add(name, _over_tokens(grad @ directions.left.T.to(grad.dtype), directions.of_inputs(inputs)))

    def table(self, name: str, ids: Tensor, grad: Tensor) -> None:
        directions = self._directions.by_name.get(name)
        if directions is None:
            return
        assert not isinstance(directions, _Entries), "a table has two axes"
        ids, grad = ids.flatten(1), grad.reshape(len(grad), -1, grad.shape[-1])
        self._add(name, _over_tokens(directions.left.T[ids], directions.of_inputs(grad)))

    def experts(self, name: str, routing: Routing, inputs: Tensor, grad: Tensor) -> None:
        directions = self._directions.by_name.get(name)
        if directions is None:
            return
        assert not isinstance(directions, _Entries), "weights and biases of experts have two axes or three"
        parameter = self._directions.parameters[name]
        owners = self._rows.owners(name, parameter, routing.num_rows, inputs.device)[routing.row]
        pairs, experts = wide(directions.of_pairs(inputs, grad)), len(parameter)
        summed = pairs.new_zeros(self._rows.num_samples * experts, pairs.shape[1])
        summed.index_add_(0, owners * experts + routing.expert, pairs)
        found = directions.left @ summed.unflatten(0, (-1, experts))
        self.products[:, : found[0].numel()] += found.flatten(1)

    def dense(self, value: ParameterValue, grad: Tensor) -> None:
        name = next(iter(value.leaves))
        grad = self._rows.as_rows(self._directions.parameters[name], grad)
        rows = self._by_sample(name, summed_to(wide(grad), value.graph.shape, name))
        for leaf, gradients in to_leaves(value, rows).items():
            if leaf in self._directions.by_name:
                put(self.products, self._directions.by_name[leaf], gradients)

    def _add(self, name: str, products: Tensor) -> None:
        """``products [R, k]`` of rows."""
        self.products[:, : products.shape[1]] += self._by_sample(name, products)

    def _by_sample(self, name: str, rows: Tensor) -> Tensor:
        """``[N, ...]`` sums of ``[R, ...]`` over each sample's rows."""
        parameter = self._directions.parameters[name]
        if self._rows.sees_text(parameter) and len(rows) == self._rows.num_samples:
            return rows
        owners = self._rows.owners(name, parameter, len(rows), rows.device)
        return rows.new_zeros(self._rows.num_samples, *rows.shape[1:]).index_add_(0, owners, rows)


def put(products: Tensor, directions: _Directions, gradients: Tensor) -> None:
    """Adds the products of one parameter's gradients ``[N, *shape]`` to ``[N, M]``."""
    if isinstance(directions, _Entries):
        directions.add(products, gradients)
        return
    found = directions.of(gradients)
    products[:, : found.shape[1]] += found


def _over_tokens(left: Tensor, right: Tensor) -> Tensor:
    """``[R, k_out * k_in]``: ``sum_t (L b_t) (R a_t)'`` from ``[R, T, k_out]`` and ``[R, T, k_in]``."""
    return (wide(left).mT @ wide(right)).flatten(1)


def _rows(outputs: int, inputs: int, count: int) -> tuple[int, int]:
    """``k_out`` and ``k_in``: as equal as the sides allow, ``k_out * k_in <= count``."""
    left = min(outputs, isqrt(count))
    right = min(inputs, count // left)
    return min(outputs, count // right), right


def _side(key: int, side: int, rows: int, width: int, like: Tensor) -> Tensor:
    """``[rows, width]`` with ``E[S' S] = 1``; of as many rows as columns, signs alone, and nothing is lost."""
    if rows == width:
        return torch.diag(_signs(key, side, 1, width, like)[0])
    return _signs(key, side, rows, width, like) / rows**0.5


def _signs(key: int, side: int, rows: int, width: int, like: Tensor) -> Tensor:
    row = torch.arange(rows, device=like.device)[:, None]
    column = torch.arange(width, device=like.device)
    return signs(key, row, column, torch.tensor(side, device=like.device)).to(like.dtype)


def _key(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest(), "big") >> 1


def _roots(inverse: Tensor) -> list[Tensor]:
    """A vector for each axis, whose products come closest to the root of ``inverse``, by their logarithms; exact for
    K-FAC."""
    logs = inverse.double().clamp_min(torch.finfo(inverse.dtype).tiny).log() / 2
    shared = logs.mean() * (logs.ndim - 1) / logs.ndim
    along = [logs.mean([k for k in range(logs.ndim) if k != axis]) for axis in range(logs.ndim)]
    return [(one - shared).exp().to(inverse.dtype) for one in along]


def _over_root(block: Block, grouped: bool) -> Block:
    """``Q^-1 P``."""
    inverse = block.inverse
    if inverse.ndim < 2:
        return Block(inverse.sqrt())
    seen = inverse if grouped else inverse.flatten(1)
    root = torch.ones_like(seen)
    for axis, one in enumerate(_roots(seen)):
        root *= one.view([-1 if k == axis else 1 for k in range(seen.ndim)])
    return Block((seen / root).reshape(inverse.shape), block.left, block.right)


def _turned(signs_of_side: Tensor, roots: Tensor, basis: Tensor | None) -> Tensor:
    """``S U diag(roots) U'``."""
    if basis is None:
        return signs_of_side * roots.to(signs_of_side.dtype)
    basis = basis.to(signs_of_side.dtype)
    return (signs_of_side @ basis * roots.to(signs_of_side.dtype)) @ basis.T

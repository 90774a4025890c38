"""Inner products of each use's gradient with the fixed vectors, and squared norms; the gradient is then dropped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from ostlight.errors import InfluenceError
from ostlight.influence.gradients.batched_dots import SMALL, THIN, BatchedDots
from ostlight.influence.gradients.experts import Routing
from ostlight.influence.gradients.norms import Factor, Formed, Tokens, squared_norms, wide
from ostlight.influence.gradients.rows import RowOwners
from ostlight.influence.gradients.sink import WAY_OUT, ParameterValue
from ostlight_kernels import Packing, explain_dispatch, grad_dots
from ostlight_kernels.reference import dots_and_squares

GATHERED_ENTRIES = 1 << 22
"""Most entries of the vectors' rows gathered at once for an embedding table: few beside activations."""


class Products:
    """Takes the uses of one backward pass as they come and sums them per parameter and sample.

    Args:
        parameters: by name.
        rows: the sample of each row.
        vectors: ``[M, *parameter.shape]`` for every parameter's name, or empty for no products.
        norms: also take the squared norm of each sample's gradient. A parameter used once is done at once; the uses
            of one used several times are held until the pass ends, since the norm of a sum is no sum of norms.
        separate: every parameter's results by themselves; else small ones may come together, under the name of one.

    Attributes:
        dots: ``[N, M]`` per parameter name, fp64.
        norms: ``[N]`` per parameter name, fp64.
    """

    def __init__(
        self,
        parameters: dict[str, nn.Parameter],
        rows: RowOwners,
        vectors: Mapping[str, Tensor],
        norms: bool,
        separate: bool,
    ) -> None:
        self.dots: dict[str, Tensor] = {}
        self.norms: dict[str, Tensor] = {}
        self._parameters = parameters
        self._rows = rows
        self._vectors = vectors
        self._wants_norms = norms
        self._batched = BatchedDots(separate, self._take)
        self._uses: dict[str, int] = {}
        self._held: dict[str, list[Factor | dict[int, Factor]]] = {}
        self._known_owners: dict[tuple[bool, int, torch.device], Tensor] = {}
        self._packings: dict[tuple[bool, int, int, torch.device], Packing] = {}

    def num_units(self, name: str) -> int:
        """How many units (samples, or images) the rows of this parameter's layer are of."""
        return self._rows.num_units(self._parameters[name])

    def expect(self, name: str) -> None:
        """Announces one more use of a parameter, in the forward pass."""
        self._uses[name] = self._uses.get(name, 0) + 1

    def matrix(self, name: str, inputs: Tensor, grad: Tensor) -> None:
        """A use ``result = inputs @ weight'``: ``inputs [R, ..., D_in]``, ``grad [R, ..., D_out]``."""
        inputs, grad = (_as_tokens(self._rows.as_rows(self._parameters[name], side)) for side in (inputs, grad))
        owners = self._owners(name, len(inputs), inputs.device)
        if self._vectors:
            vectors = self._vectors[name]
            matrices = vectors.reshape(*vectors.shape[:2], -1)
            thin = min(inputs.shape[2], grad.shape[2]) <= THIN and self._row_is_sample(name, owners)
            if thin and self._is_batched(name, inputs):
                # The thinner side first: a CPU forms such gradients several times faster.
                turned = inputs.shape[2] < grad.shape[2]
                left, right = (inputs, grad) if turned else (grad, inputs)
                formed = torch.bmm(wide(left).mT, wide(right))
                self._batched.add(name, formed, matrices.mT if turned else matrices)
                return
            matrices = matrices.to(inputs.dtype)
            given = (inputs, grad.to(inputs.dtype), matrices, self._packing(name, owners, inputs.shape[1]))
            if self._wants_norms and self._uses[name] == 1 and explain_dispatch(inputs).name == "reference":
                # Forming the gradients is the price of both; once is enough.
                dots, squares = dots_and_squares(*given)
                self._add(name, dots)
                self.norms[name] = squares.double()
                return
            self._add(name, grad_dots(*given))
        self._factor(name, partial(Tokens, owners, grad, inputs, self._row_is_sample(name, owners)))

    def table(self, name: str, ids: Tensor, grad: Tensor) -> None:
        """A use ``result = weight[ids]``: ``ids [R, ...]``, ``grad [R, ..., D]``."""
        owners = self._owners(name, len(ids), ids.device)
        ids, grad = ids.flatten(1), _as_tokens(grad)
        if self._vectors:
            vectors = self._vectors[name]
            tokens, gradients = ids.flatten(), grad.flatten(0, 1)
            step = max(1, GATHERED_ENTRIES // max(1, len(vectors) * grad.shape[-1]))
            pieces = [
                torch.einsum("mtd,td->tm", wide(vectors[:, piece]), wide(gradient))
                for piece, gradient in zip(tokens.split(step), gradients.split(step), strict=True)
            ]
            of_tokens = torch.cat(pieces)
            dots = of_tokens.new_zeros(self._rows.num_samples, len(vectors))
            self._add(name, dots.index_add_(0, owners.repeat_interleave(ids.shape[1]), of_tokens))
        self._factor(name, partial(Tokens, owners, ids, grad))

    def experts(self, name: str, routing: Routing, inputs: Tensor, grad: Tensor) -> None:
        """A use ``result[s] = weight[expert[s]] @ inputs[s]`` of a weight ``[E, D_out, D_in]``, ``inputs [S, D_in]``,
        ``grad [S, D_out]``; a bias ``[E, D_out]`` has inputs of one."""
        owners = self._owners(name, routing.num_rows, inputs.device)[routing.row]
        experts, samples = self._parameters[name].shape[0], self._rows.num_samples
        counts = torch.bincount(routing.expert * samples + owners, minlength=experts * samples)
        vectors = self._vectors[name] if self._vectors else None
        factors: dict[int, Factor] = {}
        longest = counts.view(experts, samples).amax(1).tolist()
        pieces = zip(*(one.split(routing.sizes) for one in (owners, inputs, grad)), strict=True)
        for expert, (owner, some, its_grad) in enumerate(pieces):
            if not len(owner):
                continue
            some, its_grad = _by_sample([some, its_grad], owner, samples, longest[expert])
            if vectors is not None:
                matrices = vectors[:, expert].reshape(len(vectors), grad.shape[1], -1).to(some.dtype)
                self._add(name, grad_dots(some, its_grad.to(some.dtype), matrices, None))
            if self._wants_norms:
                rows = torch.arange(samples, device=owner.device)
                factors[expert] = Tokens(rows, its_grad, some, row_is_sample=True)
        self._factor(name, lambda: factors)

    def dense(self, value: ParameterValue, grad: Tensor) -> None:
        """A use whose gradient, before the sum over rows, is ``grad [R, ...]``, the parameter's shape its last axes."""
        name = next(iter(value.leaves))
        grad = self._rows.as_rows(self._parameters[name], grad)
        owners = self._owners(name, len(grad), grad.device)
        rows = summed_to(wide(grad), value.graph.shape, name)
        per_sample = rows
        if not self._row_is_sample(name, owners):
            per_sample = rows.new_zeros(self._rows.num_samples, *value.graph.shape).index_add_(0, owners, rows)
        for leaf, gradients in to_leaves(value, per_sample).items():
            if self._vectors:
                vectors = self._vectors[leaf]
                if self._is_batched(leaf, gradients):
                    self._batched.add(leaf, gradients, vectors)
                    continue
                self._add(leaf, gradients.flatten(1) @ wide(vectors).flatten(1).to(gradients.dtype).T)
            self._factor(leaf, partial(Formed, gradients))

    def finish(self) -> None:
        """Takes the batched products, and the norms still open: of parameters used several times, some of whose uses
        no gradient reached."""
        self._batched.finish()
        for name in list(self._held):
            self._take_norm(name)

    def _is_batched(self, name: str, tensor: Tensor) -> bool:
        """Whether this use is all of the parameter's gradient, and that is too small for a product of its own."""
        small = self._parameters[name].numel() <= SMALL
        return (
            small
            and self._uses[name] == 1
            and tensor.device.type == "cpu"
            and explain_dispatch(tensor).name == "reference"
        )

    def _take(self, name: str, dots: Tensor, squares: Tensor) -> None:
        self._add(name, dots)
        if self._wants_norms:
            self.norms[name] = squares.double()

    def _owners(self, name: str, length: int, device: torch.device) -> Tensor:
        key = (self._rows.sees_text(self._parameters[name]), length, device)
        if key not in self._known_owners:
            self._known_owners[key] = self._rows.owners(name, self._parameters[name], length, device)
        return self._known_owners[key]

    def _packing(self, name: str, owners: Tensor, tokens: int) -> Packing | None:
        """``None`` where row n is sample n; made once per kind of rows, since making it waits for a GPU."""
        if self._row_is_sample(name, owners):
            return None
        key = (self._rows.sees_text(self._parameters[name]), len(owners), tokens, owners.device)
        if key not in self._packings:
            segments = owners.unsqueeze(1).expand(-1, tokens)
            self._packings[key] = Packing.of(segments, self._rows.num_samples)
        return self._packings[key]

    def _row_is_sample(self, name: str, owners: Tensor) -> bool:
        return self._rows.sees_text(self._parameters[name]) and len(owners) == self._rows.num_samples

    def _add(self, name: str, dots: Tensor) -> None:
        self.dots[name] = self.dots[name] + dots if name in self.dots else dots.double()

    def _factor(self, name: str, make: Callable[[], Factor | dict[int, Factor]]) -> None:
        if not self._wants_norms:
            return
        self._held.setdefault(name, []).append(make())
        if len(self._held[name]) == self._uses[name]:
            self._take_norm(name)

    def _take_norm(self, name: str) -> None:
        held, shape = self._held.pop(name), self._parameters[name].shape
        whole = [one for one in held if not isinstance(one, dict)]
        if whole:
            self.norms[name] = squared_norms(whole, self._rows.num_samples, shape).double()
            return
        # Experts are parts of the parameter: squared norms of different ones add up, uses of one do before the square.
        by_expert: dict[int, list[Factor]] = {}
        for one in held:
            for expert, factor in one.items():  # type: ignore[union-attr]
                by_expert.setdefault(expert, []).append(factor)
        part = shape[1:] if len(shape) > 2 else torch.Size([shape[1], 1])
        norms = [squared_norms(factors, self._rows.num_samples, part).double() for factors in by_expert.values()]
        self.norms[name] = torch.stack(norms).sum(0)


def _by_sample(parts: list[Tensor], owners: Tensor, samples: int, longest: int) -> list[Tensor]:
    """``[S, D]`` tokens of several samples as ``[N, longest, D]``, zeros behind each sample's."""
    order = owners.argsort(stable=True)
    of_sample = owners[order]
    place = torch.arange(len(order), device=order.device) - torch.searchsorted(of_sample, of_sample)
    made = []
    for part in parts:
        padded = part.new_zeros(samples, longest, part.shape[1])
        padded[of_sample, place] = part[order]
        made.append(padded)
    return made


def _as_tokens(tensor: Tensor) -> Tensor:
    return tensor.reshape(len(tensor), -1, tensor.shape[-1])


def summed_to(grad: Tensor, shape: torch.Size, name: str) -> Tensor:
    """``[R, *shape]``: the sum over every axis but the rows that the parameter was broadcast along."""
    missing = grad.ndim - len(shape)
    if missing < 0 or (missing == 0 and len(shape) and shape[0] != 1 and len(grad) != 1):
        raise InfluenceError(
            f"per-sample gradients: the parameter {name} of shape {tuple(shape)} meets a tensor of shape "
            f"{tuple(grad.shape)} whose rows are its own; {WAY_OUT}"
        )
    if missing == 0:
        grad, missing = grad.unsqueeze(1), 1
    if missing > 1:
        grad = grad.flatten(1, missing - 1).sum(1)
    broadcast = [1 + k for k, size in enumerate(shape) if size == 1 and grad.shape[1 + k] != 1]
    return grad.sum(broadcast, keepdim=True) if broadcast else grad


def to_leaves(value: ParameterValue, per_sample: Tensor) -> dict[str, Tensor]:
    """From gradients of a value computed from parameters to gradients of the parameters: ``[N, *shape]`` by name."""
    if value.alias is not None:
        return {value.alias: per_sample}
    leaves = list(value.leaves.values())
    collected: list[list[Tensor]] = [[] for _ in leaves]
    for gradient in per_sample:
        with torch.enable_grad():
            pulled = torch.autograd.grad(value.graph, leaves, gradient.to(value.graph.dtype), retain_graph=True)
        for into, one in zip(collected, pulled, strict=True):
            into.append(wide(one))
    return {name: torch.stack(into) for name, into in zip(value.leaves, collected, strict=True)}

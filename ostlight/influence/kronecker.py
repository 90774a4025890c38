"""Kronecker-factored curvature of the pool's gradients: the preconditioners K-FAC and EK-FAC.

A step ``-eta F^-1 g`` (the natural gradient) weighs every direction by how little the pool's samples vary along it:
what all samples share (class biases, mean features) no longer decides a utility. For the weight of a linear layer with
inputs ``a`` and output gradients ``b`` the gradient of a sample is ``G_i = sum_t b_t a_t'``, and

    F = E[vec(G_i) vec(G_i)'] ~ S (x) A,    A = E[a a'],  S = E[b b'],   scaled so that tr A tr S = E ||G_i||^2

- ``kfac`` (Martens and Grosse 2015, arXiv 1503.05671): each factor is damped by a share of its mean eigenvalue,
  ``P G = (S + d mean(S))^-1 G (A + d mean(A))^-1``.
- ``ekfac`` (George et al. 2018, arXiv 1806.03884): in the factors' eigenbases the second moments are measured once
  more, ``Lambda = E[(U' G_i V)^2]``, and ``P G = U [(U' G V) / (Lambda + d mean(Lambda))] V'``.

The expectations are over samples of the pool with their own labels (the empirical Fisher), the one over tokens is over
all of a sample's. Every other parameter (a bias, a norm's scale, an embedding, a group of experts), and a side of a
matrix wider than ``WIDEST``, goes by its diagonal.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ostlight.errors import InfluenceError
from ostlight.influence.eigenbasis import Eigenbasis, damped_inverse
from ostlight.influence.gradient_vectors import CACHED_SETS, code_digest
from ostlight.influence.gradients.factors import WIDEST, Moments, batch_moments, moments_in_bases
from ostlight.influence.gradients.norms import wide
from ostlight.influence.gradients.vectors import shares
from ostlight.influence.preconditioner import Block, Preconditioner, ShardedPreconditioner
from ostlight.influence.shared_passes import is_sharded, of_all_ranks, own_part
from ostlight.influence.task import Task, digest_of, made_by
from ostlight.influence.tensor_files import beyond_last_used, has_room
from ostlight.progress import phase, track

log = logging.getLogger(__name__)

KINDS = ("kfac", "ekfac")

DAMPING = 0.1
"""Share of the mean eigenvalue that is added to each."""

FACTOR_SAMPLES = 300
"""Pool samples that the factors are taken over."""


MOST_SAMPLES, MOST_TOKENS = 16, 4096
"""Of one pass: samples of one shape are taken together."""


def kronecker_preconditioner(
    model: nn.Module,
    task: Task,
    parameters: Mapping[str, nn.Parameter],
    samples: Sequence[Any],
    kind: str,
    damping: float = DAMPING,
    cache: Path | None = None,
    depends_on: Mapping[str, str] | None = None,
    is_writer: bool = True,
    split: bool = False,
) -> Preconditioner:
    """The preconditioner ``kfac`` or ``ekfac`` of these parameters.

    Costs a training step a sample; ``ekfac`` two. A parameter that no gradient reaches, or only gradients whose squares
    underflow, takes no step.

    Args:
        model: in eval mode. One sharded by FSDP2 has its factors split, and takes a pass a sample: all ranks the same.
        task: how losses come out of a batch.
        parameters: those that the step changes.
        samples: of the pool, each in a batch of its own; those of one shape (``Task.shapes``) share a pass. One whose
            loss is not finite, or whose gradient's squares are not, is left out.
        kind: ``kfac`` or ``ekfac``.
        damping: share of the mean eigenvalue that is added to each eigenvalue.
        cache: a folder for a file under a name made from all the preconditioner depends on; the ``CACHED_SETS`` files
            last used are kept. ``None`` caches nothing.
        depends_on: what it depends on besides model, task, parameters, samples and this package: the code of the
            model's forward pass, say.
        is_writer: whether this process writes the cache; one of several that share it.
        split: each rank holds the factors of those parameters whose vectors ``vector_storage="split"`` gives it; all
            ranks call this together, with the same samples. The same as not split where there is one rank.

    Raises:
        InfluenceError: no sample is usable, or all gradients are zero; a layer that the gradient engine does not
            support.
    """
    if kind not in KINDS:
        raise InfluenceError(f"the preconditioner is one of {', '.join(KINDS)}; got {kind!r}")
    if not damping > 0:
        raise InfluenceError(f"damping must be above 0, since factors may be singular; got {damping}")
    sharded = is_sharded(model)
    parameters, ranks = dict(parameters), _Ranks.of(parameters, split or sharded)
    own = ranks.own(parameters)
    file = None
    if cache is not None:
        with phase("fingerprint of model and samples"):
            key = _key(model, task, parameters, samples, [kind, damping, dict(depends_on or {})])
        file = cache / f"{kind}-{key}{ranks.suffix}.safetensors"
        if (cached := _from_cache(file, kind, ranks, is_writer)) is not None:
            return cached
    log.info(f"{kind}: {ranks.summary(_size_in_bytes(parameters), _size_in_bytes(own))}, from {len(samples)} samples")
    groups = [[single] for single in samples] if sharded else _of_one_shape(task, samples)
    with phase(f"{kind} factors", len(samples), "samples") as taken:
        moments, usable = _moments_of_all(model, task, parameters, own, groups, ranks, taken.advance)
    if ranks.all_agree(not any(bool(one.square.any()) for one in moments.values())):
        raise InfluenceError(
            f"{kind}: none of {len(samples)} samples of the pool has a finite gradient other than zero; "
            "give others, or take plain SGD steps"
        )
    blocks = {name: Block(_zeros(p)) for name, p in own.items()}
    blocks |= _blocks(model, task, parameters, moments, usable, kind, damping)
    preconditioner = ranks.preconditioner(Preconditioner(blocks, kind))
    writes = is_writer or ranks.count > 1
    if file is not None and writes and has_room(file.parent, preconditioner.nbytes, f"{kind}: factors"):
        preconditioner.save(file)
        if ranks.count == 1:
            preconditioner = replace(preconditioner, file=file)
        if is_writer:
            _remove_unused(file.parent)
    return preconditioner


def _from_cache(file: Path, kind: str, ranks: _Ranks, is_writer: bool) -> Preconditioner | None:
    """What the file holds, where every rank has its own."""
    found = Preconditioner.load(file, ranks.device) if file.exists() else None
    if not ranks.all_agree(found is not None):
        return None
    assert found is not None, "this rank agreed"
    log.info(f"{kind}: factors taken from {file}")
    if is_writer or ranks.count > 1:
        file.touch()
    return ranks.preconditioner(found)


def _moments_of_all(
    model: nn.Module,
    task: Task,
    parameters: Mapping[str, nn.Parameter],
    own: Mapping[str, nn.Parameter],
    groups: Sequence[Sequence[Any]],
    ranks: _Ranks,
    advance: Callable[[int], None],
) -> tuple[dict[str, Moments], list[Any]]:
    """The sums of this rank's moments over all usable samples, and the batches they are from.

    Args:
        groups: samples that share a pass; where one of them is unusable each has a pass of its own.
        advance: called with the samples of each group.
    """
    moments: dict[str, Moments] = {}
    usable: list[Any] = []
    samples = sum(map(len, groups))

    def add(batch: Any) -> bool:
        """Whether all ranks could take the batch's samples, all of them."""
        found = _moments(model, task, parameters, frozenset(own), batch, samples)
        if not ranks.all_agree(found is not None):
            return False
        assert found is not None, "this rank agreed"
        usable.append(batch)
        for name, one in found.items():
            moments[name] = moments[name].plus(one) if name in moments else one
        return True

    for group in groups:
        if not (len(group) > 1 and add(task.together(group))):
            for single in group:
                add(single)
        advance(len(group))
    return moments, usable


def _blocks(
    model: nn.Module,
    task: Task,
    parameters: Mapping[str, nn.Parameter],
    moments: dict[str, Moments],
    usable: Sequence[Any],
    kind: str,
    damping: float,
) -> dict[str, Block]:
    """The inverse curvature of each parameter that has moments; factors are let go of as their eigenvectors are found.

    Args:
        usable: batches that the moments are from.
    """
    count, bases = sum(task.size(batch) for batch in usable), {}
    matrices = [name for name, one in moments.items() if one.is_matrix]
    for name in track(matrices, f"{kind} eigenvectors", unit="matrices"):
        bases[name] = Eigenbasis.of(moments[name])
        moments[name] = Moments(moments[name].square)  # the factors are as large as their eigenvectors
    squares = {name: one.square for name, one in moments.items() if name not in bases}
    if kind == "ekfac":
        squares |= _squares_in_bases(model, task, parameters, usable, bases)
    blocks = {}
    for name, one in moments.items():
        if name in squares:
            inverse = damped_inverse(squares[name] / count, damping)
        else:
            inverse = bases[name].kfac_inverse(damping, float(one.square) / count)
        blocks[name] = bases[name].block(inverse, parameters[name].shape) if name in bases else Block(inverse)
    return blocks


@dataclass(frozen=True)
class _Ranks:
    """Which rank holds the factors of which parameter; one rank holds all where they are not split."""

    count: int
    owners: Mapping[str, int]
    device: torch.device

    @classmethod
    def of(cls, parameters: Mapping[str, nn.Parameter], split: bool) -> _Ranks:
        count = dist.get_world_size() if split and dist.is_initialized() else 1
        # As vectors are shared out, whose bytes are in proportion to the entries.
        owners = shares({name: p.numel() for name, p in parameters.items()}, count)
        return cls(count, owners, next(iter(parameters.values())).device)

    @property
    def suffix(self) -> str:
        return "" if self.count == 1 else f".{dist.get_rank()}-of-{self.count}"

    def own(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        rank = dist.get_rank() if self.count > 1 else 0
        return {name: p for name, p in parameters.items() if self.owners[name] == rank}

    def all_agree(self, own: bool) -> bool:
        """Whether it is so on every rank."""
        if self.count == 1:
            return own
        answer = torch.tensor([int(own)], device=self.device)
        dist.all_reduce(answer, dist.ReduceOp.MIN)
        return bool(answer)

    def summary(self, all_bytes: int, own_bytes: int) -> str:
        """The memory it takes, for the log."""
        whole = f"at most {all_bytes / 2**20:.1f} MiB of factors"
        if self.count == 1:
            return whole
        return f"{whole} over {self.count} ranks, {own_bytes / 2**20:.1f} MiB on rank {dist.get_rank()}"

    def preconditioner(self, own: Preconditioner) -> Preconditioner:
        return own if self.count == 1 else ShardedPreconditioner(own.blocks, own.kind, owners=self.owners)


def _key(
    model: nn.Module, task: Task, parameters: Mapping[str, nn.Parameter], samples: Sequence[Any], further: list[Any]
) -> str:
    device = next(iter(parameters.values())).device.type
    made_from = [
        *_digests(model),
        made_by(model, task, device),
        list(parameters),
        [digest for single in samples for digest in task.digests(single)],
        code_digest(),
        *further,
    ]
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]


def _digests(model: nn.Module) -> list[str]:
    """Of its weights; where they are sharded, of each rank's parts."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    own = digest_of({name: own_part(tensor.detach()) for name, tensor in tensors.items()})
    return of_all_ranks(own) if is_sharded(model) else [own]


def _zeros(parameter: nn.Parameter) -> Tensor:
    """In its shape, also where only a part of it is here; fp32, or fp64 where it is."""
    return wide(torch.zeros(parameter.shape, dtype=parameter.dtype, device=parameter.device))


def _remove_unused(cache: Path) -> None:
    """All files but those of the ``CACHED_SETS`` preconditioners last used, each of one file or one a rank."""
    with suppress(FileNotFoundError):  # another run of the same model removes the same ones
        newest: dict[str, Path] = {}
        files = [file for kind in KINDS for file in cache.glob(f"{kind}-*.safetensors")]
        for file in sorted(files, key=lambda file: file.stat().st_mtime_ns):
            newest[file.name.split(".")[0]] = file
        unused = {file.name.split(".")[0] for file in beyond_last_used(newest.values(), CACHED_SETS)}
        for file in files:
            if file.name.split(".")[0] in unused:
                file.unlink()


def _of_one_shape(task: Task, samples: Sequence[Any]) -> list[list[Any]]:
    """Groups of samples that share a pass without padding, whose tokens would count as a sample's inputs."""
    groups: dict[Hashable, list[list[Any]]] = {}
    for single in samples:
        if task.size(single) != 1:
            raise InfluenceError(f"samples come one a batch; this batch has {task.size(single)}")
        shapes = task.shapes(single)
        tokens = max((size for shape in shapes.values() for size in shape[:2]), default=1)
        most = max(1, min(MOST_SAMPLES, MOST_TOKENS // max(1, tokens)))
        alike = groups.setdefault(tuple(sorted(shapes.items())), [])
        if not alike or len(alike[-1]) == most:
            alike.append([])
        alike[-1].append(single)
    return [group for alike in groups.values() for group in alike]


def _moments(
    model: nn.Module,
    task: Task,
    parameters: Mapping[str, nn.Parameter],
    names: frozenset[str],
    batch: Any,
    num_samples: int,
) -> dict[str, Moments] | None:
    """``None`` where a sample has no finite loss or squares, so that others must be taken without it; and where the
    samples cannot share a pass."""
    try:
        found = batch_moments(model, task, parameters, names, batch)
    except InfluenceError:
        if task.size(batch) == 1:
            raise
        return None  # images whose rows cannot be told apart; if it is anything else, the first single says so
    if found is None or not all(one.stays_finite(num_samples) for one in found.values()):
        return None
    return found


def _squares_in_bases(
    model: nn.Module,
    task: Task,
    parameters: Mapping[str, nn.Parameter],
    batches: Sequence[Any],
    bases: Mapping[str, Eigenbasis],
) -> dict[str, Tensor]:
    """``sum_i (U' G_i V)^2 [D_out, D_in]`` of every matrix."""
    sums = {name: basis.outputs.new_zeros(len(basis.outputs), len(basis.inputs)) for name, basis in bases.items()}
    blocks = {name: Block(sums[name], basis.left, basis.right) for name, basis in bases.items()}
    for batch in track(batches, "ekfac second moments", unit="batches"):
        for name, squares in moments_in_bases(model, task, parameters, blocks, batch).items():
            sums[name] = sums[name] + squares.reshape(sums[name].shape)
    return sums


def _size_in_bytes(parameters: Mapping[str, nn.Parameter]) -> int:
    """Of eigenvectors and eigenvalues, as if everything with two axes or more were a layer's matrix."""
    total = 0
    for p in parameters.values():
        sides = (p.shape[0], p.numel() // p.shape[0]) if p.ndim > 1 else ()
        total += p.numel() + sum(side**2 for side in sides if side <= WIDEST)
    return 4 * total

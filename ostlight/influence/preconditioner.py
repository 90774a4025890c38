"""The shape of the simulated step: plain SGD, as Adam would take it, or a natural-gradient step by K-FAC or EK-FAC."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ostlight.errors import InfluenceError
from ostlight.influence.anchors import Anchors
from ostlight.influence.sample_gradient import sample_gradient, sample_gradient_parts, train_only
from ostlight.influence.shared_passes import gathered, is_sharded, of_all_ranks, own_part, part_of
from ostlight.influence.task import digest_of
from ostlight.influence.tensor_files import load_whole, save_whole
from ostlight.progress import track

EPSILON = 1e-8
"""Added to the root of the second moment, as in Adam."""


@dataclass(frozen=True)
class Block:
    """The preconditioner of one parameter: ``G -> U [(U' G V) * inverse] V'``, symmetric and positive.

    Attributes:
        inverse: what each entry is multiplied by in the basis; shaped as the parameter, or as the matrix
            ``[D_out, D_in]`` that it is.
        left: ``U [D_out, D_out]``, orthonormal; ``None`` for the identity.
        right: ``V [D_in, D_in]``, likewise.
    """

    inverse: Tensor
    left: Tensor | None = None
    right: Tensor | None = None

    def apply(self, gradients: Tensor) -> Tensor:
        """``P g`` of gradients ``[..., *shape]``, in their dtype or that of the factors, whichever is wider."""
        if self.left is None and self.right is None:
            return gradients * self.inverse
        inside = self.rotated(gradients) * self.inverse
        if self.left is not None:
            inside = self.left.to(inside.dtype) @ inside
        if self.right is not None:
            inside = inside @ self.right.T.to(inside.dtype)
        return inside.reshape(gradients.shape)

    def rotated(self, gradients: Tensor) -> Tensor:
        """``U' G V [..., D_out, D_in]`` of gradients ``[..., *shape]``."""
        dtype = torch.promote_types(gradients.dtype, self.inverse.dtype)
        leading = gradients.numel() // self.inverse.numel()
        matrices = gradients.to(dtype).reshape(leading, *self.inverse.shape)
        if self.left is not None:
            matrices = self.left.T.to(dtype) @ matrices
        if self.right is not None:
            matrices = matrices @ self.right.to(dtype)
        return matrices


@dataclass(frozen=True)
class Preconditioner:
    """``P`` of a step ``theta - eta P grad l_i(theta)``: block-diagonal over the parameters, symmetric, positive.

    So ``<P g_i, v> = <g_i, P v>``: an estimator preconditions its few fixed vectors, and a sample costs nothing more.

    Attributes:
        blocks: by parameter name.
        kind: ``adam``, ``kfac`` or ``ekfac``; for messages.
        file: where it is cached, if it is.
    """

    blocks: Mapping[str, Block]
    kind: str = field(default="", compare=False)
    file: Path | None = field(default=None, compare=False)

    def apply(self, name: str, gradients: Tensor) -> Tensor:
        """``P g`` of one parameter's gradients ``[..., *shape]``."""
        return self.blocks[name].apply(gradients)

    def direction(self, gradient: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``P g`` of a whole gradient."""
        return {name: self.apply(name, g) for name, g in gradient.items()}

    def direction_of_parts(
        self, parts: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]
    ) -> dict[str, Tensor]:
        """This rank's part of ``P g``, from its part of a gradient that is sharded as the parameters are.

        All ranks call it together. One parameter's gradient at a time is gathered, and none is kept.
        """
        found = {}
        for name, part in parts.items():
            gradient = {name: gathered(part, parameters[name])}
            found[name] = part_of(self.direction(gradient)[name], parameters[name])
        return found

    @property
    def is_diagonal(self) -> bool:
        """Whether no block has a basis; the same on all ranks."""
        return all(block.left is None and block.right is None for block in self.blocks.values())

    def summed_over_ranks(self, part: Tensor) -> Tensor:
        """The sum of what the ranks' blocks give, in the place of ``part``."""
        return part

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(tensor.nbytes for tensor in self._tensors().values())

    def digest(self) -> str:
        """A hash of its values."""
        return _joined(self._digests())

    def _digests(self) -> dict[str, str]:
        return {name: digest_of(_parts(block)) for name, block in self.blocks.items()}

    def save(self, file: Path) -> None:
        """Writes it whole or not at all."""
        save_whole(file, self._tensors(), {"kind": self.kind})

    @classmethod
    def load(cls, file: Path, device: torch.device) -> Preconditioner | None:
        """Reads what ``save`` wrote; ``None`` where the file is damaged."""
        loaded = load_whole(file, device)
        if loaded is None:
            return None
        tensors, metadata = loaded
        blocks: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            name, _, part = key.rpartition("/")
            blocks.setdefault(name, {})[part] = tensor
        return cls({name: Block(**parts) for name, parts in blocks.items()}, metadata["kind"], file)

    def _tensors(self) -> dict[str, Tensor]:
        return {
            f"{name}/{part}": tensor
            for name, block in sorted(self.blocks.items())
            for part, tensor in _parts(block).items()
        }


@dataclass(frozen=True)
class ShardedPreconditioner(Preconditioner):
    """Every rank holds the blocks of some parameters: those whose vectors it holds where vectors are split too.

    ``direction``, ``summed_over_ranks`` and ``digest`` are rounds that all ranks take part in, for the same sample:
    everything before a rank scores its own batches does.

    Attributes:
        owners: the rank that holds each parameter's block, in the same order on all ranks.
    """

    owners: Mapping[str, int] = field(default_factory=dict, compare=False)

    def apply(self, name: str, gradients: Tensor) -> Tensor:
        """As ``Preconditioner.apply``.

        Raises:
            InfluenceError: another rank holds the parameter's block.
        """
        if name not in self.blocks:
            raise InfluenceError(f"{self.kind}: rank {self.owners[name]} holds the factors of {name}, not this one")
        return super().apply(name, gradients)

    def direction(self, gradient: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As ``Preconditioner.direction``: every part comes from its owner."""
        found = {}
        for name, g in gradient.items():
            if name in self.blocks:
                part = self.apply(name, g).contiguous()
            else:
                part = torch.empty(g.shape, dtype=torch.promote_types(g.dtype, torch.float32), device=g.device)
            dist.broadcast(part, src=self.owners[name])
            found[name] = part
        return found

    @property
    def is_diagonal(self) -> bool:
        """Taken for not diagonal: a rank does not know the others' blocks."""
        return False

    def summed_over_ranks(self, part: Tensor) -> Tensor:
        """As ``Preconditioner.summed_over_ranks``."""
        dist.all_reduce(part)
        return part

    def digest(self) -> str:
        """As ``Preconditioner.digest``, and the same as of one that is not sharded."""
        return _joined({name: digest for digests in of_all_ranks(self._digests()) for name, digest in digests.items()})


@dataclass(frozen=True)
class PartsPreconditioner(Preconditioner):
    """Diagonal, of a sharded model: every rank holds its part of each parameter's diagonal."""

    def direction_of_parts(
        self, parts: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]
    ) -> dict[str, Tensor]:
        return self.direction(parts)


def _joined(digests: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def _parts(block: Block) -> dict[str, Tensor]:
    return {part: tensor for part, tensor in sorted(vars(block).items()) if tensor is not None}


def adam_preconditioner(parameters: Mapping[str, nn.Parameter], second_moments: Mapping[str, Tensor]) -> Preconditioner:
    """``1 / (sqrt(v) + eps)`` for the parameters, from bias-corrected second moments ``v`` (Adam's ``exp_avg_sq``).

    They are frozen: a score may not depend on what was scored before it. Where ``v`` is 0 (a token or an expert that no
    sample of the warm-up had) no step is taken: ``1 / eps`` times a gradient would be all there is of it.

    Args:
        parameters: by name.
        second_moments: by the same names; sharded, or this rank's parts, where the parameters are sharded.

    Raises:
        InfluenceError: moments that are not shaped as their parameter.
    """
    moments = {name: own_part(second_moments[name]) for name in parameters}
    for name, p in parameters.items():
        if moments[name].shape != own_part(p.detach()).shape:
            raise InfluenceError(
                f"adam: the second moments of {name} are {list(moments[name].shape)}; it is {list(p.shape)}"
            )
    inverses = {name: (1 / (v.sqrt() + EPSILON)).masked_fill(v == 0, 0.0) for name, v in moments.items()}
    blocks = {name: Block(inverse.to(parameters[name].device)) for name, inverse in inverses.items()}
    made = PartsPreconditioner if any(isinstance(p, DTensor) for p in parameters.values()) else Preconditioner
    return made(blocks, "adam")


def anchor_second_moments(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], anchors: Anchors
) -> dict[str, Tensor]:
    """Mean square of the anchors' gradients, for ``adam_preconditioner`` where there is no optimizer to take moments
    from; this rank's parts of a sharded model, with the same anchors on all ranks.

    Raises:
        BadRecord: an anchor without a finite gradient.
    """
    sharded = is_sharded(model)
    if not sharded:  # FSDP2 does not follow a change
        train_only(model, parameters)
    sums = {name: torch.zeros_like(own_part(p.detach()), dtype=torch.float32) for name, p in parameters.items()}
    for _, single in track(anchors.singles(), "anchors' second moments", len(anchors), "anchors"):
        if sharded:
            gradient = sample_gradient_parts(model, anchors.task, parameters, single)
        else:
            _, gradient = sample_gradient(model, anchors.task, parameters, single)
        for name, g in gradient.items():
            sums[name] += g.float().square()
    return {name: s / len(anchors) for name, s in sums.items()}

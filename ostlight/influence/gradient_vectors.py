"""The anchors' mean gradient and curvature probes: made once for a proxy, kept with it, held where there is room."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ostlight.data.atomic import atomic_path, atomic_write_text
from ostlight.errors import BadRecord, SelectorError
from ostlight.influence.anchors import AnchorSet
from ostlight.influence.gradients.norms import wide
from ostlight.influence.gradients.probes import Anchors, Vectors, asking, curvature_probes, mean_gradients
from ostlight.influence.gradients.vectors import ShardedVectors, Targets, shares
from ostlight.influence.sample_gradient import sample_gradient
from ostlight.influence.simulated_step import Step
from ostlight.models.encode import Encoded
from ostlight.models.module import MultimodalModel
from ostlight.pipeline import fingerprint
from ostlight.ranks import is_first_rank

log = logging.getLogger(__name__)

HOLDINGS = ("full", "bf16", "offload", "split")
"""Where and how the vectors are held.

- ``full``: on the device, in fp32 (fp64 for fp64 weights).
- ``bf16``: on the device, in half the memory. Each entry is rounded by at most 2^-9 of itself, so an inner product is
  off by at most 2^-9 ``||g|| ||target||``, and usually by far less. With bf16 weights nothing is lost: the products
  are taken in bf16 anyway.
- ``offload``: in the machine's memory, moved to the device a parameter at a time.
- ``split``: a share on each rank, sent a parameter at a time (``ShardedVectors``).
"""

AT_ONCE = 8
"""Probes made at once: they share a forward pass, and are held in full until they are put in their place."""

KEPT = 4
"""Sets of vectors kept with a proxy, those last used: each is as large as the scope times its vectors."""

CODE = ("ostlight.models", "ostlight.influence")


@dataclass(frozen=True)
class Keeping:
    """Where the vectors are held and kept.

    Attributes:
        hold: one of ``HOLDINGS``.
        cache: folder for one file a parameter, under a name made from all they depend on; ``None`` keeps nothing. When
            new ones are made, all but the ``KEPT`` sets last used are removed.
    """

    hold: str = "full"
    cache: Path | None = None


IN_MEMORY = Keeping()
"""In full on the device, and gone with the process."""


@dataclass(frozen=True)
class Holding:
    """How many vectors of which parameters are held how, and what that takes.

    Attributes:
        parameters: the scope.
        groups: anchors in each group, in the vectors' order.
        probes: K; the vectors are group by group its mean gradient and its K probes.
        how: one of ``HOLDINGS``.
        device: the computing one.
        directions: vectors that follow, common to all groups.
    """

    parameters: Mapping[str, nn.Parameter]
    groups: Mapping[Hashable, int]
    probes: int
    how: str
    device: torch.device
    directions: int = 0

    @property
    def ranks(self) -> int:
        """Among how many the vectors are split; 1 where they are not."""
        return dist.get_world_size() if self.how == "split" and dist.is_initialized() else 1

    @property
    def count(self) -> int:
        return len(self.groups) * (1 + self.probes) + self.directions

    @property
    def dtype(self) -> torch.dtype:
        """The same for all, so that any rank can make room for any other's."""
        if self.how == "bf16":
            return torch.bfloat16
        return torch.float64 if any(p.dtype == torch.float64 for p in self.parameters.values()) else torch.float32

    @property
    def place(self) -> torch.device:
        return torch.device("cpu") if self.how == "offload" else self.device

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each parameter's vectors."""
        return {name: self.count * p.numel() * self.dtype.itemsize for name, p in self.parameters.items()}

    @property
    def owners(self) -> dict[str, int]:
        return shares(self.sizes, self.ranks)

    def mine(self) -> list[str]:
        """Parameters whose vectors this rank holds."""
        rank, owners = dist.get_rank() if self.ranks > 1 else 0, self.owners
        return [name for name in self.parameters if owners[name] == rank]

    @property
    def bytes_held(self) -> int:
        """By this rank."""
        return sum(self.sizes[name] for name in self.mine())

    def line(self) -> str:
        """For the user, before they are made."""
        entries = sum(p.numel() for p in self.parameters.values())
        whole = sum(self.sizes.values())
        groups = "1" if len(self.groups) == 1 else f"{len(self.groups)} groups"
        if self.probes or not self.directions:
            groups = f"{groups} + {self.probes}" if len(self.groups) == 1 else f"{groups} x (1 + {self.probes})"
        groups += f" + {self.directions}" if self.directions else ""
        where = {
            "full": f"on {self.place}",
            "bf16": f"in bf16 on {self.place}",
            "offload": "in the machine's memory",
            "split": f"in shares of about {_size(whole // self.ranks)} on each of {self.ranks} ranks",
        }[self.how]
        return f"gradient vectors: {self.count} ({groups}) of {entries:,} entries, {_size(whole)} {where}"

    def refuse_if_too_large(self) -> None:
        """Raises:
        SelectorError: they cannot fit where they are to be held; lists what would take less.
        """
        room = _room(self.place)
        if room is None or self.bytes_held <= room:
            return
        others = [f"vector_storage={how}" for how in HOLDINGS[1:] if how != self.how]
        option, count = ("probes", self.probes) if self.probes else ("rank", self.directions)
        raise SelectorError(
            f"{self.line()}, but only {_size(room)} are free: take fewer vectors ({option}, now {count}), fewer "
            f"parameters (last:N, lora), or {', '.join(others)}"
        )


class Directions(Protocol):
    """Vectors common to all groups, made from more than the anchors."""

    key: Mapping[str, Any]
    """What they depend on beside proxy, anchors and scope, as JSON holds it."""

    def prepare(self, folder: Path | None) -> None:
        """Called once before ``vectors``, with the folder in which the vectors are kept."""

    def vectors(self, names: Sequence[str], only: range) -> Vectors:
        """``[len(only), *shape]`` for each of these parameters."""


def make_vectors(
    step: Step, holding: Holding, seed: int, keeping: Keeping, directions: Directions | None = None
) -> Targets:
    """The vectors, from the cache as far as they are there, else made and kept there.

    Args:
        step: its anchors are what they are made from; each vector's entries are multiplied by its scale
            (``ostlight.influence.estimators.gradient_products``).
        holding: what is wanted.
        seed: of the probes.
        keeping: where.
        directions: gives the vectors that ``holding.directions`` counts.

    Raises:
        OstlightError: too few anchors for the probes, an anchor without a finite loss.
    """
    further = {} if directions is None else dict(directions.key)
    cache = keeping.cache
    folder = None if cache is None else cache / _key(step, holding, seed, cache, further)
    if directions is not None:
        directions.prepare(folder)
    names = holding.mine()
    kept = [name for name in names if folder is not None and (folder / f"{name}.safetensors").exists()]
    missing = [name for name in names if name not in kept]
    stored = dict(_read(folder, kept, holding)) if folder is not None else {}
    if kept:
        log.info(f"gradient vectors of {len(kept)} parameters: taken from {folder}")
    if missing:
        if cache is not None and is_first_rank():
            _prune(cache)
        made = _made(step, holding, missing, seed, directions)
        stored |= made
        if folder is not None and (holding.ranks > 1 or is_first_rank()):
            _keep(folder, made)
    stored = {name: stored[name] for name in names}
    if holding.ranks == 1:
        return Targets(stored, holding.device)
    shapes = {name: torch.Size([holding.count, *p.shape]) for name, p in holding.parameters.items()}
    return ShardedVectors(stored, holding.owners, shapes, holding.dtype, holding.device)


def _made(
    step: Step, holding: Holding, names: list[str], seed: int, directions: Directions | None
) -> dict[str, Tensor]:
    parameters = {name: holding.parameters[name] for name in names}
    trusted = anchors_for_probes(step.model, step.anchors)
    pinned = holding.how == "offload" and holding.device.type == "cuda"
    stored = {
        name: torch.empty(holding.count, *p.shape, dtype=holding.dtype, device=holding.place, pin_memory=pinned)
        for name, p in parameters.items()
    }

    def put_at(found: Mapping[str, Tensor], start: int) -> None:
        for name, vectors in found.items():
            stored[name][start : start + len(vectors)] = vectors if step.scale is None else vectors * step.scale[name]

    def put(found: Mapping[Hashable, Mapping[str, Tensor]], first: int) -> None:
        for k, group in enumerate(holding.groups):
            put_at(found[group], k * (1 + holding.probes) + first)

    means = finite_means(step.model, step.anchors, parameters)
    put({group: {name: v.unsqueeze(0) for name, v in vectors.items()} for group, vectors in means.items()}, 0)
    del means
    for first in range(0, holding.probes, AT_ONCE):
        some = range(first, min(holding.probes, first + AT_ONCE))
        put(curvature_probes(trusted, parameters, holding.probes, seed, some), 1 + first)
    for first in range(0, holding.directions, AT_ONCE):
        assert directions is not None, "they are counted"
        some = range(first, min(holding.directions, first + AT_ONCE))
        put_at(directions.vectors(names, some), holding.count - holding.directions + first)
    return stored


def finite_means(
    model: MultimodalModel, anchors: AnchorSet, parameters: dict[str, nn.Parameter]
) -> dict[Hashable, Vectors]:
    """``mean_gradients``, or the anchor that spoils them.

    Raises:
        OstlightError: an anchor's loss or gradient is not finite; names the anchor.
    """
    means = mean_gradients(anchors_for_probes(model, anchors), parameters)
    if all(bool(vector.isfinite().all()) for vectors in means.values() for vector in vectors.values()):
        return means
    with asking(parameters):
        for single in (single for batch in anchors.batches for single in batch.singles()):
            try:
                sample_gradient(model, list(parameters.values()), single)
            except BadRecord as error:
                told = f"anchor {single.samples[0].id!r}: {error}; mend it, leave it out, or take another proxy"
                raise SelectorError(told) from error
    raise SelectorError("the anchors' gradients are finite one by one and not in sum; take another proxy")


def anchors_for_probes(model: MultimodalModel, anchors: AnchorSet) -> Anchors:
    """The anchors as the gradients' room takes them."""
    return Anchors(
        forward=lambda batch: (model.logits(batch), batch.labels),
        batches=list(zip(anchors.indices, anchors.batches, strict=True)),
        groups=anchors.groups,
        ids=anchors.ids,
    )


def _read(folder: Path, names: list[str], holding: Holding) -> Iterator[tuple[str, Tensor]]:
    for name in names:
        vectors = load_file(folder / f"{name}.safetensors", device=str(holding.place))["vectors"]
        pinned = holding.how == "offload" and holding.device.type == "cuda"
        yield name, vectors.pin_memory() if pinned else vectors


def _keep(folder: Path, made: Mapping[str, Tensor]) -> None:
    needed, free = sum(v.nbytes for v in made.values()), shutil.disk_usage(_existing(folder)).free
    if needed > 0.9 * free:
        log.warning(f"gradient vectors are not kept: they take {_size(needed)}, and {_size(free)} are free in {folder}")
        return
    for name, vectors in made.items():
        with atomic_path(folder / f"{name}.safetensors") as temporary:
            save_file({"vectors": vectors.cpu().contiguous()}, temporary)


def _prune(cache: Path) -> None:
    used = [file for file in cache.glob("*.json") if not file.name.startswith(".")]
    with suppress(FileNotFoundError):  # another run of the same proxy removes the same ones
        for old in sorted(used, key=lambda file: file.stat().st_mtime_ns, reverse=True)[KEPT:]:
            shutil.rmtree(old.with_suffix(""), ignore_errors=True)
            old.unlink()


def _key(step: Step, holding: Holding, seed: int, cache: Path, further: Mapping[str, Any]) -> str:
    """Name of the vectors' folder; what it stands for is written beside it, anew at each use."""
    proxy = step.model.model
    made_from: dict[str, Any] = {
        "proxy": digest_of({**dict(proxy.named_parameters()), **dict(proxy.named_buffers())}),
        "anchors": digest_of(seen_of(_numbered(step.anchors))),
        "groups": step.anchors.groups,
        "parameters": list(holding.parameters),
        "probes": holding.probes,
        "seed": seed,
        "scale": None if step.scale is None else digest_of(step.scale),
        "dtype": str(holding.dtype),
        "code": fingerprint.of_code(*CODE),
        **further,
    }
    key = fingerprint.of_values(made_from)
    if is_first_rank():
        atomic_write_text(cache / f"{key}.json", json.dumps(made_from, indent=2) + "\n")
    return key


def _numbered(anchors: AnchorSet) -> Iterator[tuple[int, Encoded]]:
    for indices, batch in zip(anchors.indices, anchors.batches, strict=True):
        yield from zip(indices, batch.encoded, strict=True)


def seen_of(numbered: Iterable[tuple[int, Encoded]]) -> dict[str, Tensor]:
    """What the model sees of each sample, by the samples' numbers, whatever the batches."""
    seen: dict[str, Tensor] = {}
    for number, encoded in numbered:
        seen |= {f"{number:09d}.{key}": value for key, value in encoded.inputs.items()}
        seen[f"{number:09d}.labels"] = encoded.labels
    return dict(sorted(seen.items()))


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """The same for the same names, types, shapes and bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)


def _room(place: torch.device) -> int | None:
    """Bytes that could be taken there; ``None`` where it cannot be told."""
    if place.type == "cuda":
        return int(torch.cuda.mem_get_info(place)[0])
    if place.type == "cpu" and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _size(count: int) -> str:
    unit, name = (2**30, "GiB") if count >= 2**30 else (2**20, "MiB")
    return f"{count / unit:.1f} {name}"


def slope_norm(targets: Targets, groups: Mapping[Hashable, int], probes: int) -> float:
    """``||g_V||`` of all anchors, from their groups' mean gradients among the vectors."""
    total, square = sum(groups.values()), 0.0
    for vectors in targets.stored.values():
        parts = [wide(vectors[k * (1 + probes)]) * (size / total) for k, size in enumerate(groups.values())]
        square += float(torch.stack(parts).sum(0).double().square().sum())
    return targets.total(square) ** 0.5

"""The anchors' mean gradient and curvature vectors: made once for a model, cached, stored where there is memory."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ostlight.errors import BadRecord, InfluenceError
from ostlight.influence.anchors import Anchors
from ostlight.influence.gradients.norms import wide
from ostlight.influence.gradients.probes import Vectors, curvature_probes, mean_gradients, requiring_gradients
from ostlight.influence.gradients.vectors import GradientVectors, ShardedVectors, shares
from ostlight.influence.sample_gradient import sample_gradient
from ostlight.influence.simulated_step import SimulatedStep
from ostlight.influence.task import digest_of, made_by
from ostlight.influence.tensor_files import beyond_last_used, has_room, load_whole, save_whole
from ostlight.progress import phase

log = logging.getLogger(__name__)

STORAGES = ("full", "bf16", "offload", "split")
"""Where and how the vectors are stored.

- ``full``: on the device, in fp32 (fp64 for fp64 weights).
- ``bf16``: on the device, in half the memory. Each entry is rounded by at most 2^-9 of itself, so an inner product is
  off by at most 2^-9 ``||g|| ||vector||``, and usually by far less. With bf16 weights nothing is lost: the products
  are taken in bf16 anyway.
- ``offload``: in the machine's memory, moved to the device a parameter at a time.
- ``split``: a share on each rank, sent a parameter at a time (``ShardedVectors``).
"""

AT_ONCE = 8
"""Vectors made at once: they share a forward pass, and are in memory in full until they are stored."""

CACHED_SETS = 4
"""Sets of vectors a cache holds, those last used: each is as large as the parameters times its vectors."""


@dataclass(frozen=True)
class VectorSettings:
    """Where the vectors are stored and cached.

    Attributes:
        storage: one of ``STORAGES``.
        cache: folder for one file a parameter, under a name made from all they depend on; ``None`` caches nothing. When
            new ones are made, all but the ``CACHED_SETS`` sets last used are removed.
        depends_on: what they depend on besides model, anchors, parameters and this package (the caller's code, say).
        is_writer: whether this process writes the cache; one of several that share it.
    """

    storage: str = "full"
    cache: Path | None = None
    depends_on: Mapping[str, str] = field(default_factory=dict)
    is_writer: bool = True


IN_MEMORY = VectorSettings()
"""In full on the device, and gone with the process."""


@dataclass(frozen=True)
class VectorPlan:
    """How many vectors of which parameters are stored how, and the memory that takes.

    Attributes:
        parameters: those that the step changes.
        groups: anchors in each group, in the vectors' order.
        probes: K; the vectors are group by group its mean gradient and its K probes.
        storage: one of ``STORAGES``.
        device: the computing one.
        directions: vectors that follow, common to all groups.
    """

    parameters: Mapping[str, nn.Parameter]
    groups: Mapping[Hashable, int]
    probes: int
    storage: str
    device: torch.device
    directions: int = 0

    @property
    def ranks(self) -> int:
        """Over how many ranks the vectors are split; 1 where they are not."""
        return dist.get_world_size() if self.storage == "split" and dist.is_initialized() else 1

    @property
    def count(self) -> int:
        return len(self.groups) * (1 + self.probes) + self.directions

    @property
    def dtype(self) -> torch.dtype:
        """The same for all, so that any rank can receive any other's."""
        if self.storage == "bf16":
            return torch.bfloat16
        return torch.float64 if any(p.dtype == torch.float64 for p in self.parameters.values()) else torch.float32

    @property
    def storage_device(self) -> torch.device:
        return torch.device("cpu") if self.storage == "offload" else self.device

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each parameter's vectors."""
        return {name: self.count * p.numel() * self.dtype.itemsize for name, p in self.parameters.items()}

    @property
    def owners(self) -> dict[str, int]:
        return shares(self.sizes, self.ranks)

    def own_names(self) -> list[str]:
        """Parameters whose vectors this rank stores."""
        rank, owners = dist.get_rank() if self.ranks > 1 else 0, self.owners
        return [name for name in self.parameters if owners[name] == rank]

    @property
    def bytes_stored(self) -> int:
        """By this rank."""
        return sum(self.sizes[name] for name in self.own_names())

    def summary(self) -> str:
        """One line for the log, before they are made."""
        entries = sum(p.numel() for p in self.parameters.values())
        whole = sum(self.sizes.values())
        groups = "1" if len(self.groups) == 1 else f"{len(self.groups)} groups"
        if self.probes or not self.directions:
            groups = f"{groups} + {self.probes}" if len(self.groups) == 1 else f"{groups} x (1 + {self.probes})"
        groups += f" + {self.directions}" if self.directions else ""
        where = {
            "full": f"on {self.storage_device}",
            "bf16": f"in bf16 on {self.storage_device}",
            "offload": "in the machine's memory",
            "split": f"in shares of about {_size(whole // self.ranks)} on each of {self.ranks} ranks",
        }[self.storage]
        return f"gradient vectors: {self.count} ({groups}) of {entries:,} entries, {_size(whole)} {where}"

    def refuse_if_too_large(self) -> None:
        """Raises:
        InfluenceError: they do not fit where they are to be stored; lists what takes less.
        """
        free = _free_bytes(self.storage_device)
        if free is None or self.bytes_stored <= free:
            return
        others = [f"vector_storage={how}" for how in STORAGES[1:] if how != self.storage]
        option, count = ("probes", self.probes) if self.probes else ("rank", self.directions)
        raise InfluenceError(
            f"{self.summary()}, but only {_size(free)} are free: take fewer vectors ({option}, now {count}), fewer "
            f"parameters (last:N, lora), or {', '.join(others)}"
        )


class Directions(Protocol):
    """Vectors common to all groups, made from more than the anchors."""

    @property
    def key(self) -> Mapping[str, Any]:
        """What they depend on besides model, anchors and parameters, as JSON."""

    def prepare(self, folder: Path | None) -> None:
        """Called once before ``vectors``, with the folder in which the vectors are kept."""

    def vectors(self, names: Sequence[str], only: range) -> Vectors:
        """``[len(only), *shape]`` for each of these parameters."""


def make_vectors(
    step: SimulatedStep, plan: VectorPlan, seed: int, settings: VectorSettings, directions: Directions | None = None
) -> GradientVectors:
    """The vectors, from the cache as far as they are there; the rest is made and cached.

    Args:
        step: its anchors are what they are made from; each vector is preconditioned as its step is
            (``ostlight.influence.estimators.gradient_products``).
        plan: how many of what.
        seed: of the probes.
        settings: where.
        directions: gives the vectors that ``plan.directions`` counts.

    Raises:
        InfluenceError: too few anchors for the probes, an anchor without a finite loss.
    """
    further = {} if directions is None else dict(directions.key)
    with phase("fingerprint of model and anchors"):
        folder = None if settings.cache is None else settings.cache / _key(step, plan, seed, settings, further)
    if directions is not None:
        directions.prepare(folder)
    names = plan.own_names()
    stored = dict(_read(folder, names, plan)) if folder is not None else {}
    missing = [name for name in names if name not in stored]
    if stored:
        log.info(f"gradient vectors of {len(stored)} parameters: taken from {folder}")
    if missing:
        if settings.cache is not None and settings.is_writer:
            _remove_unused(settings.cache)
        made = _made(step, plan, missing, seed, directions)
        stored |= made
        if folder is not None and (plan.ranks > 1 or settings.is_writer):
            _write(folder, made)
    stored = {name: stored[name] for name in names}
    if plan.ranks == 1:
        return GradientVectors(stored, plan.device)
    shapes = {name: torch.Size([plan.count, *p.shape]) for name, p in plan.parameters.items()}
    return ShardedVectors(stored, plan.owners, shapes, plan.dtype, plan.device)


def _made(
    step: SimulatedStep, plan: VectorPlan, names: list[str], seed: int, directions: Directions | None
) -> dict[str, Tensor]:
    parameters = {name: plan.parameters[name] for name in names}
    pinned = plan.storage == "offload" and plan.device.type == "cuda"
    stored = {
        name: torch.empty(plan.count, *p.shape, dtype=plan.dtype, device=plan.storage_device, pin_memory=pinned)
        for name, p in parameters.items()
    }

    def put_at(some: Mapping[str, Tensor], start: int) -> None:
        for name, vectors in some.items():
            stored[name][start : start + len(vectors)] = step.preconditioned(name, vectors)

    def put(by_group: Mapping[Hashable, Mapping[str, Tensor]], first: int) -> None:
        for k, group in enumerate(plan.groups):
            put_at(by_group[group], k * (1 + plan.probes) + first)

    with phase("gradient vectors", plan.count, "vectors") as made:
        means = finite_mean_gradients(step.model, step.anchors, parameters)
        put({group: {name: v.unsqueeze(0) for name, v in vectors.items()} for group, vectors in means.items()}, 0)
        del means
        made.advance(len(plan.groups))
        for first in range(0, plan.probes, AT_ONCE):
            some = range(first, min(plan.probes, first + AT_ONCE))
            put(curvature_probes(step.model, step.anchors, parameters, plan.probes, seed, some), 1 + first)
            made.advance(len(plan.groups) * len(some))
        for first in range(0, plan.directions, AT_ONCE):
            assert directions is not None, "they are counted"
            some = range(first, min(plan.directions, first + AT_ONCE))
            put_at(directions.vectors(names, some), plan.count - plan.directions + first)
            made.advance(len(some))
    return stored


def finite_mean_gradients(
    model: nn.Module, anchors: Anchors, parameters: dict[str, nn.Parameter]
) -> dict[Hashable, Vectors]:
    """``mean_gradients``, or an error with the anchor that is not finite.

    Raises:
        InfluenceError: an anchor's loss or gradient is not finite; names the anchor.
    """
    means = mean_gradients(model, anchors, parameters)
    if all(bool(vector.isfinite().all()) for vectors in means.values() for vector in vectors.values()):
        return means
    with requiring_gradients(parameters):
        for index, single in anchors.singles():
            try:
                sample_gradient(model, anchors.task, parameters, single)
            except BadRecord as error:
                raise InfluenceError(
                    f"{anchors.name_of(index)}: {error}; fix it, leave it out, or take another model"
                ) from error
    raise InfluenceError("the anchors' gradients are finite one by one and not in sum; take another model")


def _read(folder: Path, names: list[str], plan: VectorPlan) -> Iterator[tuple[str, Tensor]]:
    """Those that are there, whole."""
    for name in names:
        file = folder / f"{name}.safetensors"
        loaded = load_whole(file, plan.storage_device) if file.exists() else None
        if loaded is None:
            continue
        vectors = loaded[0]["vectors"]
        pinned = plan.storage == "offload" and plan.device.type == "cuda"
        yield name, vectors.pin_memory() if pinned else vectors


def _write(folder: Path, made: Mapping[str, Tensor]) -> None:
    if not has_room(folder, sum(v.nbytes for v in made.values()), "gradient vectors"):
        return
    for name, vectors in made.items():
        save_whole(folder / f"{name}.safetensors", {"vectors": vectors})


def _remove_unused(folder: Path) -> None:
    used = [file for file in folder.glob("*.json") if not file.name.startswith(".")]
    with suppress(FileNotFoundError):  # another run of the same model removes the same ones
        for old in beyond_last_used(used, CACHED_SETS):
            shutil.rmtree(old.with_suffix(""), ignore_errors=True)
            old.unlink()


def _key(step: SimulatedStep, plan: VectorPlan, seed: int, settings: VectorSettings, further: Mapping[str, Any]) -> str:
    """Name of the vectors' folder; what it is made from is written beside it at each use."""
    made_from: dict[str, Any] = {
        "model": digest_of({**dict(step.model.named_parameters()), **dict(step.model.named_buffers())}),
        **made_by(step.model, step.task, step.device.type),
        "anchors": step.anchors.digest(),
        "groups": [str(group) for group in step.anchors.groups],
        "parameters": list(plan.parameters),
        "probes": plan.probes,
        "seed": seed,
        "preconditioner": None if step.preconditioner is None else step.preconditioner.digest(),
        "dtype": str(plan.dtype),
        "code": code_digest(),
        **settings.depends_on,
        **further,
    }
    text = json.dumps(made_from, indent=2, sort_keys=True) + "\n"
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    if settings.cache is not None and settings.is_writer:
        settings.cache.mkdir(parents=True, exist_ok=True)
        temporary = settings.cache / f".{key}.{uuid.uuid4().hex[:12]}.tmp"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(settings.cache / f"{key}.json")
    return key


@cache
def code_digest() -> str:
    """A hash of this library's source and of torch's version."""
    digest = hashlib.sha256(torch.__version__.encode())
    root = Path(__file__).parent
    for file in sorted(root.rglob("*.py")):
        digest.update(str(file.relative_to(root)).encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _free_bytes(place: torch.device) -> int | None:
    """Bytes that could be taken there; ``None`` where it cannot be told."""
    if place.type == "cuda":
        return int(torch.cuda.mem_get_info(place)[0])
    if place.type == "cpu" and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _size(count: int) -> str:
    unit, name = (2**30, "GiB") if count >= 2**30 else (2**20, "MiB")
    return f"{count / unit:.1f} {name}"


def mean_gradient_norm(vectors: GradientVectors, groups: Mapping[Hashable, int], probes: int) -> float:
    """``||g_V||`` of all anchors, from their groups' mean gradients among the vectors."""
    total, square = sum(groups.values()), 0.0
    for stored in vectors.stored.values():
        parts = [wide(stored[k * (1 + probes)]) * (size / total) for k, size in enumerate(groups.values())]
        square += float(torch.stack(parts).sum(0).double().square().sum())
    return float(vectors.total(square) ** 0.5)

"""Features of single images, computed once while the vision tower is frozen and stored on disk for every stage.

What is stored is what a model's vision tower returns, as far as the features depend on it, so that a projector behind
it may be trained. The key is a hash of the tower's weights and of all that it is given for the image.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any
from weakref import WeakKeyDictionary

import torch
import transformers
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from ostlight.data.remote_cache import cache_folder
from ostlight.errors import DataError
from ostlight.influence.parameters import unwrapped
from ostlight.models.feature_files import FeatureFiles
from ostlight.models.flops import counted_apart
from ostlight.models.parts import is_projector
from ostlight.models.vision_features import frozen_state, replaced
from ostlight.ranks import is_first_rank

log = logging.getLogger(__name__)

FORMAT = "1"
"""Of what is stored."""

MIN_PARAMETERS = 5_000_000
"""A smaller vision tower takes less time to run than its features to read."""

PROOF_IMAGES = 3
"""On which a model's features, computed one by one and together, are compared."""

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.03, torch.float16: 0.005}
"""Largest difference of the two, over the largest feature: rounding, by the least precise type that is computed in."""
TF32_TOLERANCE = 5e-3
"""Of float32 on a GPU, whose convolutions may be rounded so."""


class VisionCache:
    """Puts stored features in the place of what a frozen vision tower would compute.

    Args:
        files: where they are.

    Attributes:
        reused, computed: images.
        flops: of what was computed; no counter around it counts them.
        seconds: that it took.
    """

    def __init__(self, files: FeatureFiles) -> None:
        self.files = files
        self.reused = self.computed = self.flops = 0
        self.seconds = 0.0
        self._towers: WeakKeyDictionary[nn.Module, _Tower] = WeakKeyDictionary()

    @contextmanager
    def used(self, model: nn.Module) -> Iterator[None]:
        """Inside, a forward pass of the model takes the features of the images that are stored, and stores those that
        are not; where the tower is not frozen, or the model not made that way, it computes all of them."""
        whole = unwrapped(model)
        core: Any = getattr(whole, "model", None)
        module = vision_tower(core, whole)
        state = None if module is None or torch.is_inference_mode_enabled() else _state(module)
        if module is None or state is None:
            yield
            return
        tower = self._towers.get(module)
        if tower is None or tower.state != state:
            tower = self._towers[module] = _Tower(state)
        if tower.refusal is not None:
            yield
            return
        with replaced(core, "get_image_features", self._proving(tower, core, module)):
            yield

    def summary(self) -> str:
        """One line about what was reused."""
        images, used = self.reused + self.computed, self.files.nbytes / 2**30
        line = (
            f"vision features of {self.reused:,} of {images:,} images reused ({self.reused / images:.0%}), "
            f"{used:.2g} of {self.files.limit / 2**30:.3g} GiB in {self.files.folder}"
        )
        if self.files.refused:
            line += f"; {self.files.refused:,} did not fit (compute.vision_cache_gib)"
        return line

    def _proving(self, tower: _Tower, core: Any, module: nn.Module) -> Callable[..., Any]:
        """What computes features in the place of the model's own: proves first that they can be stored."""
        features, forward = core.get_image_features, module.forward

        @wraps(features)
        def proved(*arguments: Any, **options: Any) -> Any:
            if not tower.is_proved and not _is_hooked(core):
                try:
                    with counted_apart():
                        flops = tower.prove(module, forward, lambda: features(*arguments, **options), self.files)
                    self.flops += flops
                except _RefusedError as refused:
                    tower.refuse(refused)
            if not tower.is_proved:
                return features(*arguments, **options)
            with replaced(module, "forward", partial(self._outputs, tower, forward)):
                return features(*arguments, **options)

        return proved

    def _outputs(self, tower: _Tower, forward: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """What the tower returns, for images that are stored and others."""
        call = _Call.of(arguments, options)
        if call is None or tower.refusal is not None:
            return forward(*arguments, **options)
        try:
            return self._features(tower, forward, call)
        except _RefusedError as refused:
            tower.refuse(refused)
            return forward(*arguments, **options)

    def _features(self, tower: _Tower, forward: Callable[..., Any], call: _Call) -> Any:
        keys = call.keys(tower.digest)
        found = {key: self.files.get(key) for key in dict.fromkeys(keys)}
        missing = [key for key, stored in found.items() if stored is None]
        if missing:
            part = call.only([keys.index(key) for key in missing])
            before = time.perf_counter()
            with counted_apart() as counter:
                values = part.split(tower.compute(forward, part))
            self.flops += counter.total
            self.seconds += time.perf_counter() - before
            if values is None:
                raise _RefusedError("gives features that do not divide by image")  # they did when it was proved
            for key, value in zip(missing, values, strict=True):
                self.files.put(key, value)
                found[key] = value
        self.reused += len(keys) - len(missing)
        self.computed += len(missing)
        return tower.joined([found[key] or [] for key in keys], call.device)


_active: VisionCache | None = None


@contextmanager
def opened(gib: float, stage: str) -> Iterator[None]:
    """Inside, models with a frozen vision tower reuse features; one line at the end says how many. Blocks within share
    the outermost one's.

    Args:
        gib: of all features that are stored; 0 stores none.
        stage: for the line.
    """
    global _active
    if gib == 0 or _active is not None:
        yield
        return
    cache = _active = _opened(gib)
    try:
        yield
    finally:
        _active = None
        if cache is not None and cache.reused + cache.computed and is_first_rank():
            log.info(f"{stage}: {cache.summary()}")


def _opened(gib: float) -> VisionCache | None:
    try:
        return VisionCache(FeatureFiles(cache_folder() / "vision", gib * 2**30))
    except DataError as error:
        log.warning(f"vision features are computed each time: {error}")
        return None


def reused(model: nn.Module, inputs: Mapping[str, Tensor]) -> Any:
    """Inside, a forward pass of the model on these inputs takes stored features, where ``opened`` and possible."""
    return _active.used(model) if _active is not None and "pixel_values" in inputs else nullcontext()


def take_flops() -> int:
    """FLOPs of features that were computed since the last call, which no counter has counted."""
    if _active is None:
        return 0
    flops, _active.flops = _active.flops, 0
    return flops


def computing_s() -> float:
    """Seconds that features were computed in so far."""
    return 0.0 if _active is None else _active.seconds


def vision_tower(core: Any, whole: Any) -> nn.Module | None:
    """The one part of a model that sees images, before any projector; ``None`` where it has no such part.

    Args:
        core: the model without its output layer.
        whole: with it.
    """
    if not hasattr(core, "get_image_features"):
        return None
    decoder = whole.get_decoder()
    seeing = [
        child
        for name, child in core.named_children()
        if not is_projector(name) and all(module is not decoder for module in child.modules())
    ]
    towers = [child for child in seeing if next(child.parameters(), None) is not None]
    if len(towers) != 1 or sum(p.numel() for p in towers[0].parameters()) < MIN_PARAMETERS:
        return None
    return towers[0]


def _is_hooked(core: nn.Module) -> bool:
    """Whether something follows what runs behind the tower, and would take a proof for a pass."""
    behind = [module for name, child in core.named_children() if is_projector(name) for module in child.modules()]
    return any(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks for module in behind)


def _state(tower: nn.Module) -> tuple[Any, ...] | None:
    """What its output depends on beside the images; ``None`` where it may change."""
    if any(module.training for module in tower.modules()):
        return None  # dropout
    return frozen_state(list(tower.parameters()), list(tower.buffers()))


class _RefusedError(Exception):
    """Why a model's features cannot be stored, as the rest of a sentence about it."""


@dataclass
class _Tower:
    """What is known of a vision tower.

    Attributes:
        state: in which it is known.
        refusal: why its features are not stored.
        is_proved: they are the same for an image alone and among others.
        digest: of all that its output depends on beside the images.
        used: which of the tensors that it returns features depend on.
        structure: of what it returns.
    """

    state: tuple[Any, ...]
    refusal: str | None = None
    is_proved: bool = False
    digest: str = ""
    used: list[int] = field(default_factory=list)
    structure: TreeSpec | None = None

    def refuse(self, error: _RefusedError) -> None:
        """From here on its features are computed each time."""
        self.refusal = str(error)
        log.info(f"vision features are computed each time: the model {error}")

    def prove(
        self, module: nn.Module, forward: Callable[..., Any], features: Callable[[], Any], files: FeatureFiles
    ) -> int:
        """Finds out which outputs are used, and compares those of images alone with those of images together.

        Args:
            forward: the tower's own.
            features: computes those of a batch.
            files: to compare the time of reading with that of computing.

        Returns:
            the FLOPs of features that were stored.

        Raises:
            _RefusedError: they differ, or the tower is not called once with tensors that divide by image.
        """
        rows = self._watch(module, forward, features).few()
        together = rows.split(self.compute(forward, rows))
        singles = [rows.only([k]) for k in range(len(rows))]
        alone = [self.compute(forward, single) for single in singles]
        if together is None or not all(map(_close, together, alone)):
            raise _RefusedError("gives an image other features among others than alone")
        self.digest = _digest(module, self.used, self.structure)
        computing = _seconds(lambda: [self.compute(forward, single) for single in singles])
        with counted_apart() as counter:
            stored = [files.put(single.keys(self.digest)[0], self.compute(forward, single)) for single in singles]
        reading = _seconds(lambda: [files.get(single.keys(self.digest)[0]) for single in singles])
        # Where nothing more fits, what is there may be worth reading.
        if all(stored) and not worth_reading(reading, computing):
            each = (1000 * t / len(singles) for t in (reading, computing))
            raise _RefusedError("takes {:.2g} ms to read those of an image and {:.2g} ms to compute them".format(*each))
        self.is_proved = True
        return counter.total

    def _watch(self, module: nn.Module, forward: Callable[..., Any], features: Callable[[], Any]) -> _Call:
        """Computes features once, and notes the call of the tower and what they depend on."""
        calls: list[_Call | None] = []
        outputs: list[Tensor] = []

        def watched(*arguments: Any, **options: Any) -> Any:
            calls.append(_Call.of(arguments, options))
            with torch.no_grad():
                values, self.structure = tree_flatten(forward(*arguments, **options))
            outputs[:] = [_leaf(value) for value in values]
            return tree_unflatten(outputs, self.structure)

        with torch.enable_grad(), replaced(module, "forward", watched):
            made = [v for v in tree_flatten(features())[0] if isinstance(v, Tensor) and v.grad_fn is not None]
            sums = [v.float().sum() for v in made]
        if len(calls) != 1:
            raise _RefusedError(f"calls its vision tower {len(calls)} times for a batch")
        if calls[0] is None or not made:
            raise _RefusedError("gives its vision tower inputs that do not divide by image")
        tracked = [k for k, value in enumerate(outputs) if isinstance(value, Tensor) and value.requires_grad]
        found = torch.autograd.grad(sums, [outputs[k] for k in tracked], allow_unused=True)
        self.used = [k for k, gradient in zip(tracked, found, strict=True) if gradient is not None]
        if any(isinstance(v, Tensor) and not v.is_floating_point() for v in outputs):
            raise _RefusedError("has a vision tower that returns more than features")
        return calls[0]

    def compute(self, forward: Callable[..., Any], call: _Call) -> list[Tensor]:
        """What features depend on, for the images of a call."""
        with torch.no_grad():
            values, structure = tree_flatten(forward(*call.arguments, **call.options))
        if structure != self.structure:
            raise _RefusedError("has a vision tower whose output has several forms")
        return [values[k].detach() for k in self.used]

    def joined(self, images: Sequence[Sequence[Tensor]], device: torch.device) -> Any:
        """What the tower returns for several images; what features do not depend on is left out."""
        assert self.structure is not None, "proved"
        values: list[Tensor | None] = [None] * self.structure.num_leaves
        for k, parts in zip(self.used, zip(*images, strict=True), strict=True):
            values[k] = torch.cat([part.to(device) for part in parts])
        return tree_unflatten(values, self.structure)


def worth_reading(reading: float, computing: float) -> bool:
    """Whether stored features save time, by the seconds of both."""
    return reading < computing


@dataclass(frozen=True)
class _Call:
    """Arguments of a vision tower, for several images.

    Attributes:
        arguments, options: of the call.
        sizes: of each image, in the unit of the first axis of what it is given: 1, or its patches.
    """

    arguments: tuple[Any, ...]
    options: dict[str, Any]
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, arguments: Sequence[Any], options: Mapping[str, Any]) -> _Call | None:
        """``None`` where the arguments do not divide by image."""
        tensors = [v for v in (*arguments, *options.values()) if isinstance(v, Tensor)]
        others = [v for v in (*arguments, *options.values()) if not isinstance(v, Tensor)]
        if not tensors or not all(map(_is_plain, others)) or any(t.ndim == 0 or not len(t) for t in tensors):
            return None
        grid = options.get(GRID)
        sizes = tuple(grid.prod(-1).tolist()) if isinstance(grid, Tensor) else (1,) * len(tensors[0])
        call = cls(tuple(arguments), dict(options), sizes)
        return call if all(call._parts(name, t) is not None for name, t in call._tensors()) else None

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def device(self) -> torch.device:
        return next(t for _, t in self._tensors()).device

    def keys(self, digest: str) -> list[str]:
        """Of each image, by all that the tower is given for it and the digest of the tower."""
        plain = repr([(name, value) for name, value in self._named() if not isinstance(value, Tensor)])
        hashes = [hashlib.sha256(f"{digest} {plain}".encode()) for _ in self.sizes]
        for name, tensor in self._tensors():
            for known, part in zip(hashes, self._parts(name, tensor.detach().cpu()) or (), strict=True):
                known.update(f"{name} {part.dtype} {tuple(part.shape)}".encode())
                known.update(_bytes(part))
        return [known.hexdigest() for known in hashes]

    def only(self, images: Sequence[int]) -> _Call:
        """The call for some of the images."""

        def chosen(name: str, value: Any) -> Any:
            parts = self._parts(name, value) if isinstance(value, Tensor) else None
            return value if parts is None else torch.cat([parts[k] for k in images])

        arguments = tuple(chosen(str(k), value) for k, value in enumerate(self.arguments))
        options = {name: chosen(name, value) for name, value in self.options.items()}
        return _Call(arguments, options, tuple(self.sizes[k] for k in images))

    def few(self) -> _Call:
        """The call for a few images; for a single one, also for another that is made of it."""
        if len(self) > 1:
            return self.only(range(min(len(self), PROOF_IMAGES)))

        def two(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return torch.cat([value, -value if value.is_floating_point() else value])

        return _Call(tuple(map(two, self.arguments)), {n: two(v) for n, v in self.options.items()}, self.sizes * 2)

    def split(self, values: Sequence[Tensor]) -> list[list[Tensor]] | None:
        """What the tower returned for the images, image by image; ``None`` where it does not divide."""
        parts = [self._parts("", value) for value in values]
        return None if any(p is None for p in parts) else [list(image) for image in zip(*parts, strict=True)]

    def _named(self) -> list[tuple[str, Any]]:
        return [*((str(k), value) for k, value in enumerate(self.arguments)), *self.options.items()]

    def _tensors(self) -> list[tuple[str, Tensor]]:
        return [(name, value) for name, value in self._named() if isinstance(value, Tensor)]

    def _parts(self, name: str, tensor: Tensor) -> tuple[Tensor, ...] | None:
        """Those of each image, by its share of the first axis."""
        sizes, total = (1,) * len(self) if name == GRID else self.sizes, sum(self.sizes)
        total = len(self) if name == GRID else total
        if tensor.ndim == 0 or any(len(tensor) * size % total for size in sizes):
            return None
        return tensor.split([len(tensor) * size // total for size in sizes])


GRID = "grid_thw"
"""Argument of towers that take the patches of all images in one row: frames, rows and columns of each image."""


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _leaf(value: Any) -> Any:
    is_feature = isinstance(value, Tensor) and value.is_floating_point()
    return value.detach().clone().requires_grad_() if is_feature else value


def _close(together: Sequence[Tensor], alone: Sequence[Tensor]) -> bool:
    return all(
        one.shape == other.shape and float((one - other).abs().max()) <= _tolerance(one) * float(one.abs().max())
        for one, other in zip(together, alone, strict=True)
    )


def _tolerance(features: Tensor) -> float:
    device = features.device.type
    used = [features.dtype, *([torch.get_autocast_dtype(device)] if torch.is_autocast_enabled(device) else [])]
    tf32 = [TF32_TOLERANCE] if device == "cuda" and features.dtype == torch.float32 else []
    return max(*(TOLERANCE.get(dtype, 0.0) for dtype in used), 0.0, *tf32)


def _digest(tower: nn.Module, used: Sequence[int], structure: TreeSpec | None) -> str:
    """Of all that the output of a tower depends on beside the images; on any machine with the same libraries."""
    config: Any = getattr(tower, "config", None)
    known = {} if config is None else config.to_dict()
    settings = sorted((k, repr(v)) for k, v in known.items() if k[0] != "_" and k != "transformers_version")
    tensors = [*tower.named_parameters(), *tower.named_buffers()]
    device = tensors[0][1].device.type
    facts = [
        *(FORMAT, torch.__version__, transformers.__version__, device, type(tower).__module__, type(tower).__name__),
        *(torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32),
        *(torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)),
        *(settings, getattr(config, "_attn_implementation", None)),
        *(list(used), str(structure)),
    ]
    digest = hashlib.sha256(repr(facts).encode())
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor.detach().cpu()))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> Any:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _seconds(work: Callable[[], Any]) -> float:
    """Of the faster of two runs."""
    times = []
    for _ in range(2):
        begin = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return min(times)

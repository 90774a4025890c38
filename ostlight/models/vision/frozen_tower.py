"""A vision tower that is frozen: what of its work can be stored for each image, and whether that gives the same."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import transformers
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten
from transformers.modeling_layers import GradientCheckpointingLayer

from ostlight.influence.task import adapter_settings
from ostlight.models.flops import counted_apart
from ostlight.models.parts import is_projector
from ostlight.models.vision.feature_files import FeatureFiles
from ostlight.models.vision.features import frozen_state, replaced
from ostlight.models.vision.tower_call import TowerCall, bytes_of

log = logging.getLogger(__name__)

FORMAT = "1"
"""Of what is stored."""

MIN_PARAMETERS = 5_000_000
"""A smaller vision tower takes less time to run than its features to read."""

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.03, torch.float16: 0.005}
"""Largest difference of an image's features alone and among others, over the largest feature: rounding, by the least
precise type that is computed in."""
TF32_TOLERANCE = 5e-3
"""Of float32 on a GPU, whose convolutions may be rounded so."""

Forward = Callable[..., Any]
T = TypeVar("T")


class RefusedError(Exception):
    """Why a model's features cannot be stored, as the rest of a sentence about it."""


def vision_tower(core: Any, whole: Any) -> nn.Module | None:
    """The one part of a model that sees images, before any projector; ``None`` where it has no such part.

    Args:
        core: the model without its output layer.
        whole: with it.
    """
    towers = _towers(core, whole) if hasattr(core, "get_image_features") else []
    return towers[0] if len(towers) == 1 and _size(towers) >= MIN_PARAMETERS else None


def is_unknown(core: Any, whole: Any) -> bool:
    """Whether a model sees images, with parts that are large enough, and in another way than by one vision tower."""
    towers = _towers(core, whole) if isinstance(core, nn.Module) else []
    return _size(towers) >= MIN_PARAMETERS and (len(towers) > 1 or not hasattr(core, "get_image_features"))


def _towers(core: nn.Module, whole: Any) -> list[nn.Module]:
    decoder = whole.get_decoder()
    return [
        child
        for name, child in core.named_children()
        if not is_projector(name) and all(module is not decoder for module in child.modules())
        if next(child.parameters(), None) is not None
    ]


def _size(modules: Sequence[nn.Module]) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def tower_state(tower: nn.Module) -> tuple[Any, ...] | None:
    """What is stored depends on it beside the images; ``None`` where it may change."""
    if any(module.training for module in tower.modules()):
        return None  # dropout
    state = frozen_state([p for _, p in _parameters(tower)], list(tower.buffers()))
    return None if state is None else (len(trained_projectors(tower)), str(adapter_settings(tower)), *state)


def trained_projectors(tower: nn.Module) -> list[nn.Module]:
    """The projectors inside a tower (Qwen-VL's mergers), where one of them may be trained: then what they are given is
    stored, in the place of what the tower returns."""
    inside = list(_projectors(tower))
    return inside if any(p.requires_grad for module in inside for p in module.parameters()) else []


def _projectors(module: nn.Module) -> Iterator[nn.Module]:
    for name, child in module.named_children():
        if not is_projector(name):
            yield from _projectors(child)
        elif isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield child


def _parameters(tower: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Those that what is stored depends on."""
    others = {id(p) for module in trained_projectors(tower) for p in module.parameters()}
    return [(name, p) for name, p in tower.named_parameters() if id(p) not in others]


def is_followed(core: nn.Module, tower: nn.Module) -> bool:
    """Whether something follows what runs behind the tower, and would take a proof for a pass of the model."""
    behind = [child for name, child in core.named_children() if is_projector(name)]
    modules = [module for part in (*behind, *trained_projectors(tower)) for module in part.modules()]
    return any(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks for module in modules)


@dataclass
class FrozenTower:
    """What is known of a vision tower in one state.

    Attributes:
        refusal: why its features are not stored.
        is_proved: they are the same for an image alone and among others.
        digest: of all that they depend on beside the images.
        used: which of the tensors that the tower returns the model's features depend on.
        structure: of what it returns.
    """

    refusal: str | None = None
    is_proved: bool = False
    digest: str = ""
    used: list[int] = field(default_factory=list)
    structure: TreeSpec | None = None

    def refuse(self, error: RefusedError) -> None:
        """From here on its features are computed each time."""
        self.refusal, self.is_proved = str(error), False
        log.info(f"vision features are computed each time: the model {error}")

    def prove(self, module: nn.Module, forward: Forward, features: Callable[[], Any], files: FeatureFiles) -> int:
        """Finds out which outputs are used, and compares what is computed for images alone, for images together, and
        with what is stored.

        Args:
            module: the tower.
            forward: its own.
            features: computes those of a batch.
            files: to compare the time of reading with that of computing.

        Returns:
            the FLOPs of features that were stored.

        Raises:
            RefusedError: they differ, or the tower is not called once with tensors that divide by image.
        """
        rows = self._watch(module, forward, features).few()
        together = rows.split(self.compute(module, forward, rows))
        singles = [rows.only([k]) for k in range(len(rows))]
        with counted_apart() as counter:
            alone, computing = _timed(lambda: [self.compute(module, forward, single) for single in singles])
        if together is None:
            raise RefusedError("has a vision tower whose features do not divide by image")
        if not all(map(_are_close, together, alone)):
            raise RefusedError("gives an image other features among others than alone")
        if trained_projectors(module):
            self._check_outputs(module, forward, rows, alone)
        self.digest = _digest(module, self.used, self.structure)
        keys = [single.keys(self.digest)[0] for single in singles]
        stored = [files.put(key, values) for key, values in zip(keys, alone, strict=True)]
        _, reading = _timed(lambda: [files.get(single.keys(self.digest)[0]) for single in singles])
        # Where nothing more fits, what is there may be worth reading.
        if all(stored) and not worth_reading(reading, computing):
            each = (1000 * t / len(singles) for t in (reading, computing))
            raise RefusedError("takes {:.2g} ms to read those of an image and {:.2g} ms to compute them".format(*each))
        self.is_proved = True
        return counter.total

    def compute(self, module: nn.Module, forward: Forward, call: TowerCall) -> list[Tensor]:
        """What is stored of the images of a call, in tensors of all of them."""
        given: list[Tensor] = []
        with torch.no_grad(), _without_autocast_cache(), ExitStack() as stack:
            inside = trained_projectors(module)
            for projector in inside:
                hook = projector.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
                stack.callback(hook.remove)
            values, structure = tree_flatten(forward(*call.arguments, **call.options))
        if structure != self.structure or len(given) != len(inside):
            raise RefusedError("has a vision tower whose output has several forms")
        return [value.detach() for value in (given if inside else [values[k] for k in self.used])]

    def outputs(self, module: nn.Module, forward: Forward, call: TowerCall, images: Sequence[Sequence[Tensor]]) -> Any:
        """What the tower returns for the images of a call; what features do not depend on is left out.

        Args:
            images: what was stored of each.
        """
        assert self.structure is not None, "proved"
        values: list[Tensor | None] = [None] * self.structure.num_leaves
        for k, value in zip(self.used, self._used_outputs(module, forward, call, images), strict=True):
            values[k] = value
        return tree_unflatten(values, self.structure)

    def _used_outputs(
        self, module: nn.Module, forward: Forward, call: TowerCall, images: Sequence[Sequence[Tensor]]
    ) -> list[Tensor]:
        joined = [torch.cat([part.to(call.device) for part in parts]) for parts in zip(*images, strict=True)]
        inside, stored = trained_projectors(module), iter(joined)
        if not inside:
            return joined
        with ExitStack() as stack:
            for block in _blocks(module, inside):
                stack.enter_context(replaced(block, "forward", _unchanged))
            for projector in inside:  # called in the order in which their inputs were stored
                hook = projector.register_forward_pre_hook(lambda _, inputs: (next(stored), *inputs[1:]))
                stack.callback(hook.remove)
            values, _ = tree_flatten(forward(*call.arguments, **call.options))
        return [values[k] for k in self.used]

    def _watch(self, module: nn.Module, forward: Forward, features: Callable[[], Any]) -> TowerCall:
        """Computes features once, and notes the call of the tower and what they depend on."""
        calls: list[TowerCall | None] = []
        outputs: list[Any] = []

        def watched(*arguments: Any, **options: Any) -> Any:
            calls.append(TowerCall.of(arguments, options))
            with torch.no_grad(), _without_autocast_cache():
                values, self.structure = tree_flatten(forward(*arguments, **options))
            outputs[:] = [_leaf(value) for value in values]
            return tree_unflatten(outputs, self.structure)

        with torch.enable_grad(), replaced(module, "forward", watched):
            made = [v for v in tree_flatten(features())[0] if isinstance(v, Tensor) and v.grad_fn is not None]
            sums = [v.float().sum() for v in made]
        if len(calls) != 1:
            raise RefusedError(f"calls its vision tower {len(calls)} times for a batch")
        if calls[0] is None or not made:
            raise RefusedError("gives its vision tower inputs that do not divide by image")
        if any(isinstance(v, Tensor) and not v.is_floating_point() for v in outputs):
            raise RefusedError("has a vision tower that returns more than features")
        tracked = [k for k, value in enumerate(outputs) if isinstance(value, Tensor)]
        found = torch.autograd.grad(sums, [outputs[k] for k in tracked], allow_unused=True)
        self.used = [k for k, gradient in zip(tracked, found, strict=True) if gradient is not None]
        return calls[0]

    def _check_outputs(
        self, module: nn.Module, forward: Forward, rows: TowerCall, images: Sequence[Sequence[Tensor]]
    ) -> None:
        """Raises:
        RefusedError: what is stored does not give what the tower returns.
        """
        with torch.no_grad(), _without_autocast_cache():
            own, _ = tree_flatten(forward(*rows.arguments, **rows.options))
            try:
                made = self._used_outputs(module, forward, rows, images)
            except Exception as error:  # blocks that are called in another way
                raise RefusedError(f"has a vision tower whose blocks cannot be left out: {error}") from error
        if not _are_close([own[k] for k in self.used], made):
            raise RefusedError("has a vision tower whose blocks cannot be left out")


def worth_reading(reading: float, computing: float) -> bool:
    """Whether stored features save time, by the seconds of both."""
    return reading < computing


def _blocks(tower: nn.Module, without: Sequence[nn.Module]) -> list[nn.Module]:
    others = {id(module) for part in without for module in part.modules()}
    return [m for m in tower.modules() if isinstance(m, GradientCheckpointingLayer) and id(m) not in others]


def _unchanged(states: Tensor, *_: Any, **__: Any) -> Tensor:
    return states


def _leaf(value: Any) -> Any:
    is_feature = isinstance(value, Tensor) and value.is_floating_point()
    return value.detach().clone().requires_grad_() if is_feature else value


def _are_close(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return all(
        one.shape == other.shape and float((one - other).abs().max()) <= _tolerance(one) * float(one.abs().max())
        for one, other in zip(some, others, strict=True)
    )


def _tolerance(features: Tensor) -> float:
    device = features.device.type
    used = [features.dtype, *([torch.get_autocast_dtype(device)] if torch.is_autocast_enabled(device) else [])]
    tf32 = [TF32_TOLERANCE] if device == "cuda" and features.dtype == torch.float32 else []
    return max(*(TOLERANCE.get(dtype, 0.0) for dtype in used), 0.0, *tf32)


def _digest(tower: nn.Module, used: Sequence[int], structure: TreeSpec | None) -> str:
    """Of all that what is stored depends on beside the images; the same on any machine with the same libraries."""
    config: Any = getattr(tower, "config", None)
    known = {} if config is None else config.to_dict()
    settings = sorted((k, repr(v)) for k, v in known.items() if k[0] != "_" and k != "transformers_version")
    tensors = [*_parameters(tower), *tower.named_buffers()]
    device = tensors[0][1].device.type
    facts = [
        *(FORMAT, torch.__version__, transformers.__version__, device, type(tower).__module__, type(tower).__name__),
        *(torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32),
        *(torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)),
        *(settings, getattr(config, "_attn_implementation", None)),
        *(list(used), str(structure), len(trained_projectors(tower)), *adapter_settings(tower)),
    ]
    digest = hashlib.sha256(repr(facts).encode())
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(bytes_of(tensor.detach().cpu()))
    return digest.hexdigest()


@contextmanager
def _without_autocast_cache() -> Iterator[None]:
    """Or weights of a projector that are cast here would be without a gradient in the pass around (older torch)."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    """What the work returns, and its seconds."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    begin = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - begin

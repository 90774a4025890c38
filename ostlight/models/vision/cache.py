"""Features of single images, computed once while the vision tower is frozen and stored on disk for every stage.

What is stored is what a model's vision tower returns, as far as the features depend on it, or what the projectors
inside it are given, so that a projector may be trained. The key is a hash of the tower's weights and of all that it is
given for the image.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial, wraps
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ostlight.data.remote_cache import cache_folder
from ostlight.errors import DataError
from ostlight.influence.parameters import unwrapped
from ostlight.models.flops import counted_apart
from ostlight.models.vision.feature_files import FeatureFiles
from ostlight.models.vision.features import replaced
from ostlight.models.vision.frozen_tower import (
    Forward,
    FrozenTower,
    RefusedError,
    is_followed,
    is_unknown,
    tower_state,
    trained_projectors,
    vision_tower,
)
from ostlight.models.vision.tower_call import TowerCall
from ostlight.ranks import is_first_rank

log = logging.getLogger(__name__)

MOST_STATES = 4
"""Of one tower that are known at a time: with and without autocast, on one device and another."""


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
        self._unknown: set[type] = set()
        self._towers: WeakKeyDictionary[nn.Module, dict[Any, FrozenTower]] = WeakKeyDictionary()

    @contextmanager
    def used(self, model: nn.Module) -> Iterator[None]:
        """Inside, a forward pass of the model takes the features of the images that are stored, and stores those that
        are not; where the tower is not frozen, or the model not made that way, it computes all of them."""
        whole = unwrapped(model)
        core: Any = getattr(whole, "model", None)
        module = vision_tower(core, whole)
        if module is None and type(whole) not in self._unknown and is_unknown(core, whole):
            self._unknown.add(type(whole))
            log.info(f"vision features are computed each time: {type(whole).__name__} has not one vision tower alone")
        state = None if module is None or torch.is_inference_mode_enabled() else tower_state(module)
        if module is None or state is None:
            yield
            return
        states = self._towers.setdefault(module, {})
        if state not in states and len(states) >= MOST_STATES:
            states.clear()
        tower = states.setdefault(state, FrozenTower())
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

    def _proving(self, tower: FrozenTower, core: Any, module: nn.Module) -> Callable[..., Any]:
        """What computes features in the place of the model's own: proves first that they can be stored."""
        features, forward = core.get_image_features, module.forward

        @wraps(features)
        def proved(*arguments: Any, **options: Any) -> Any:
            is_followed_now = is_followed(core, module)
            if not tower.is_proved and not is_followed_now:
                try:
                    with counted_apart():
                        flops = tower.prove(module, forward, lambda: features(*arguments, **options), self.files)
                    self.flops += flops
                except RefusedError as refused:
                    tower.refuse(refused)
            # Projectors inside the tower run twice for images that are not stored.
            if not tower.is_proved or (is_followed_now and trained_projectors(module)):
                return features(*arguments, **options)
            with replaced(module, "forward", partial(self._outputs, tower, module, forward)):
                return features(*arguments, **options)

        return proved

    def _outputs(self, tower: FrozenTower, module: nn.Module, forward: Forward, *arguments: Any, **options: Any) -> Any:
        """What the tower returns, for images that are stored and others."""
        with replaced(module, "forward", forward):
            call = TowerCall.of(arguments, options)
            if call is None or tower.refusal is not None:
                return forward(*arguments, **options)
            try:
                return tower.outputs(module, forward, call, self._images(tower, module, forward, call))
            except RefusedError as refused:
                tower.refuse(refused)
                return forward(*arguments, **options)

    def _images(self, tower: FrozenTower, module: nn.Module, forward: Forward, call: TowerCall) -> list[list[Tensor]]:
        """What is stored of each image; what is not is computed, and stored."""
        keys = call.keys(tower.digest)
        found = {key: self.files.get(key) for key in dict.fromkeys(keys)}
        missing = [key for key, stored in found.items() if stored is None]
        if missing:
            part = call.only([keys.index(key) for key in missing])
            before = time.perf_counter()
            with counted_apart() as counter:
                values = part.split(tower.compute(module, forward, part))
            self.flops += counter.total
            self.seconds += time.perf_counter() - before
            if values is None:
                raise RefusedError("gives features that do not divide by image")
            for key, value in zip(missing, values, strict=True):
                self.files.put(key, value)
                found[key] = value
        self.reused += len(keys) - len(missing)
        self.computed += len(missing)
        return [found[key] or [] for key in keys]


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

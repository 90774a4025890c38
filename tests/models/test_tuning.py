"""Checkpointed blocks keep less for the backward pass, and change nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from ostlight.config.schema import Lora, Target
from ostlight.digitmath.model import checkpoint
from ostlight.errors import ConfigError
from ostlight.models.module import MultimodalModel
from ostlight.models.tuning import prepared


def bytes_kept(work: Callable[[], torch.Tensor]) -> tuple[int, torch.Tensor]:
    kept: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = work()
    return sum(kept), result


def test_checkpointed_blocks_keep_less_and_give_the_same_gradients(samples):
    found: list[Any] = []
    for checkpointed in (False, True):
        settings = Target(path=str(checkpoint("target")), gradient_checkpointing=checkpointed)
        model = MultimodalModel.load(settings, "target")
        batch = model.batches(samples("pool")[:6], 10_000)[0]
        size, loss = bytes_kept(lambda model=model, batch=batch: model.losses(batch).sum())
        loss.backward()
        found.append((size, [p.grad for p in model.parameters()]))
    assert found[1][0] < 0.5 * found[0][0]
    pairs = zip(found[0][1], found[1][1], strict=True)
    assert all(one is other is None or torch.equal(one, other) for one, other in pairs)


def test_a_model_without_blocks_is_refused():
    with pytest.raises(ConfigError, match="gradient_checkpointing: Linear has no block that can be checkpointed"):
        prepared(nn.Linear(2, 2), Target(gradient_checkpointing=True))


def test_adapters_begin_the_same_each_time():
    def adapters() -> list[torch.Tensor]:
        model = MultimodalModel.load(Target(path=str(checkpoint("target")), lora=Lora(rank=2)), "target")
        return list(model.trained.values())

    one, other = adapters(), adapters()
    assert len(one) > 2
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))

"""The output layer runs at answer positions alone, and the losses are those of all positions."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_families
import torch

from ostlight.config.schema import Lora, Model, Target
from ostlight.models import logits as model_logits
from ostlight.models.logits import answer_logits
from ostlight.models.losses import IGNORED
from ostlight.models.module import MultimodalModel


def rows_of_head(model: MultimodalModel, seen: list[int]) -> None:
    """Notes the positions of each call of the output layer."""
    head = model.model.get_output_embeddings()
    head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))


def test_adapters_leave_positions_out_too(tmp_path: Path) -> None:
    settings = Target(path=str(tiny_families.save("llama", tmp_path)), dtype="float64", lora=Lora(rank=2))
    model, seen = MultimodalModel.load(settings, "target"), []
    (batch,) = model.batches(tiny_families.samples("llama"), 100_000)
    rows_of_head(model, seen)
    model.losses(batch)
    assert seen[0] < batch.labels.shape[1] - 1


def test_a_model_that_cannot_leave_positions_out_gives_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = MultimodalModel.load(Model(path=str(tiny_families.save("llama", tmp_path)), dtype="float64"), "proxy")
    (batch,) = model.batches(tiny_families.samples("llama"), 100_000)
    losses = model.losses(batch)
    monkeypatch.setattr(model_logits, "_keeps_logits", lambda kind: False)
    logits, labels = answer_logits(model.model, batch)
    assert logits.shape[:2] == labels.shape == (len(batch), batch.labels.shape[1] - 1)
    assert torch.allclose(model.losses(batch), losses, rtol=1e-12, atol=0)


def test_a_batch_without_an_answer_has_no_loss(tmp_path: Path) -> None:
    model = MultimodalModel.load(Model(path=str(tiny_families.save("llama", tmp_path))), "proxy")
    (batch,) = model.batches(tiny_families.samples("llama"), 100_000)
    batch.labels = torch.full_like(batch.labels, IGNORED)
    assert bool(model.losses(batch).isnan().all())

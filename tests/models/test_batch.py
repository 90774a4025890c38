"""A batch holds its images once, also when it goes to another process."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import tiny_families
import torch
from torch.utils.data import DataLoader, Dataset

from ostlight.config.schema import Model
from ostlight.models.batch import Batch
from ostlight.models.encoding.encoder import SEQUENCE_KEYS, Encoded
from ostlight.models.module import MultimodalModel

FAMILIES = ["qwen2_5_vl", "smolvlm", "llava_next", "mllama", "llama"]


class One(Dataset[Batch]):
    """A batch, as a worker process makes it."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return 1

    def __getitem__(self, k: int) -> Batch:
        return self.batch


@pytest.fixture(params=FAMILIES)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[list[Encoded], Batch]:
    """Samples encoded alone, and their batch."""
    name = request.param
    settings = Model(path=str(tiny_families.save(name, tmp_path)), dtype="float32")
    model, samples = MultimodalModel.load(settings, "proxy"), tiny_families.samples(name)
    encoded = [model.encoder.encode(sample) for sample in samples]
    return encoded, model.collator.batch(samples, encoded)


def same(found: Batch, expected: list[Encoded]) -> bool:
    """Whether the batch holds these samples, value by value and in the same order of inputs."""
    return all(
        list(one.inputs) == list(own.inputs)
        and all(torch.equal(one.inputs[k], own.inputs[k]) for k in own.inputs)
        and torch.equal(one.labels, own.labels)
        and one.answer_cut == own.answer_cut
        for one, own in zip(found.encoded, expected, strict=True)
    )


def shares(batch: Batch) -> bool:
    """Whether each sample's image tensors lie in the batch's."""
    return all(
        tensor.untyped_storage().data_ptr() == batch.inputs[key].untyped_storage().data_ptr()
        for one in batch.encoded
        for key, tensor in one.inputs.items()
        if key not in SEQUENCE_KEYS
    )


def test_images_are_held_once(made: tuple[list[Encoded], Batch]) -> None:
    encoded, batch = made
    assert same(batch, encoded)
    assert shares(batch)
    one_by_one = list(batch.singles())
    assert [same(single, [own]) for single, own in zip(one_by_one, encoded, strict=True)] == [True] * len(encoded)
    assert same(Batch.together(one_by_one), encoded)


def test_images_are_held_once_in_another_process(made: tuple[list[Encoded], Batch]) -> None:
    encoded, batch = made
    (received,) = DataLoader(One(batch), batch_size=None, num_workers=1)
    assert list(received.inputs) == list(batch.inputs)
    assert all(torch.equal(received.inputs[k], batch.inputs[k]) for k in batch.inputs)
    assert torch.equal(received.labels, batch.labels)
    assert same(received, encoded)
    assert shares(received)
    assert same(copy.deepcopy(received), encoded)

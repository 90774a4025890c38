"""Worker processes read what one process would, and a model that waits for them says so."""

from __future__ import annotations

import os

import pytest
import torch

from ostlight.config.schema import Compute
from ostlight.data.pool import Pool
from ostlight.models import read_ahead
from ostlight.models.encoding.encoder import QuestionEncoder
from ostlight.models.read_ahead import Waited, worker_count


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch):
    """So many cores, with or without an accelerator, and no variable that says otherwise."""

    def there_are(count: int, accelerator: bool = False) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(count)), raising=False)
        monkeypatch.setattr(torch.accelerator, "is_available", lambda *_: accelerator)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
        monkeypatch.setattr(read_ahead, "_free_shared_memory", lambda: 2.0**40)

    return there_are


MANY = 1_000_000


@pytest.mark.parametrize(
    ("count", "accelerator", "devices", "samples", "expected"),
    [
        (16, True, 1, MANY, 8),
        (6, True, 1, MANY, 5),
        (64, True, 8, MANY, 7),
        (4, True, 8, MANY, 0),
        (16, False, 1, MANY, 4),
        (2, False, 1, MANY, 0),
        (16, True, 1, 500, 2),
        (16, True, 1, 50, 0),
    ],
)
def test_workers_follow_cores_devices_and_samples(cores, count, accelerator, devices, samples, expected):
    cores(count, accelerator)
    assert worker_count(Compute(devices=devices), samples) == expected


def test_no_more_than_shared_memory_holds(cores, monkeypatch):
    cores(16, accelerator=True)
    monkeypatch.setattr(read_ahead, "_free_shared_memory", lambda: 64e6)  # of a container, unless told otherwise
    assert worker_count(Compute(), MANY) == 0
    assert worker_count(Compute(), MANY, item_bytes=10e6) == 3
    monkeypatch.setattr(read_ahead, "_free_shared_memory", lambda: 8 * 2.0**30)
    assert worker_count(Compute(devices=2), MANY, item_bytes=2.0**30) == 2


def test_a_number_is_taken_as_it_is(cores):
    cores(2)
    assert [worker_count(Compute(workers=n), 1) for n in (0, 3)] == [0, 3]


def test_ranks_and_tasks_that_share_a_machine_share_its_cores(cores, monkeypatch):
    cores(64, accelerator=True)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert worker_count(Compute(), MANY) == 3
    cores(64)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert worker_count(Compute(), MANY) == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_records_come_in_order_with_what_cannot_be_used(digits, proxy, workers):
    model, pool = proxy("float32"), Pool.open(digits.pool)
    model.encoder.max_length = sorted(len(model.encoder.encode(pool[k])) for k in range(48))[24]
    positions = [*range(47, 0, -3), *range(0, 47, 5)]
    found = list(read_ahead.read_ahead(pool, positions, model.encoder, model.collator, workers))
    rejected = [p for chunk in found for p in chunk.rejections]
    samples = [s for chunk in found for s in chunk.batch.samples]
    assert [s.position for s in samples] == [p for p in positions if p not in rejected]
    assert {error.reason for chunk in found for error in chunk.rejections.values()} <= {"all_masked", "image_cut"}
    for sample, encoded in zip(samples, (e for chunk in found for e in chunk.batch.encoded), strict=True):
        expected = model.encoder.encode(sample)
        assert all(torch.equal(encoded.inputs[k], v) for k, v in expected.inputs.items())
        assert encoded.answer_cut == expected.answer_cut


def test_prompts_are_read_by_workers_too(digits, proxy):
    model, pool = proxy("float32"), Pool.open(digits.test)
    (first, *_) = read_ahead.read_ahead(pool, range(8), QuestionEncoder(model.encoder), model.collator, 1)
    for sample, encoded in zip(first.batch.samples, first.batch.encoded, strict=True):
        assert torch.equal(encoded.inputs["input_ids"], model.encoder.encode_prompt(sample).inputs["input_ids"])


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch):
    """Seconds that pass only when they are told to."""

    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr(read_ahead, "time", clock)
    return clock


def run(clock, wait: float, work: float, batches: int, workers: int = 2) -> Waited[int]:
    def made():
        for k in range(batches):
            clock.now += wait
            yield k

    waited = Waited(made(), "train", workers)
    for _ in waited:
        clock.now += work
    return waited


@pytest.mark.parametrize("torchvision", [True, False])
def test_the_share_of_the_time_is_told_early_and_at_the_end(clock, logged, monkeypatch, torchvision):
    monkeypatch.setattr(read_ahead, "is_torchvision_available", lambda: torchvision)
    waited = run(clock, wait=3.0, work=1.0, batches=100)
    assert waited.share == pytest.approx(0.75, abs=0.01)
    assert logged().splitlines() == [
        f"train: waits for data {share} of the time: 2 processes read; about 8 would keep up (compute.workers); "
        f"smaller images{'' if torchvision else ', or torchvision,'} help too"
        for share in ("75%", "75%")
    ]


def test_a_model_that_is_kept_busy_or_a_short_run_says_nothing(clock, logged):
    assert run(clock, wait=0.01, work=1.0, batches=100).share < 0.02
    assert run(clock, wait=1.0, work=0.1, batches=5).share > 0.5
    assert logged() == ""


def test_the_first_batch_does_not_count(clock):
    assert run(clock, wait=30.0, work=1.0, batches=1).waited_s == 0

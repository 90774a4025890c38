"""Which samples make up each step."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ostlight.config import load_config
from ostlight.config.schema import Compute, Training
from ostlight.data.pool import Pool
from ostlight.errors import BadRecord
from ostlight.models.batch import TrainingStep
from ostlight.models.cost import StageCost
from ostlight.models.module import MultimodalModel
from ostlight.training.fit import TrainingJob, _KeepsUnusable, fit
from ostlight.training.steps import EncodedPool, StepDataset, StepLoader, plan_steps


def test_an_epoch_sees_every_sample_once():
    plan = plan_steps(50, Training(epochs=1, batch_size=16), seed=0)
    assert [len(p) for p in plan] == [16, 16, 16, 2]
    assert sorted(np.concatenate(plan).tolist()) == list(range(50))


def test_steps_go_round_as_often_as_it_takes():
    plan = plan_steps(10, Training(steps=7, batch_size=4), seed=0)
    assert [len(p) for p in plan] == [4] * 7
    seen = np.concatenate(plan)
    assert sorted(seen[:10].tolist()) == sorted(seen[10:20].tolist()) == list(range(10))
    assert seen[:10].tolist() != seen[10:20].tolist()


def test_the_order_depends_on_the_seed_alone():
    same = [np.concatenate(plan_steps(30, Training(), seed=s)).tolist() for s in (1, 1, 2)]
    assert same[0] == same[1] != same[2]


def test_ranks_share_a_step(proxy, digits):
    model = proxy("float32")
    data = EncodedPool(Pool.open(digits.pool), range(48), model.encoder)
    plan = plan_steps(48, Training(batch_size=8), seed=0)
    steps = StepDataset(data, plan, model.collator, 4096)
    steps.world_size = 2
    parts = []
    for rank in range(2):
        steps.rank = rank
        parts.append(steps[0])
    ids = [{s.id for micro in part.micro_batches for s in micro.samples} for part in parts]
    assert len(ids[0] | ids[1]) == 8
    assert not ids[0] & ids[1]
    assert all(part.weight == pytest.approx(2 / 8) for part in parts)


def test_micro_batches_keep_to_the_token_budget(proxy, digits):
    model = proxy("float32")
    data = EncodedPool(Pool.open(digits.pool), range(48), model.encoder)
    step = StepDataset(data, [np.arange(16)], model.collator, tokens_per_batch=100)[0]
    assert sum(len(m) for m in step.micro_batches) == 16
    assert len(step.micro_batches) > 1
    assert all(m.labels.numel() <= 100 for m in step.micro_batches)


@pytest.fixture
def broken_pool(digits, tmp_path) -> Pool:
    """40 records, every fifth without an answer; of the others one in four has a long one."""
    records = pq.read_table(digits.pool).to_pylist()[:40]
    for k, record in enumerate(records):
        if k % 5 == 3:
            record["conversations"] = record["conversations"][:1]
        elif k % 4 == 0:
            record["conversations"][-1]["value"] += " and so on" * 40
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "pool.parquet")
    return Pool.open(tmp_path / "pool.parquet")


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_make_the_same_steps_and_tell_what_they_found(broken_pool, proxy, workers):
    model = proxy("float32")
    model.encoder.max_length = 60
    data = EncodedPool(broken_pool, range(40), model.encoder)
    plan = plan_steps(40, Training(epochs=2, batch_size=8), seed=0)
    expected = StepDataset(EncodedPool(broken_pool, range(40), model.encoder), plan, model.collator, 300)
    loader = StepLoader(StepDataset(data, plan, model.collator, 300), 1, Compute(workers=workers))
    found = list(loader)
    assert len(found) == len(plan) - 1
    for step, k in zip(found, range(1, len(plan)), strict=True):
        assert_equal(step, expected[k])
    seen = {int(p) for p in np.concatenate(plan)}
    assert data.rejections.keys() == {p for p in seen if p % 5 == 3}
    assert data.cut == expected.data.cut
    assert data.cut
    other = StepDataset(data.select(range(1, 30)), plan_steps(29, Training(), seed=0), model.collator, 300)
    assert StepLoader(other, 0, Compute(workers=2)).workers == 0, "all is cached"


def test_what_workers_send_is_cached_as_far_as_there_is_memory(broken_pool, proxy):
    model = proxy("float32")
    data = EncodedPool(broken_pool, range(40), model.encoder)
    size = max(model.encoder.encode(broken_pool[k]).nbytes for k in (0, 1, 2))
    data._free_bytes[0] = 8 * size
    assert len(data.usable("test", model.collator, workers=1)) == 32
    assert 0 < len(data._cache) < 32
    assert sum(encoded.nbytes for _, encoded in data._cache.values()) < 9 * size
    alone = EncodedPool(broken_pool, range(40), model.encoder)
    assert alone.usable("test").positions.tolist() == data.usable("test").positions.tolist()
    for position, (_, encoded) in data._cache.items():
        own = alone._cache[position][1]
        assert all(torch.equal(encoded.inputs[k], v) for k, v in own.inputs.items())
        assert all(v.untyped_storage().nbytes() == v.nbytes for v in encoded.inputs.values() if v.is_floating_point())


def assert_equal(one: TrainingStep, other: TrainingStep) -> None:
    assert one.weight == other.weight
    assert len(one.micro_batches) == len(other.micro_batches)
    for mine, theirs in zip(one.micro_batches, other.micro_batches, strict=True):
        assert [s.id for s in mine.samples] == [s.id for s in theirs.samples]
        assert torch.equal(mine.labels, theirs.labels)
        assert all(torch.equal(mine.inputs[k], v) for k, v in theirs.inputs.items())
    assert one.rejections.keys() == other.rejections.keys()
    assert one.cut == other.cut


def test_the_smallest_share_of_an_epoch_is_one_sample():
    assert [len(step) for step in plan_steps(4, Training(epochs=0.1), seed=0)] == [1]


def test_the_logged_loss_is_that_of_the_usable_samples(settings, tmp_path, monkeypatch):
    config = load_config(settings(compute={**settings()["compute"], "logger": "csv"}))
    model = MultimodalModel.load(config.target, "target")
    pool = Pool.open(config.pool.path)
    encoded = [model.encoder.encode(sample) for _, sample in pool.read(range(16))]
    answers = sorted(int((one.labels != -100).nonzero()[0, 0]) for one in encoded)
    model.encoder.max_length = answers[8]  # about half of the samples have no answer token left
    model.training_settings = Training(epochs=1, batch_size=4, lr=1e-12, warmup=0, schedule="constant")
    expected, logged = [], []
    plain = MultimodalModel.training_step

    def watched(self, step, index):
        with torch.no_grad():
            losses = [self.losses(batch) for batch in step.micro_batches]
        expected.append(float(torch.cat(losses).mean()) if losses else None)
        found = plain(self, step, index)
        logged.append(float(found) if losses else None)
        return found

    monkeypatch.setattr(MultimodalModel, "training_step", watched)
    job = TrainingJob(config.compute, tmp_path, "train", 0)
    rejected = fit(model, EncodedPool(pool, range(16), model.encoder), job, StageCost("train"))
    assert 0 < len(rejected) < 16
    assert [loss is None for loss in logged] == [loss is None for loss in expected]
    pairs = [pair for pair in zip(logged, expected, strict=True) if None not in pair]
    assert pairs
    assert all(one == pytest.approx(other, rel=1e-4) for one, other in pairs)


def test_a_training_that_resumes_knows_what_could_not_be_used_before(proxy, digits, tmp_path):
    encoder = proxy("float32").encoder
    before, after = (EncodedPool(Pool.open(digits.pool), range(48), encoder) for _ in range(2))
    before.rejections |= {3: BadRecord("too_long", "of 9 tokens", "turns"), 7: BadRecord("no_answer", "none")}
    before.cut.add(5)
    torch.save(_KeepsUnusable(before).state_dict(), tmp_path / "state")
    _KeepsUnusable(after).load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert {p: (e.reason, e.detail, e.field) for p, e in after.rejections.items()} == {
        3: ("too_long", "of 9 tokens", "turns"),
        7: ("no_answer", "none", None),
    }
    assert after.cut == {5}


@pytest.mark.parametrize(
    ("dtype", "precision", "warns"), [("bfloat16", "32-true", True), ("float32", "bf16-mixed", False)]
)
def test_training_in_half_precision_is_warned_of(settings, tmp_path, logged, dtype, precision, warns):
    config = load_config(settings(), f"target.dtype={dtype}", f"compute.precision={precision}")
    model = MultimodalModel.load(config.target, "target", Training(steps=1, batch_size=2))
    pool = Pool.open(config.pool.path)
    fit(
        model,
        EncodedPool(pool, range(4), model.encoder),
        TrainingJob(config.compute, tmp_path, "train", 0),
        StageCost("train"),
    )
    assert ("the trained weights are in half precision" in logged()) == warns

"""Which samples make up each step."""

from __future__ import annotations

import numpy as np
import pytest

from ostlight.config.schema import Training
from ostlight.data.pool import Pool
from ostlight.training.steps import EncodedPool, StepDataset, plan_steps


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

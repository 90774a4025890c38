"""The loss against its definition, and that it does not see its neighbours."""

from __future__ import annotations

import pytest
import torch

from ostlight.models.batch import Batch, by_token_budget
from ostlight.models.losses import IGNORED, per_sample_losses


def test_it_is_the_mean_cross_entropy_over_answer_tokens():
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 7, dtype=torch.float64)
    labels = torch.tensor([[IGNORED, IGNORED, 3, 4, IGNORED], [IGNORED, 1, 2, 3, 6]])
    log_p = logits.log_softmax(-1)
    first = -(log_p[0, 1, 3] + log_p[0, 2, 4]) / 2
    second = -(log_p[1, 0, 1] + log_p[1, 1, 2] + log_p[1, 2, 3] + log_p[1, 3, 6]) / 4
    assert torch.allclose(per_sample_losses(logits, labels), torch.stack([first, second]), rtol=1e-14)


def test_a_sample_without_answer_tokens_has_no_loss():
    labels = torch.tensor([[IGNORED, IGNORED], [IGNORED, 1]])
    losses = per_sample_losses(torch.zeros(2, 2, 4), labels)
    assert losses[0].isnan()
    assert losses[1] == pytest.approx(torch.tensor(4.0).log())


@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-12), ("float32", 1e-5)])
def test_losses_do_not_depend_on_batch_padding_or_order(proxy, samples, dtype: str, bound: float):
    model = proxy(dtype)
    pool = samples("pool")[:16]
    encoded = [model.encoder.encode(s) for s in pool]
    with torch.no_grad():
        alone = torch.cat([model.losses(model.collator.batch([s], [e])) for s, e in zip(pool, encoded, strict=True)])
        for side in ("left", "right"):
            model.collator.side = side
            for size in (3, 16):
                order = torch.randperm(16, generator=torch.Generator().manual_seed(size)).tolist()
                got = torch.empty_like(alone)
                for start in range(0, 16, size):
                    rows = order[start : start + size]
                    batch: Batch = model.collator.batch([pool[i] for i in rows], [encoded[i] for i in rows])
                    got[rows] = model.losses(batch)
                assert float((got - alone).abs().max() / alone.median()) < bound, (side, size)


def test_token_budget_groups_hold_and_cover():
    lengths = [5, 9, 3, 40, 8, 8, 2, 7]
    groups = by_token_budget(lengths, 24)
    assert sorted(i for g in groups for i in g) == list(range(8))
    for group in groups:
        assert len(group) == 1 or max(lengths[i] for i in group) * len(group) <= 24
    assert [3] in groups

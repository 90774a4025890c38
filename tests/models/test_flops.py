"""FLOPs are those torch's own counter finds."""

from __future__ import annotations

import pytest
import tiny_families
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ostlight.config.schema import Model
from ostlight.models.flops import FlopCounter
from ostlight.models.module import MultimodalModel


def test_a_matrix_product_takes_two_for_every_pair():
    with FlopCounter() as counter:
        torch.randn(3, 5) @ torch.randn(5, 7)
        torch.randn(3, 5) + 1
    assert counter.total == 2 * 3 * 5 * 7


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_as_torchs_own_counter(proxy, samples, mode):
    model = proxy("float32")
    batch = next(iter(model.batches(samples("pool")[:6], tokens_per_batch=4096)))
    convolution = nn.Conv2d(3, 4, 3)
    pixels = torch.randn(2, 3, 9, 9)

    def work() -> None:
        with mode():
            loss = model.losses(batch).sum() + convolution(pixels).sum()
            nn.functional.linear(pixels, torch.randn(9, 9))
        if loss.requires_grad:
            loss.backward()

    with sdpa_kernel(SDPBackend.MATH):  # theirs does not know the fused attention of CPUs
        with FlopCounterMode(display=False) as theirs:
            work()
        with FlopCounter() as ours:
            work()
            work()
    assert ours.total == 2 * theirs.get_total_flops() > 0


def test_fused_attention_of_cpus_counts_as_that_of_gpus():
    query = torch.randn(2, 4, 5, 8, requires_grad=True)
    key = value = torch.randn(2, 4, 7, 8)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION), FlopCounter() as counter:
        out = nn.functional.scaled_dot_product_attention(query, key, value)
        forward = counter.total
        out.sum().backward()
    product = 2 * 2 * 4 * 5 * 7 * 8
    assert forward == 2 * product
    assert counter.total - forward == 5 * product, "the scores are computed again"


def test_grouped_products_of_experts_count_as_a_loop_over_them(tmp_path):
    model = MultimodalModel.load(Model(path=str(tiny_families.save("qwen3_vl_moe", tmp_path))), "proxy")
    (batch,) = model.batches(tiny_families.samples("qwen3_vl_moe"), 100_000)
    found = []
    for implementation in ("eager", "grouped_mm"):
        model.model.set_experts_implementation(implementation)
        with FlopCounter() as counter:
            model.losses(batch).sum().backward()
        found.append(counter.total)
    assert found[0] == found[1] > 0

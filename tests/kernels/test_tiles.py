"""Which tiles `grad_dots` takes."""

from __future__ import annotations

import pytest
import torch

from ostlight_kernels.tiles import Layer, table, tiles_for

H200 = 90


def sides(layer: Layer, dtype: torch.dtype = torch.bfloat16) -> tuple[int, int]:
    tiles = tiles_for(layer, dtype, H200)
    return tiles.block_o, tiles.block_i


@pytest.mark.parametrize(
    ("samples", "d_out", "d_in", "expected"),
    [
        (32, 4864, 896, (128, 128)),
        (32, 128, 896, (128, 128)),  # 224 programs for 132 processors
        (8, 128, 896, (64, 128)),  # 56, or 112 of half the size
        (4, 128, 896, (64, 64)),  # 28, 56 or 112
        (4, 4864, 896, (128, 128)),
        (0, 128, 896, (64, 64)),
    ],
)
def test_smaller_tiles_where_there_are_too_few(samples: int, d_out: int, d_in: int, expected: tuple[int, int]) -> None:
    assert sides(Layer(samples, 512, d_out, d_in, vectors=17)) == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("capability", [80, 86, 90, 100])
def test_a_large_layer_takes_the_default(dtype: torch.dtype, capability: int) -> None:
    assert tiles_for(Layer(64, 512, 4096, 4096, 17), dtype, capability) == table(dtype, capability)[0]

"""Tile shapes of the kernels.

`grad_dots` takes the first of its table, or a smaller one for a layer that has too few of those.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True, slots=True)
class Tiles:
    """One configuration of the kernel; docs/explanation/kernels.md has the arithmetic behind the numbers.

    Attributes:
        block_o, block_i, block_t: a program's tile of the gradient, and the tokens of one step of its product.
        samples: samples whose tiles are multiplied with the vectors together, at least 16 for the tensor cores.
        block_k: elements of a tile in one step of that product.
        band: tiles along D_out that share the inputs of one tile along D_in in the L2.
        warps: per program.
        stages, dot_stages: loads in flight in the two products.
    """

    block_o: int
    block_i: int
    block_t: int
    block_k: int
    warps: int
    stages: int
    dot_stages: int
    samples: int = 16
    band: int = 4

    def fitted(self, d_out: int, d_in: int) -> Tiles:
        """No larger than the layer; a side of a product on tensor cores is at least 16."""
        block_o, block_i = min(self.block_o, _side(d_out)), min(self.block_i, _side(d_in))
        return replace(self, block_o=block_o, block_i=block_i, block_k=min(self.block_k, block_o * block_i))

    def __str__(self) -> str:
        return (
            f"{self.block_o}x{self.block_i}x{self.block_t} k{self.block_k} warps{self.warps} stages{self.stages}"
            f"+{self.dot_stages} samples{self.samples} band{self.band}"
        )


def _side(size: int) -> int:
    return max(16, 1 << (size - 1).bit_length())


SIXTEEN_BIT = {
    80: (
        Tiles(block_o=128, block_i=128, block_t=32, block_k=256, warps=4, stages=3, dot_stages=3),
        Tiles(block_o=64, block_i=128, block_t=32, block_k=256, warps=4, stages=3, dot_stages=3),
        Tiles(block_o=64, block_i=64, block_t=32, block_k=128, warps=4, stages=4, dot_stages=3),
    ),
    90: (
        Tiles(block_o=128, block_i=128, block_t=64, block_k=256, warps=4, stages=3, dot_stages=3),
        Tiles(block_o=64, block_i=128, block_t=64, block_k=128, warps=4, stages=3, dot_stages=3),
        Tiles(block_o=64, block_i=64, block_t=64, block_k=128, warps=4, stages=3, dot_stages=3),
    ),
}

# Without tf32 the products run on the ordinary cores: smaller tiles, or the accumulators spill.
THIRTY_TWO_BIT = {
    80: (Tiles(block_o=64, block_i=64, block_t=16, block_k=64, warps=4, stages=3, dot_stages=2),),
    90: (Tiles(block_o=64, block_i=64, block_t=16, block_k=64, warps=4, stages=2, dot_stages=2),),
}


PROCESSORS = {80: 108, 90: 132}
"""Of an A100, and of an H100 or H200."""


def table(dtype: torch.dtype, capability: int) -> tuple[Tiles, ...]:
    """The configurations for a dtype on ``sm_<capability>``, the default first."""
    rows = THIRTY_TWO_BIT if dtype == torch.float32 else SIXTEEN_BIT
    return rows[_generation(capability)]


def _generation(capability: int) -> int:
    return 90 if capability >= 90 else 80


@dataclass(frozen=True, slots=True)
class Layer:
    """What a call of `grad_dots` is about; ``tokens`` are a sample's on average."""

    samples: int
    tokens: int
    d_out: int
    d_in: int
    vectors: int

    def share(self, tiles: Tiles, processors: int) -> float:
        """Elements that a processor reads and writes, at least one program's; the time is in proportion to it."""
        tiles = tiles.fitted(self.d_out, self.d_in)
        programs = self.samples * -(-self.d_out // tiles.block_o) * -(-self.d_in // tiles.block_i)
        inputs = self.tokens * (tiles.block_o + tiles.block_i)
        # A tile is written and read once, and a group of samples shares what it reads of the vectors.
        rest = tiles.block_o * tiles.block_i * (2 + self.vectors / max(1, min(self.samples, tiles.samples)))
        return max(1.0, programs / processors) * (inputs + rest)


def tiles_for(layer: Layer, dtype: torch.dtype, capability: int) -> Tiles:
    """The default, or a smaller tile where the default's programs are too few for the GPU's processors."""
    processors = PROCESSORS[_generation(capability)]
    return min(table(dtype, capability), key=lambda tiles: layer.share(tiles, processors))


@dataclass(frozen=True, slots=True)
class HeadTiles:
    """One configuration of the kernels that multiply a candidate's steps with its softmax errors.

    Attributes:
        block_s, block_v: anchor positions and tokens of the vocabulary in a tile of changes of logits.
        block_t: answer positions of a candidate in one step of the product that forms it.
        block_d: width in one step of the products with the head.
        warps: per program.
        stages: loads in flight.
    """

    block_s: int
    block_v: int
    block_t: int
    block_d: int
    warps: int
    stages: int


@dataclass(frozen=True, slots=True)
class ProductTiles:
    """One configuration of a plain product: of features with the head, or of probabilities with errors.

    Attributes:
        rows, columns: a program's tile: of positions and tokens of the vocabulary, or of anchors' and candidates'
            positions.
        depth: of one step of the product: of the width, or tokens of the vocabulary.
        warps: per program.
        stages: loads in flight.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


def head_tiles(dtype: torch.dtype, capability: int) -> HeadTiles:
    """The configuration for a dtype on ``sm_<capability>``."""
    if dtype == torch.float32:
        return HeadTiles(block_s=64, block_v=64, block_t=16, block_d=16, warps=8, stages=2)
    if _generation(capability) == 80:
        return HeadTiles(block_s=64, block_v=128, block_t=64, block_d=32, warps=8, stages=2)
    return HeadTiles(block_s=128, block_v=64, block_t=64, block_d=64, warps=8, stages=3)


def product_tiles(dtype: torch.dtype, capability: int) -> ProductTiles:
    """The configuration for a dtype on ``sm_<capability>``."""
    if dtype == torch.float32:
        return ProductTiles(rows=64, columns=64, depth=16, warps=8, stages=2)
    if _generation(capability) == 80:
        return ProductTiles(rows=128, columns=128, depth=32, warps=8, stages=4)
    return ProductTiles(rows=128, columns=256, depth=64, warps=8, stages=3)

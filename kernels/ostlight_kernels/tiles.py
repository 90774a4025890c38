"""Tile shapes of the kernels, one table each. The first entry of a kind is the default, the others are measured.

`grad_dots` also takes smaller tiles than the default by itself, for a layer that has too few of these."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True, slots=True)
class Tiles:
    """One configuration of the kernel; docs/explanation/kernels.md has the arithmetic behind the numbers.

    Attributes:
        block_o, block_i, block_t: a program's tile of the gradient, and the tokens of one step of its product.
        samples: samples whose tiles meet the targets in one product, at least 16 for the tensor cores.
        block_k: elements of a tile in one step of that product.
        band: tiles along D_out that share the inputs of one tile along D_in while these are in the L2.
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


SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}
"""Most shared memory one program may have."""

SIXTEEN_BIT = {
    80: (
        Tiles(block_o=128, block_i=128, block_t=32, block_k=256, warps=4, stages=3, dot_stages=3),
        Tiles(block_o=128, block_i=128, block_t=32, block_k=256, warps=8, stages=4, dot_stages=3),
        Tiles(block_o=128, block_i=256, block_t=32, block_k=256, warps=8, stages=3, dot_stages=3),
        Tiles(block_o=64, block_i=128, block_t=32, block_k=256, warps=4, stages=3, dot_stages=3),
        Tiles(block_o=64, block_i=64, block_t=32, block_k=128, warps=4, stages=4, dot_stages=3),
    ),
    90: (
        Tiles(block_o=128, block_i=128, block_t=64, block_k=256, warps=4, stages=3, dot_stages=3),
        Tiles(block_o=128, block_i=256, block_t=64, block_k=256, warps=8, stages=3, dot_stages=4),
        Tiles(block_o=128, block_i=256, block_t=64, block_k=256, warps=8, stages=3, dot_stages=3, samples=32),
        Tiles(block_o=256, block_i=128, block_t=64, block_k=256, warps=8, stages=3, dot_stages=4),
        Tiles(block_o=128, block_i=128, block_t=64, block_k=256, warps=8, stages=4, dot_stages=3),
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
    targets: int

    def share(self, tiles: Tiles, processors: int) -> float:
        """Elements that a processor reads and writes, at least one program's: what the time goes by."""
        tiles = tiles.fitted(self.d_out, self.d_in)
        programs = self.samples * -(-self.d_out // tiles.block_o) * -(-self.d_in // tiles.block_i)
        inputs = self.tokens * (tiles.block_o + tiles.block_i)
        # A tile is written and read once, and a group of samples shares what it reads of the targets.
        rest = tiles.block_o * tiles.block_i * (2 + self.targets / max(1, min(self.samples, tiles.samples)))
        return max(1.0, programs / processors) * (inputs + rest)


def tiles_for(layer: Layer, dtype: torch.dtype, capability: int) -> Tiles:
    """The default, or a smaller tile where the default's programs are too few for the processors there are."""
    default, *others = table(dtype, capability)
    smaller = [tiles for tiles in others if tiles.block_o * tiles.block_i < default.block_o * default.block_i]
    processors = PROCESSORS[_generation(capability)]
    return min((default, *smaller), key=lambda tiles: layer.share(tiles, processors))


@dataclass(frozen=True, slots=True)
class HeadTiles:
    """One configuration of the kernels that join a candidate's steps and errors at anchor tokens and words.

    Attributes:
        block_s, block_v: anchor tokens and words of a tile of changes of logits.
        block_t: answer tokens of a candidate in one step of the product that forms it.
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

    def __str__(self) -> str:
        return f"{self.block_s}x{self.block_v} t{self.block_t} d{self.block_d} warps{self.warps} stages{self.stages}"


HEAD_SIXTEEN_BIT = {
    80: (
        HeadTiles(block_s=64, block_v=128, block_t=64, block_d=32, warps=8, stages=2),
        HeadTiles(block_s=64, block_v=64, block_t=64, block_d=32, warps=8, stages=2),
    ),
    90: (
        HeadTiles(block_s=128, block_v=64, block_t=64, block_d=64, warps=8, stages=3),
        HeadTiles(block_s=64, block_v=128, block_t=64, block_d=64, warps=8, stages=3),
        HeadTiles(block_s=64, block_v=64, block_t=64, block_d=64, warps=4, stages=3),
        HeadTiles(block_s=64, block_v=64, block_t=64, block_d=32, warps=4, stages=2),
    ),
}

HEAD_THIRTY_TWO_BIT = {
    80: (HeadTiles(block_s=64, block_v=64, block_t=16, block_d=16, warps=8, stages=2),),
    90: (
        HeadTiles(block_s=64, block_v=64, block_t=16, block_d=16, warps=8, stages=2),
        HeadTiles(block_s=32, block_v=32, block_t=16, block_d=16, warps=4, stages=2),
    ),
}


@dataclass(frozen=True, slots=True)
class ProductTiles:
    """One configuration of a plain product: of features with the head, or of probabilities with errors.

    Attributes:
        rows, columns: a program's tile: of tokens and words, or of anchors' and of candidates' tokens.
        depth: of one step of the product: of the width, or words.
        warps: per program.
        stages: loads in flight.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}x{self.depth} warps{self.warps} stages{self.stages}"


LOGITS_SIXTEEN_BIT = {
    80: (
        ProductTiles(rows=128, columns=128, depth=32, warps=8, stages=4),
        ProductTiles(rows=128, columns=64, depth=32, warps=4, stages=4),
    ),
    90: (
        ProductTiles(rows=128, columns=256, depth=64, warps=8, stages=3),
        ProductTiles(rows=128, columns=128, depth=64, warps=8, stages=3),
        ProductTiles(rows=64, columns=256, depth=64, warps=4, stages=3),
    ),
}

SLOPES_SIXTEEN_BIT = {
    80: (
        ProductTiles(rows=128, columns=128, depth=32, warps=8, stages=4),
        ProductTiles(rows=128, columns=256, depth=32, warps=8, stages=3),
    ),
    90: (
        ProductTiles(rows=128, columns=256, depth=64, warps=8, stages=3),
        ProductTiles(rows=128, columns=256, depth=64, warps=8, stages=4),
        ProductTiles(rows=256, columns=128, depth=64, warps=8, stages=4),
        ProductTiles(rows=128, columns=128, depth=64, warps=4, stages=3),
    ),
}

PRODUCT_THIRTY_TWO_BIT = {
    80: (ProductTiles(rows=64, columns=64, depth=16, warps=8, stages=2),),
    90: (ProductTiles(rows=64, columns=64, depth=16, warps=8, stages=2),),
}


def logits_table(dtype: torch.dtype, capability: int) -> tuple[ProductTiles, ...]:
    """The configurations of tokens' logits for a dtype on ``sm_<capability>``, the default first."""
    rows = PRODUCT_THIRTY_TWO_BIT if dtype == torch.float32 else LOGITS_SIXTEEN_BIT
    return rows[_generation(capability)]


def slopes_table(dtype: torch.dtype, capability: int) -> tuple[ProductTiles, ...]:
    """The configurations of the slopes for a dtype on ``sm_<capability>``, the default first."""
    rows = PRODUCT_THIRTY_TWO_BIT if dtype == torch.float32 else SLOPES_SIXTEEN_BIT
    return rows[_generation(capability)]


def head_table(dtype: torch.dtype, capability: int) -> tuple[HeadTiles, ...]:
    """The configurations for a dtype on ``sm_<capability>``, the default first."""
    rows = HEAD_THIRTY_TWO_BIT if dtype == torch.float32 else HEAD_SIXTEEN_BIT
    return rows[_generation(capability)]

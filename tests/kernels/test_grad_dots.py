"""`grad_dots` on this machine's path, against a loop over single samples in float64."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from _memory import peak_bytes
from torch import Tensor

from ostlight_kernels import Packing, grad_dots, reference
from ostlight_kernels.tiles import table


def oracle(a: Tensor, b: Tensor, vectors: Tensor, segments: Tensor | None = None, samples: int | None = None) -> Tensor:
    """One sample and one vector at a time, float64."""
    n = a.shape[0] if segments is None else samples
    assert n is not None
    dots = torch.zeros(n, vectors.shape[0], dtype=torch.float64)
    for i in range(n):
        if segments is None:
            tokens_a, tokens_b = a[i], b[i]
        else:
            tokens_a, tokens_b = a[segments == i], b[segments == i]
        gradient = tokens_b.double().T @ tokens_a.double()
        for m, vector in enumerate(vectors.double()):
            dots[i, m] = (gradient * vector).sum()
    return dots


def layer(n: int, t: int, d_in: int, d_out: int, m: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(n * 1000 + t * 100 + d_in)
    sizes = ((n, t, d_in), (n, t, d_out), (m, d_out, d_in))
    return tuple(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in sizes)


LAYOUTS = [(3, 7, 5, 11, 4), (1, 1, 1, 1, 1), (5, 1, 33, 17, 1), (19, 6, 8, 3, 130), (0, 4, 3, 2, 2), (2, 0, 3, 2, 2)]


@pytest.mark.parametrize("shape", LAYOUTS)
def test_float64_is_exact(shape: tuple[int, ...]) -> None:
    a, b, vectors = layer(*shape)
    dots = grad_dots(a, b, vectors)
    assert dots.dtype == torch.float64
    torch.testing.assert_close(dots, oracle(a, b, vectors), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_accumulates_in_fp32(dtype: torch.dtype) -> None:
    a, b, vectors = layer(4, 50, 24, 40, 3, dtype)
    dots = grad_dots(a, b, vectors)
    assert dots.dtype == torch.float32
    scale = (a.double().norm() * b.double().norm() * vectors.double().norm()).item()
    assert (dots - oracle(a, b, vectors)).abs().max().item() < 1e-7 * scale


def test_small_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, vectors = layer(20, 5, 6, 9, 3)
    monkeypatch.setattr(reference, "GRADIENT_BYTES", 4 * 6 * 8 * 16)
    torch.testing.assert_close(grad_dots(a, b, vectors), oracle(a, b, vectors), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("vectors", [5, 129, 700])
def test_memory_is_bounded_whatever_the_number_of_vectors(vectors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    bound = 2**16
    monkeypatch.setattr(reference, "GRADIENT_BYTES", bound)
    a, b, few = layer(20, 2, 40, 60, vectors, torch.bfloat16)
    results = 2 * 4 * 20 * vectors
    # Gradients, vectors, each once more on its way into the product, and the inputs of a block.
    assert peak_bytes(lambda: grad_dots(a, b, few), "cpu", [a, b, few]) <= 4 * bound + 2 * results + 2**15
    torch.testing.assert_close(grad_dots(a, b, few).double(), oracle(a, b, few), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("samples", [1, 100, 10_000_000])
@pytest.mark.parametrize("vectors", [1, 17, 400])
@pytest.mark.parametrize("sides", [(8, 8), (16, 4096), (4096, 14336)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_workspace_is_bounded(samples: int, vectors: int, sides: tuple[int, int], dtype: torch.dtype) -> None:
    module = import_module("ostlight_kernels.grad_dots")
    for plain in table(dtype, 90):
        tiles = plain.fitted(*sides)
        places = -(-sides[0] // tiles.block_o) * -(-sides[1] // tiles.block_i)
        itemsize = module.tile_dtype(dtype).itemsize
        chunk, at_once = module.blocks(samples, places, vectors, tiles, itemsize)
        assert 1 <= chunk <= samples
        assert chunk * at_once * tiles.block_o * tiles.block_i * itemsize <= module.WORKSPACE_BYTES
        assert 4 * places * chunk * vectors <= max(module.PARTIAL_BYTES, 4 * places * tiles.samples * vectors)


def test_any_strides() -> None:
    a, b, vectors = layer(4, 6, 10, 8, 3)
    a_strided = torch.empty(10, 6, 8, dtype=a.dtype).permute(2, 1, 0)[::2].copy_(a)
    b_strided = b.transpose(0, 1).contiguous().transpose(0, 1)
    vectors_strided = vectors.mT.contiguous().mT
    torch.testing.assert_close(grad_dots(a_strided, b_strided, vectors_strided), oracle(a, b, vectors))


def test_a_sample_does_not_depend_on_its_batch() -> None:
    a, b, vectors = layer(21, 9, 12, 7, 5)
    alone = torch.cat([grad_dots(a[i : i + 1], b[i : i + 1], vectors) for i in range(21)])
    torch.testing.assert_close(grad_dots(a, b, vectors), alone, rtol=1e-12, atol=1e-12)


# Sample 1 spans two rows, sample 2 has no token, sample 4 is scattered between the others.
SEGMENTS = torch.tensor([[0, 0, 1, 1, 1, -1], [1, 4, 3, 4, 3, -1], [-1, -1, -1, 4, -1, -1]])


def test_segments_gather_a_sample_from_anywhere() -> None:
    a, b, vectors = layer(3, 6, 5, 4, 3)
    dots = grad_dots(a, b, vectors, Packing.of(SEGMENTS, 6))
    torch.testing.assert_close(dots, oracle(a, b, vectors, SEGMENTS, 6), rtol=1e-12, atol=1e-12)
    assert dots[2].eq(0).all()
    assert dots[5].eq(0).all()


def test_padding_belongs_to_nobody() -> None:
    a, b, vectors = layer(3, 6, 5, 4, 3)
    before = grad_dots(a, b, vectors, Packing.of(SEGMENTS, 6))
    a[SEGMENTS == -1] = float("nan")
    b[SEGMENTS == -1] = float("inf")
    assert grad_dots(a, b, vectors, Packing.of(SEGMENTS, 6)).equal(before)


def test_a_packing_is_made_once_for_all_layers() -> None:
    packing = Packing.of(SEGMENTS.int(), 6)
    assert packing.lengths == (2, 4, 0, 2, 3, 0)
    for width in (3, 8):
        a, b, vectors = layer(3, 6, width, 4, 3)
        assert grad_dots(a, b, vectors, packing).equal(grad_dots(a, b, vectors, Packing.of(SEGMENTS, 6)))


def test_only_padding() -> None:
    a, b, vectors = layer(2, 3, 4, 5, 2)
    nobody = torch.full((2, 3), -1)
    assert grad_dots(a, b, vectors, Packing.of(nobody, 3)).equal(torch.zeros(3, 2, dtype=torch.float64))
    assert grad_dots(a, b, vectors, Packing.of(nobody, 0)).shape == (0, 2)


def test_no_gradient_flows() -> None:
    a, b, vectors = layer(2, 3, 4, 5, 2)
    assert not grad_dots(a.requires_grad_(), b, vectors).requires_grad


BAD = {
    "a: got shape (2, 3)": lambda a, b, q: grad_dots(a[:, :, 0], b, q),
    "a: got dtype torch.int64": lambda a, b, q: grad_dots(a.long(), b, q),
    "b: got shape (1, 3, 5)": lambda a, b, q: grad_dots(a, b[:1], q),
    "b: got dtype torch.float16": lambda a, b, q: grad_dots(a, b.half(), q),
    "b: got device meta": lambda a, b, q: grad_dots(a, b.to("meta"), q),
    "a: got layout torch.sparse_coo": lambda a, b, q: grad_dots(a.to_sparse(), b, q),
    "a: got device meta": lambda a, b, q: grad_dots(a.to("meta"), b.to("meta"), q.to("meta")),
    "a: got a list, takes a tensor": lambda a, b, q: grad_dots(a.tolist(), b, q),
    "b: got a ndarray, takes a tensor": lambda a, b, q: grad_dots(a, b.numpy(), q),
    "vectors: got a NoneType": lambda a, b, q: grad_dots(a, b, None),
    "vectors: got M=0": lambda a, b, q: grad_dots(a, b, q[:0]),
    "vectors: got shape (2, 4, 5), takes [M, D_out, D_in] with D_out=5": lambda a, b, q: grad_dots(a, b, q.mT),
    "vectors: got dtype torch.float32": lambda a, b, q: grad_dots(a, b, q.float()),
    "packing: got a Tensor, takes a Packing": lambda a, b, q: grad_dots(a, b, q, torch.zeros(2, 3).long()),
    "packing: got rows (3, 2)": lambda a, b, q: grad_dots(a, b, q, Packing.of(torch.zeros(3, 2).long(), 1)),
    "num_samples: got -1": lambda *_: Packing.of(torch.zeros(2, 3).long(), -1),
    "num_samples: got 5.0": lambda *_: Packing.of(torch.zeros(2, 3).long(), 5.0),
    "num_samples: got '5'": lambda *_: Packing.of(torch.zeros(2, 3).long(), "5"),
    "num_samples: got True": lambda *_: Packing.of(torch.zeros(2, 3).long(), True),
    "segments: got layout torch.sparse_coo": lambda *_: Packing.of(torch.zeros(2, 3).to_sparse(), 1),
    "segments: got a list": lambda *_: Packing.of([[0, 0, 0], [0, 0, 0]], 1),
    "segments: got a ndarray": lambda *_: Packing.of(torch.zeros(2, 3).long().numpy(), 1),
    "segments: got device meta": lambda *_: Packing.of(torch.zeros(2, 3, device="meta").long(), 1),
    "segments: got shape (6,)": lambda *_: Packing.of(torch.zeros(6).long(), 1),
    "segments: got dtype torch.float32": lambda *_: Packing.of(torch.zeros(2, 3), 1),
    "segments: got a sample id 2 with num_samples=2": lambda *_: Packing.of(torch.full((2, 3), 2), 2),
    "segments: got a sample id -2": lambda *_: Packing.of(torch.full((2, 3), -2), 2),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_refused_by_name(message: str) -> None:
    a, b, vectors = layer(2, 3, 4, 5, 2)
    with pytest.raises(ValueError) as rejection:  # noqa: PT011  the message is what is asserted
        BAD[message](a, b, vectors)
    assert str(rejection.value).startswith(message)

"""The Triton kernels on a GPU, at real tile shapes and sizes: every configuration of the tables, against float64."""

from __future__ import annotations

import copy
from importlib import import_module
from typing import Any

import pytest
import torch
from _memory import peak_bytes
from nearest import nearest_tf32
from torch import Tensor, nn

from ostlight.influence.gradients.engine import GradientDots, SampleProducts
from ostlight.influence.gradients.rows import RowOwners
from ostlight_kernels import Packing, explain_dispatch, small_steps
from ostlight_kernels.head_problem import HeadProblem
from ostlight_kernels.tiles import (
    SIXTEEN_BIT,
    THIRTY_TWO_BIT,
    HeadTiles,
    ProductTiles,
    Tiles,
    head_tiles,
    product_tiles,
)

grad_dots = import_module("ostlight_kernels.grad_dots")
one_step_head = import_module("ostlight_kernels.one_step_head")
head_launcher = import_module("ostlight_kernels.head_launcher")

pytestmark = pytest.mark.cuda
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
# A table runs on the generation it was written for and on later ones.
GENERATIONS = [80, 90] if torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0) else [80]


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = torch.empty

    def empty(*sizes: Any, **options: Any) -> Tensor:
        tensor = plain(*sizes, **options)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", empty)


def layer(n: int, t: int, d_in: int, d_out: int, m: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator("cuda").manual_seed(n + t + d_in)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device="cuda").to(dtype)

    return normal(n, t, d_in), normal(n, t, d_out), normal(m, d_out, d_in)


def truth_and_plain(a: Tensor, b: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    gradients = torch.bmm(b.double().mT, a.double()).flatten(1)
    flat = vectors.double().flatten(1).T
    return gradients @ flat, gradients.to(a.dtype).double() @ flat


def assert_as_good(got: Tensor, truth: Tensor, plain: Tensor) -> None:
    assert got.dtype == torch.float32
    if truth.numel():
        allowed = 1.1 * (plain - truth).abs().max() + 1e-5 * truth.abs().max()
        assert (got - truth).abs().max() <= allowed


LAYOUTS = [
    (33, 512, 896, 128, 17),
    (5, 77, 200, 333, 17),
    (3, 1, 896, 896, 1),
    (1, 1, 1, 1, 1),
    (2, 64, 100, 70, 130),
    (0, 4, 8, 8, 2),
    (2, 0, 8, 8, 2),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", LAYOUTS, ids=str)
def test_grad_dots(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    a, b, vectors = layer(*shape, dtype)
    assert explain_dispatch(a).name == "triton"
    assert_as_good(grad_dots.grad_dots(a, b, vectors), *truth_and_plain(a, b, vectors))


EVERY_TILES = [(dtype, tiles) for g in GENERATIONS for tiles in SIXTEEN_BIT[g] for dtype in DTYPES[:2]]
EVERY_TILES += [(torch.float32, tiles) for g in GENERATIONS for tiles in THIRTY_TWO_BIT[g]]


# Sizes divisible by 16 are loaded ahead, many elements at once; others one by one.
@pytest.mark.parametrize("shape", [(18, 192, 512, 384, 17), (18, 200, 520, 300, 17)], ids=str)
@pytest.mark.parametrize(("dtype", "tiles"), EVERY_TILES, ids=str)
def test_every_configuration_of_grad_dots(dtype: torch.dtype, tiles: Tiles, shape: tuple[int, ...]) -> None:
    a, b, vectors = layer(*shape, dtype)
    got = grad_dots.launch(a, b, vectors, None, allow_tf32=False, tiles=tiles)
    assert_as_good(got, *truth_and_plain(a, b, vectors))


def test_allow_tf32_rounds_to_the_nearest() -> None:
    """A single token, so that the rounded gradient is known to the bit; dropping bits is ten times further off."""
    a, b, vectors = layer(33, 1, 256, 128, 17, torch.float32)
    gradients = nearest_tf32(nearest_tf32(b).mT @ nearest_tf32(a)).flatten(1)
    flat = nearest_tf32(vectors).flatten(1).T
    got = grad_dots.grad_dots(a, b, vectors, allow_tf32=True)
    assert (got - gradients @ flat).abs().le(2e-6 * (gradients.abs() @ flat.abs())).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_grad_dots_is_the_same_to_the_bit(dtype: torch.dtype) -> None:
    """Whichever program arrives last; also when the workspace takes several launches."""
    a, b, vectors = layer(40, 128, 512, 384, 17, dtype)
    first = grad_dots.grad_dots(a, b, vectors)
    for _ in range(20):
        assert grad_dots.grad_dots(a, b, vectors).equal(first)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grad_dots, "WORKSPACE_BYTES", 2**20)
        assert grad_dots.grad_dots(a, b, vectors).equal(first)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_segments(dtype: torch.dtype) -> None:
    a, b, vectors = layer(4, 300, 256, 128, 17, dtype)
    segments = torch.randint(-1, 23, (4, 300), device="cuda")
    a[segments == -1] = float("nan")
    got = grad_dots.grad_dots(a, b, vectors, Packing.of(segments, 25))
    assert got.shape == (25, 17)
    assert got[23:].eq(0).all()
    rows = [truth_and_plain(a[segments == s][None], b[segments == s][None], vectors) for s in range(25)]
    assert_as_good(got, torch.cat([truth for truth, _ in rows]), torch.cat([plain for _, plain in rows]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_strides(dtype: torch.dtype) -> None:
    a, b, vectors = layer(6, 50, 96, 80, 5, dtype)
    expected = grad_dots.grad_dots(a, b, vectors)
    a = torch.empty(96, 50, 12, dtype=dtype, device="cuda").permute(2, 1, 0)[::2].copy_(a)
    b = b.transpose(0, 1).contiguous().transpose(0, 1)
    assert grad_dots.grad_dots(a, b, vectors.mT.contiguous().mT).equal(expected)


LAYER = ("a", "b", "vectors")


@pytest.mark.parametrize("name", LAYER)
def test_grad_dots_refuses_what_is_on_another_device(name: str) -> None:
    given = dict(zip(LAYER, layer(2, 3, 16, 16, 2, torch.float32), strict=True))
    given[name] = given[name].cpu()
    # What is looked at first is what the others are compared with.
    named = "b" if name == "a" else name
    with pytest.raises(ValueError, match=f"^{named}: got device .*, takes the device of a"):
        grad_dots.grad_dots(**given)


def test_grad_dots_refuses_a_packing_on_another_device() -> None:
    a, b, vectors = layer(2, 3, 16, 16, 2, torch.float32)
    packing = Packing.of(torch.zeros(2, 3, dtype=torch.long), 2)
    with pytest.raises(ValueError, match="^packing: got device cpu, takes the device of a"):
        grad_dots.grad_dots(a, b, vectors, packing)


class Perceptron(nn.Module):
    """Two layers of which the second sees all samples' tokens in one row after another, as packed rows are."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(48, 64), nn.Linear(64, 40)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        return self.second(hidden.flatten(0, 1)).view(*x.shape[:2], -1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)], ids=str)
def test_the_engine_gives_on_the_gpu_what_it_gives_on_the_cpu(
    dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model, x = Perceptron().to(dtype), torch.randn(5, 7, 48).to(dtype)
    vectors = {name: torch.randn(3, *value.shape).to(dtype) for name, value in model.named_parameters()}
    launched: list[tuple[int, ...]] = []
    plain = grad_dots.launch
    monkeypatch.setattr(grad_dots, "launch", lambda a, *rest, **how: launched.append(a.shape) or plain(a, *rest, **how))

    def products(device: str, dtype: torch.dtype) -> SampleProducts:
        here, inputs = copy.deepcopy(model).to(device, dtype), x.to(device, dtype)
        parameters = dict(here.named_parameters())
        moved = {name: vector.to(device, dtype) for name, vector in vectors.items()}
        engine = GradientDots(here, parameters)
        return engine.products(lambda: here(inputs).square().sum((1, 2)), RowOwners(5), moved, squared_norms=True)

    got = products("cuda", dtype)
    assert sorted(launched) == [(5, 7, 48), (35, 1, 64)]
    truth = products("cpu", torch.float64)
    for here, there in ((got.dots, truth.dots), (got.squared_norms, truth.squared_norms)):
        assert (here.cpu() - there).abs().max() <= tolerance * there.abs().max()


def head(n: int, t: int, anchors: int, s: int, d: int, v: int, dtype: torch.dtype, eta: float) -> dict[str, Any]:
    generator = torch.Generator("cuda").manual_seed(v)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device="cuda")

    labels = torch.randint(0, v, (n, t), generator=generator, device="cuda")
    labels[:, 1:][torch.rand(n, t - 1, generator=generator, device="cuda") < 0.4] = -100
    return {
        "h": normal(n, t, d).to(dtype),
        "labels": labels,
        "anchor_h": normal(anchors, s, d).to(dtype),
        "anchor_labels": torch.randint(0, v, (anchors, s), generator=generator, device="cuda"),
        "weight": (normal(v, d) * 2 / d**0.5).to(dtype),
        "bias": normal(v).to(dtype),
        "eta": eta,
    }


def exactly(case: dict[str, Any]) -> Tensor:
    """In float64, which takes the reference and the full vocabulary."""
    return one_step_head.one_step_head(
        **{k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in case.items()}
    )


TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 3e-3, torch.float32: 1e-4}
"""Of the largest utility: a few roundings to the dtype, of sums that cancel a few times over."""


@pytest.fixture(params=["small steps as such", "full vocabulary"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "full vocabulary":
        monkeypatch.setattr(small_steps, "LARGEST_CHANGE", 0.0)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("eta", [1e-5, 1e-2, 10.0])
@pytest.mark.parametrize("shape", [(9, 64, 20, 30, 256, 3001), (3, 200, 4, 20, 96, 500), (1, 1, 1, 1, 16, 2)], ids=str)
def test_one_step_head(shape: tuple[int, ...], eta: float, dtype: torch.dtype) -> None:
    case = head(*shape, dtype, eta)  # type: ignore[arg-type]
    got, truth = one_step_head.one_step_head(**case), exactly(case)
    assert (got - truth).abs().max() <= TOLERANCE[dtype] * truth.abs().max()
    assert one_step_head.one_step_head(**case).equal(got)


HEAD_SHAPES = [(9, 64, 10, 40, 256, 1024), (9, 100, 10, 40, 200, 1000)]


EVERY_HEAD = [(dtype, head_tiles(dtype, g), product_tiles(dtype, g)) for g in GENERATIONS for dtype in DTYPES]


@pytest.mark.parametrize("eta", [1e-3, 0.1], ids=["small steps", "full vocabulary"])
@pytest.mark.parametrize("shape", [*HEAD_SHAPES, (300, 3, 10, 40, 64, 1000)], ids=str)
@pytest.mark.parametrize(("dtype", "tiles", "product"), EVERY_HEAD, ids=str)
def test_every_configuration_of_one_step_head(
    dtype: torch.dtype, tiles: HeadTiles, product: ProductTiles, shape: tuple[int, ...], eta: float
) -> None:
    case = head(*shape, dtype, eta)  # type: ignore[arg-type]
    keys = ("h", "labels", "anchor_h", "anchor_labels", "eta")
    problem = HeadProblem.of(*(case[k] for k in keys), None)
    step = head_launcher.KernelHeadStep(problem, case["weight"], case["bias"], tiles, product)
    with torch.no_grad():
        got = step.utilities()
    truth = exactly(case)
    assert (got - truth).abs().max() <= TOLERANCE[dtype] * truth.abs().max()


HEAD = ("h", "labels", "anchor_h", "anchor_labels", "weight", "bias", "anchor_weights")


@pytest.mark.parametrize("name", HEAD)
def test_one_step_head_refuses_what_is_on_another_device(name: str) -> None:
    case = head(2, 3, 2, 3, 16, 20, torch.float32, 0.1) | {"anchor_weights": torch.ones(2, device="cuda")}
    case[name] = case[name].cpu()
    named = "anchor_h" if name == "h" else name
    with pytest.raises(ValueError, match=f"^{named}: got device .*, takes the device of h"):
        one_step_head.one_step_head(**case)


def peak(**sizes: int) -> int:
    given = {"n": 32, "t": 64, "anchors": 50, "s": 64, "d": 64, "v": 8_000} | sizes
    case = head(**given, dtype=torch.bfloat16, eta=0.1)
    one_step_head.one_step_head(**case)
    return peak_bytes(lambda: one_step_head.one_step_head(**case), "cuda", [])


def test_memory_does_not_grow_with_the_vocabulary() -> None:
    """Nor with candidates x vocabulary, beyond a slice of each kind and what is kept per candidate and token."""
    assert peak(v=64_000) <= peak(v=8_000) + 3 * head_launcher.SLICE_BYTES


def test_memory_does_not_grow_with_the_candidates() -> None:
    """Beyond a copy of their tokens, small here beside what is kept per candidate and anchor position."""
    assert peak(n=8192, t=2, d=16) <= peak(n=1024, t=2, d=16) + head_launcher.STEPS_BYTES

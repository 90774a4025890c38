"""Squared norms that come with the inner products, or from many rows at once, against each gradient formed alone."""

from __future__ import annotations

import peft
import pytest
import torch
from torch import nn

from ostlight.influence.gradients.adapters import merged_forwards
from ostlight.influence.gradients.forward_mode import directional_derivatives, find_difference_step
from ostlight.influence.gradients.norms import PRODUCT_ENTRIES, Tokens, squared_norms
from ostlight.influence.parameters import select_parameters
from ostlight_kernels import Packing, grad_dots
from ostlight_kernels.reference import dots_and_squares


@pytest.mark.parametrize(("dtype", "bar"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 5e-3)])
@pytest.mark.parametrize(("rows", "tokens"), [(5, 3), (5, 40), (1, 7)])
def test_rows_at_once_say_what_each_gradient_says(
    rows: int, tokens: int, dtype: torch.dtype, bar: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(rows, tokens, 12, generator=generator).to(dtype)
    right = torch.randn(rows, tokens, 20, generator=generator).to(dtype)
    expected = torch.einsum("nto,nti->noi", left.double(), right.double()).square().sum((1, 2))
    assert PRODUCT_ENTRIES >= 1 << 20
    for entries in (PRODUCT_ENTRIES, 300):
        monkeypatch.setattr("ostlight.influence.gradients.norms.PRODUCT_ENTRIES", entries)
        use = Tokens(torch.arange(rows), left, right, row_is_sample=True)
        got = squared_norms([use], rows, torch.Size((12, 20)))
        assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert ((got - expected).abs() <= bar * expected).all()


@pytest.mark.parametrize("d_in", [4, 40])
@pytest.mark.parametrize("packed", [False, True])
def test_squares_come_with_the_products(d_in: int, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b, vectors = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((6, 5, d_in), (6, 5, 37), (3, 37, d_in))
    )
    segments = (
        torch.tensor([0, 0, 1, -1, 3, 3])[:, None].expand(-1, 5) if packed else torch.arange(6)[:, None].expand(-1, 5)
    )
    samples = 4 if packed else 6
    formed = torch.zeros(samples, 37, d_in, dtype=torch.float64)
    for row, owner in enumerate(segments[:, 0].tolist()):
        if owner >= 0:
            formed[owner] += b[row].T @ a[row]
    packing = Packing.of(segments, samples) if packed else None
    for block in (1 << 25, 2000):
        monkeypatch.setattr("ostlight_kernels.reference.GRADIENT_BYTES", block)
        dots, squares = dots_and_squares(a, b, vectors, packing)
        assert torch.allclose(dots, torch.einsum("noi,moi->nm", formed, vectors), rtol=1e-12, atol=1e-12)
        assert torch.allclose(squares, formed.square().sum((1, 2)), rtol=1e-12, atol=0)
        assert torch.equal(dots, grad_dots(a, b, vectors, packing))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_adapters_in_one_product_have_the_same_derivatives() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    config = peft.LoraConfig(target_modules=["0", "2"], r=2, init_lora_weights=False)
    model = peft.get_peft_model(plain, config).double().eval()
    parameters, x = select_parameters(model, "lora"), torch.randn(5, 6, dtype=torch.float64)
    direction = {name: torch.randn_like(parameter) for name, parameter in parameters.items()}
    ran: list[bool] = []
    first = model.base_model.model[0]

    def losses() -> torch.Tensor:
        ran.append("forward" in first.__dict__)
        return model(x).square().sum(1)

    size = find_difference_step(losses, parameters, direction, model).size
    layer_by_layer = directional_derivatives(losses, parameters, direction, size)
    assert all(ran[:-2])
    assert not any(ran[-2:])
    at_once = directional_derivatives(losses, parameters, direction, size, model)
    assert torch.allclose(at_once, layer_by_layer, rtol=1e-7)
    with merged_forwards(model, parameters):
        assert torch.allclose(losses(), losses().detach(), rtol=1e-12)
        losses().sum().backward()
    assert all(parameter.grad is not None for parameter in parameters.values())
    assert "forward" not in first.__dict__

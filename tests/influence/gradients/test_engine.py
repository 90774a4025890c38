"""Single layers and ways of using them, each against a float64 loop over single samples."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any

import families
import oracle
import peft
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeTextExperts

from ostlight.errors import InfluenceError
from ostlight.influence.gradients.adapters import Adapter
from ostlight.influence.gradients.engine import GradientDots
from ostlight.influence.gradients.random_products import RandomDirections
from ostlight.influence.gradients.rows import RowMap, RowOwners
from ostlight.influence.parameters import select_parameters

Tiny = Callable[..., nn.Module]
N, T, D = 3, 5, 4
OLD_NAME = pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")


class Around(nn.Module):
    """Something between two linear layers, so that gradients differ between tokens and do not stop at the input."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.into, self.layer, self.out = nn.Linear(D, D), layer, nn.Linear(D, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.layer(self.into(x))))


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(T, D)
        self.start = nn.Parameter(torch.randn(D))
        self.scale = nn.Parameter(torch.randn(1, 1, D))
        self.register_buffer("ids", torch.arange(T)[None])

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.scale + self.table(self.ids) - self.start
        return torch.cat([self.start.expand(len(x), 1, -1), x + (1 + self.table.weight[1:2])], dim=1)


class TwiceAndTied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.relu(self.layer(torch.tanh(self.layer(x)))), self.layer.weight)


class Convolution(nn.Module):
    def __init__(self, convolution: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.convolution, self.shape = convolution, shape

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.cat([x.flatten(1)] * 8, dim=1)[:, : torch.Size(self.shape).numel()]
        return self.convolution(wide.view(len(x), *self.shape)).flatten(2).transpose(1, 2)


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        y += x
        y[:, 0] = 1.0
        return y


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.LayerNorm(D))

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.layer, checkpoint(self.layer, x, use_reentrant=False), use_reentrant=False)


class Experts(nn.Module):
    """A router and experts, each token through two of three, as transformers has them.

    Args:
        kind: class of the experts, with gates, without, or with biases and the weights transposed.
        times: how often they are run.
    """

    def __init__(self, kind: type[nn.Module], times: int = 1) -> None:
        super().__init__()
        sizes = {"hidden_size": D, "intermediate_size": 6, "num_local_experts": 3, "num_experts": 3}
        more = {"moe_intermediate_size": 6, "n_routed_experts": 3, "hidden_act": "silu", "mlp_hidden_act": "silu"}
        config = SimpleNamespace(**sizes, **more, moe_latent_size=None, swiglu_alpha=1.7, swiglu_limit=7.0)
        config._experts_implementation = "eager"
        self.router, self.experts, self.times = nn.Linear(D, 3), kind(config), times
        for parameter in self.experts.parameters():
            nn.init.normal_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            tokens = x.reshape(-1, D)
            weights, chosen = self.router(tokens).softmax(-1).topk(2)
            x = x + self.experts(tokens, chosen, weights).view_as(x)
        return x


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(D, D),
    "layer norm": lambda: nn.LayerNorm(D),
    "rms norm": lambda: nn.RMSNorm(D),
    "rms norm of two axes": lambda: nn.RMSNorm((T, D), eps=1e-3),
    "gemma norm": lambda: GemmaRMSNorm(D),
    "positions": Positions,
    "module called twice and its weight once more": TwiceAndTied,
    "conv1d": lambda: Convolution(nn.Conv1d(2, D, 3, padding=1), (2, 9)),
    "conv2d overlapping": lambda: Convolution(nn.Conv2d(2, D, 3, stride=2, padding=1), (2, 6, 5)),
    "conv2d patches": lambda: Convolution(nn.Conv2d(3, D, (2, 3), stride=(2, 3), bias=False), (3, 4, 7)),
    "conv1d with gaps": lambda: Convolution(nn.Conv1d(2, D, 3, stride=2, dilation=2, padding="valid"), (2, 9)),
    "conv2d with gaps": lambda: Convolution(nn.Conv2d(1, D, (3, 2), stride=(1, 2), dilation=(2, 1)), (1, 8, 8)),
    "conv3d overlapping": lambda: Convolution(nn.Conv3d(2, D, (2, 3, 2), stride=(1, 2, 1), padding=1), (2, 2, 5, 3)),
    "conv3d patches": lambda: Convolution(nn.Conv3d(2, D, (2, 2, 2), stride=(2, 2, 2)), (2, 4, 2, 4)),
    "matmul": lambda: Untreated(lambda x, w: x @ w),
    "experts": lambda: Experts(Qwen3VLMoeTextExperts),
    "experts with biases, transposed": lambda: Experts(GptOssExperts),
    "experts without gates": lambda: Experts(NemotronHExperts),
    "experts called twice": lambda: Experts(Qwen3VLMoeTextExperts, 2),
    "written into": InPlace,
    "checkpointed twice": Checkpointed,
}  # fmt: skip


def losses_of(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().flatten(1).sum(1)


@pytest.mark.parametrize("layer", LAYERS)
def test_layer_agrees_with_the_loop(layer: str) -> None:
    torch.manual_seed(0)
    model, x = Around(LAYERS[layer]()).double(), torch.randn(N, T, D, dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    parameters = select_parameters(model, "all")
    vectors = oracle.random_vectors(parameters, 4)
    with families.DoublePrecision():
        singles = [oracle.gradient(parameters, lambda k=k: losses_of(model, x[k : k + 1])[0]) for k in range(N)]
        engine = GradientDots(model, parameters)
        got = engine.products(lambda: losses_of(model, x), RowOwners(N), vectors, squared_norms=True, separate=True)
        together = engine.products(lambda: losses_of(model, x), RowOwners(N), vectors, squared_norms=True)
    assert oracle.relative_error(together.dots, got.dots) <= 1e-12
    assert oracle.relative_error(together.squared_norms, got.squared_norms) <= 1e-12
    for name in parameters:
        expected = torch.stack([oracle.dots({name: one[name]}, vectors) for one in singles])
        norms = torch.stack([oracle.squared_norm({name: one[name]}) for one in singles])
        assert oracle.relative_error(got.by_parameter[name], expected) <= 1e-12, name
        assert oracle.relative_error(got.squared_norms_by_parameter[name], norms) <= 1e-12, name


def test_tied_embeddings_add_their_two_uses_before_the_square(tiny: Tiny) -> None:
    model, inputs = tiny("llama", tied=True), families.batch("llama")
    parameters = select_parameters(model, "head")
    vectors = oracle.random_vectors(parameters, 2)
    with families.DoublePrecision():
        singles = [
            oracle.gradient(parameters, lambda k=k: oracle.loss_of(model, families.alone("llama", inputs, k))[0])
            for k in range(N)
        ]
        got = GradientDots(model, parameters).products(
            lambda: oracle.loss_of(model, inputs), RowOwners(N), vectors, squared_norms=True
        )
    assert oracle.relative_error(got.dots, torch.stack([oracle.dots(one, vectors) for one in singles])) <= 1e-12
    norms = torch.stack([oracle.squared_norm(one) for one in singles])
    assert oracle.relative_error(got.squared_norms, norms) <= 1e-12


def test_the_padding_row_of_a_table_gets_no_gradient() -> None:
    table = nn.Embedding(6, D, padding_idx=2).double()
    ids = torch.tensor([[2, 1, 2], [5, 5, 0]])
    parameters = select_parameters(table, "all")
    vectors = {"weight": torch.ones(1, 6, D, dtype=torch.float64)}
    got = GradientDots(table, parameters).products(lambda: table(ids).sum((1, 2)), RowOwners(2), vectors, True)
    assert got.dots[:, 0].tolist() == [1 * D, 3 * D]
    assert got.squared_norms.tolist() == [1 * D, 5 * D]


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("count", [5, 64])
def test_random_products_are_those_of_the_explicit_gradient(layer: str, count: int) -> None:
    torch.manual_seed(0)
    model = Around(LAYERS[layer]()).double().eval()
    parameters, x = dict(model.named_parameters()), torch.randn(N, T, D, dtype=torch.float64)
    directions = RandomDirections(parameters, count, seed=3)
    found = GradientDots(model, parameters).products(lambda: losses_of(model, x), RowOwners(N), random=directions)
    for row in range(N):
        gradient = oracle.gradient(parameters, partial(lambda k: losses_of(model, x)[k], row))
        assert torch.allclose(found.random_products[row], directions.products(gradient), rtol=1e-9, atol=1e-12)


@OLD_NAME
@pytest.mark.parametrize("family", ["llama", "qwen3_vl", "internvl"])
def test_gradient_checkpointing_changes_nothing(tiny: Tiny, family: str) -> None:
    model, inputs = tiny(family), families.batch(family)
    parameters = select_parameters(model, "all")
    vectors = oracle.random_vectors(parameters, 2)
    engine, rows = GradientDots(model, parameters), RowMap(model).of(inputs)
    plain = engine.products(lambda: oracle.loss_of(model, inputs), rows, vectors, squared_norms=True)
    model.gradient_checkpointing_enable()
    model.train()
    kept = engine.products(lambda: oracle.loss_of(model, inputs), rows, vectors, squared_norms=True)
    assert torch.equal(plain.dots, kept.dots)
    assert torch.equal(plain.squared_norms, kept.squared_norms)


@OLD_NAME
def test_reentrant_checkpointing_is_refused(tiny: Tiny) -> None:
    model, inputs = tiny("llama"), families.batch("llama")
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.train()
    engine = GradientDots(model, select_parameters(model, "blocks"))
    with pytest.raises(InfluenceError, match="use_reentrant=False"):
        engine.products(lambda: oracle.loss_of(model, inputs), RowOwners(N))


@pytest.mark.parametrize("scope", ["blocks", "all"])
def test_bf16_autocast_is_as_near_the_truth_as_plain_autograd_under_it(tiny: Tiny, scope: str) -> None:
    model, inputs = tiny("llama").float(), families.batch("llama")
    parameters = select_parameters(model, scope)
    vectors = oracle.random_vectors(parameters, 3)
    exact = [
        oracle.gradient(parameters, lambda k=k: oracle.loss_of(model, families.alone("llama", inputs, k))[0])
        for k in range(N)
    ]
    truth = torch.stack([oracle.dots(one, vectors) for one in exact])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        singles = [
            oracle.gradient(parameters, lambda k=k: oracle.loss_of(model, families.alone("llama", inputs, k))[0])
            for k in range(N)
        ]
        got = GradientDots(model, parameters).products(lambda: oracle.loss_of(model, inputs), RowOwners(N), vectors)
    plain = torch.stack([oracle.dots(one, vectors) for one in singles])
    allowed = 1.5 * oracle.relative_error(plain, truth) + 2e-3
    assert 0 < oracle.relative_error(got.dots, truth) <= allowed


@pytest.mark.parametrize(("dtype", "bar"), [(torch.float64, 1e-9), (torch.float32, 1e-3)])
@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_sample_alone_in_its_batch_gets_the_same_figures(
    tiny: Tiny, family: str, dtype: torch.dtype, bar: float
) -> None:
    model, inputs = tiny(family).to(dtype), families.batch(family)
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    parameters = select_parameters(model, "all")
    vectors = oracle.random_vectors(parameters, 2)
    engine, rows = GradientDots(model, parameters), RowMap(model)
    with families.DoublePrecision():
        together = engine.products(lambda: oracle.loss_of(model, inputs), rows.of(inputs), vectors, True)
        for k in range(N):
            single = families.alone(family, inputs, k)
            alone = engine.products(lambda s=single: oracle.loss_of(model, s), rows.of(single), vectors, True)
            for got, expected in (
                (alone.dots[0], together.dots[k]),
                (alone.squared_norms[0], together.squared_norms[k]),
            ):
                scale = expected.abs().median()
                assert (got - expected).abs().max() <= bar * scale


def test_the_model_is_left_as_it_was_even_after_an_error() -> None:
    model = Around(nn.Linear(D, D))
    model.out.weight.requires_grad_(False)
    before = {name: (id(p), p.requires_grad) for name, p in model.named_parameters()}
    engine = GradientDots(model, select_parameters(model, "layer"))

    def broken() -> Tensor:
        model(torch.randn(N, T, D))
        raise RuntimeError("on purpose")

    engine.products(lambda: losses_of(model, torch.randn(N, T, D)), RowOwners(N))
    with pytest.raises(RuntimeError, match="on purpose"):
        engine.products(broken, RowOwners(N))
    assert {name: (id(p), p.requires_grad) for name, p in model.named_parameters()} == before
    assert all(type(p) is nn.Parameter and p.grad is None for p in model.parameters())


def adapted(model: nn.Module, **options: object) -> nn.Module:
    config = peft.LoraConfig(target_modules=["q_proj", "up_proj"], r=3, init_lora_weights=False, **options)
    return peft.get_peft_model(model, config).eval()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize(
    ("how", "fused"),
    [("plain", True), ("dropout", True), ("checkpointed", True), ("base in scope", False), ("hooked", False)],
)
def test_adapters_in_one_product_say_what_adapters_layer_by_layer_say(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, how: str, fused: bool
) -> None:
    torch.manual_seed(0)
    model = adapted(tiny("llama"), lora_dropout=0.5 if how == "dropout" else 0.0).double()
    if how == "checkpointed":
        model.base_model.model.activation_checkpointing_enable()
        model.train()
    if how == "hooked":
        for name, part in model.named_modules():
            if name.endswith("base_layer"):
                part.register_forward_hook(lambda module, args, result: 2 * result)
    inputs = families.batch("llama")
    parameters = select_parameters(model, "all" if how == "base in scope" else "lora")
    vectors = oracle.random_vectors(parameters, 3)
    seen = []
    consume = Adapter.consume
    monkeypatch.setattr(Adapter, "consume", lambda self, *given: (seen.append(self.names), consume(self, *given)))
    # The recomputation runs outside any function mode, so that case keeps the family's own fp32 norms.
    precision, bar = (nullcontext(), 1e-6) if how == "checkpointed" else (families.DoublePrecision(), 1e-9)
    with precision:
        got = GradientDots(model, parameters).products(
            lambda: oracle.loss_of(model, inputs), RowOwners(N), vectors, squared_norms=True
        )
        singles = [
            oracle.gradient(parameters, lambda k=k: oracle.loss_of(model, families.alone("llama", inputs, k))[0])
            for k in range(N)
        ]
    assert len(seen) == (4 if fused else 0)
    assert oracle.relative_error(got.dots, torch.stack([oracle.dots(one, vectors) for one in singles])) <= bar
    norms = torch.stack([oracle.squared_norm(one) for one in singles])
    assert oracle.relative_error(got.squared_norms, norms) <= bar
    assert not any("forward" in module.__dict__ for module in model.modules())


class Untreated(nn.Module):
    def __init__(self, how: Callable[[Tensor, nn.Parameter], Tensor]) -> None:
        super().__init__()
        self.weight, self.how = nn.Parameter(torch.randn(D, D)), how

    def forward(self, x: Tensor) -> Tensor:
        return self.how(x, self.weight)


@pytest.mark.parametrize(
    ("how", "called"),
    [
        (lambda x, w: (w @ x.mT).mT, "matmul"),
        (lambda x, w: F.linear(x, w.view(1, D, D)[0]), "linear"),
        (lambda x, w: F.linear(x, w.T), "linear"),
        (lambda x, w: torch.where(x > 0, w[0], x), "where"),
        (lambda x, w: torch.einsum("ntd,de->nte", x, w), "einsum"),
        (lambda x, w: x.div(w[0]), "div"),
    ],
)
def test_a_use_nobody_knows_is_an_error_with_names(how: Callable[[Tensor, nn.Parameter], Tensor], called: str) -> None:
    model = Around(Untreated(how))
    engine = GradientDots(model, select_parameters(model, "all"))
    with pytest.raises(InfluenceError, match=r"layer\.weight \(in layer, a Untreated\).*" + called + ".*leave it out"):
        engine.products(lambda: losses_of(model, torch.randn(N, T, D)), RowOwners(N))
    narrower = GradientDots(model, select_parameters(model, "out|into"))
    assert len(narrower.products(lambda: losses_of(model, torch.randn(N, T, D)), RowOwners(N)).losses) == N


class OwnBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(w)
        return x * w

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        return g * ctx.saved_tensors[0], None


def test_a_weight_inside_a_custom_autograd_function_is_refused() -> None:
    model = Around(Untreated(lambda x, w: OwnBackward.apply(x, w[0])))
    engine = GradientDots(model, select_parameters(model, "all"))
    with pytest.raises(InfluenceError, match=r"layer\.weight.*custom autograd function"):
        engine.products(lambda: losses_of(model, torch.randn(N, T, D)), RowOwners(N))


def test_verify_finds_rows_given_to_the_wrong_sample() -> None:
    torch.manual_seed(0)
    model, x = Around(nn.Linear(D, D)).double(), torch.randn(N, T, D, dtype=torch.float64)
    engine = GradientDots(model, select_parameters(model, "all"))
    assert engine.verify(lambda: losses_of(model, x), RowOwners(N)) < 1e-12
    swapped = RowOwners(N, vision=torch.tensor([1, 0, 2]), text_parameters=frozenset())
    with pytest.raises(InfluenceError, match=r"parameter into\.weight, row 0 .* by plain autograd"):
        engine.verify(lambda: losses_of(model, x), swapped)


@pytest.mark.parametrize("weights", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", families.FAMILIES)
def test_verify_is_content_with_every_family_in_every_precision(tiny: Tiny, family: str, weights: torch.dtype) -> None:
    model, inputs = tiny(family).to(weights), families.batch(family)
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].to(weights)
    engine = GradientDots(model, select_parameters(model, "all"))
    worst = engine.verify(lambda: oracle.loss_of(model, inputs), RowMap(model).of(inputs), most_samples=N)
    assert 0 < worst <= {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.1}[weights]


def test_a_non_finite_gradient_is_named_with_its_layer() -> None:
    model, x = Around(nn.Linear(D, D)), torch.randn(N, T, D)
    x[1, 2, 0] = torch.inf
    parameters = select_parameters(model, "all")
    got = GradientDots(model, parameters).products(
        lambda: losses_of(model, x), RowOwners(N), oracle.random_vectors(parameters, 1)
    )
    assert list(got.non_finite()) == [1]
    assert got.non_finite()[1] in parameters


def test_what_does_not_fit_is_refused() -> None:
    model, x = Around(nn.Linear(D, D)), torch.randn(N, T, D)
    parameters = select_parameters(model, "layer")
    engine, rows = GradientDots(model, parameters), RowOwners(N)
    vectors = oracle.random_vectors(parameters, 2)
    with pytest.raises(InfluenceError, match=r"losses have shape \(\), not \[3\]"):
        engine.products(lambda: losses_of(model, x).mean(), rows)
    with pytest.raises(InfluenceError, match=r"layer.bias has none, not \['M', 4\]"):
        engine.products(lambda: losses_of(model, x), rows, {"layer.weight": vectors["layer.weight"]})
    with pytest.raises(InfluenceError, match=r"\[1, 2\] vectors"):
        engine.products(lambda: losses_of(model, x), rows, vectors | {"layer.bias": torch.ones(1, D)})
    with pytest.raises(InfluenceError, match="took part"):
        engine.products(lambda: losses_of(model.out, x), rows)
    with pytest.raises(InfluenceError, match=r"layer.bias: it sees 3 rows, which are not the 2 samples"):
        engine.products(lambda: losses_of(model, x)[:2], RowOwners(2))


def test_verify_sees_a_wrong_product_in_bf16_too(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x = Around(nn.Linear(D, D)).bfloat16(), torch.randn(N, T, D, dtype=torch.bfloat16)
    engine = GradientDots(model, select_parameters(model, "all"))
    engine.verify(lambda: losses_of(model, x), RowOwners(N))
    right = GradientDots.products

    def zeroed(*arguments: Any, **named: Any) -> Any:
        found = right(*arguments, **named)
        name = max(found.by_parameter, key=lambda n: engine.parameters[n].numel())
        found.by_parameter[name] = torch.zeros_like(found.by_parameter[name])
        return found

    monkeypatch.setattr(GradientDots, "products", zeroed)
    with pytest.raises(InfluenceError, match="by plain autograd"):
        engine.verify(lambda: losses_of(model, x), RowOwners(N))

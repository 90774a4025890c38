"""What the engine holds beyond the model and its vectors, against a plain training step's activations."""

from __future__ import annotations

import peft
import pytest
import torch
import transformers
from _memory import peak_bytes
from torch import nn

from ostlight.influence.gradients.engine import GradientDots
from ostlight.influence.gradients.rows import RowOwners
from ostlight.influence.parameters import select_parameters
from ostlight.models.losses import per_sample_losses

N, T = 8, 64


def model_of(adapters: bool) -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=512, hidden_size=128, intermediate_size=352, num_hidden_layers=4, num_attention_heads=4
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    if adapters:
        model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "v_proj", "up_proj"], r=4))
    return model.eval()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("scope", ["blocks", "head", "all", "lora"])
def test_peak_is_at_most_1_15_times_the_activations_of_a_training_step(scope: str) -> None:
    model = model_of(adapters=scope == "lora")
    parameters = select_parameters(model, scope)
    vectors = {name: torch.randn(5, *parameter.shape) for name, parameter in parameters.items()}
    ids = torch.randint(3, 500, (N, T))
    known = [*model.parameters(), *model.buffers(), *vectors.values(), ids]

    trained = model_of(adapters=False)
    activations = peak_bytes(
        lambda: per_sample_losses(trained(input_ids=ids, use_cache=False).logits, ids).mean(),
        "cpu",
        [*trained.parameters(), *trained.buffers(), ids],
    )
    engine = GradientDots(model, parameters)

    def losses() -> torch.Tensor:
        return per_sample_losses(model(input_ids=ids, use_cache=False).logits, ids)

    for norms in (False, True):
        scoring = peak_bytes(
            lambda: engine.products(losses, RowOwners(N), vectors, squared_norms=norms),  # noqa: B023
            "cpu",
            known,
        )
        assert 0 < scoring <= 1.15 * activations
    assert all(parameter.grad is None for parameter in model.parameters())

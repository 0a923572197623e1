from typing import Any

import pytest
import torch
from transformers import (
    Ernie4_5Config,
    Ernie4_5ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from app.policy.hidden import computes_alone, hidden_at
from app.policy.lora import add_adapter, factors
from app.policy.precision import lower

SHAPE: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}
# Places in no order, several of a row, none of the third, and the same one twice.
ROW = torch.tensor([3, 0, 0, 1, 0, 3, 1])
POSITION = torch.tensor([8, 2, 3, 0, 7, 1, 0])
IDS = torch.randint(2, 60, (4, 9), generator=torch.Generator().manual_seed(5))


def made(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    models: dict[str, Any] = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
        "one layer": lambda: LlamaForCausalLM(LlamaConfig(**{**SHAPE, "num_hidden_layers": 1})),
        "llama with biases": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True)),
        "llama3 positions": lambda: LlamaForCausalLM(
            LlamaConfig(
                **SHAPE,
                rope_parameters={
                    "rope_type": "llama3",
                    "rope_theta": 10_000.0,
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 16,
                },
            )
        ),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
        "mistral": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=None)),
        "mistral, sliding": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=4)),
        "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=8)),
        "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SHAPE, head_dim=8)),
        "ernie": lambda: Ernie4_5ForCausalLM(Ernie4_5Config(**SHAPE, head_dim=8)),
        "llama with dropout": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, attention_dropout=0.1)),
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=60, n_positions=64, n_embd=32, n_layer=2, n_head=2)),
    }
    model: PreTrainedModel = models[name]().eval()
    with torch.no_grad():  # away from the small numbers of a new model, among which much looks alike
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def states_and_gradients(model: PreTrainedModel, alone: bool) -> list[torch.Tensor]:
    model.zero_grad()
    if alone:
        states = hidden_at(model, IDS, ROW, POSITION)
    else:
        states = model.base_model(input_ids=IDS, use_cache=False).last_hidden_state[ROW, POSITION]
    weights = torch.linspace(-1, 1, states.numel()).view_as(states)
    (states * weights).sum().backward()
    return [states.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


ALONE = ["llama", "one layer", "llama with biases", "llama3 positions", "qwen2", "mistral"]


@pytest.mark.parametrize("name", ALONE)
def test_states_and_gradients_are_those_of_the_models_own_forward_pass(name: str) -> None:
    model = made(name)
    assert computes_alone(model.base_model)
    expected, found = (states_and_gradients(model, alone) for alone in (False, True))
    assert len(expected) == len(found)
    for theirs, ours in zip(expected, found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["mistral, sliding", "qwen3", "ernie", "llama with dropout", "gemma2", "gpt2"])
def test_a_model_whose_last_layer_does_more_is_left_to_itself(name: str) -> None:
    model = made(name)
    assert not computes_alone(model.base_model)
    expected = model.base_model(input_ids=IDS, use_cache=False).last_hidden_state[ROW, POSITION]
    assert torch.equal(hidden_at(model, IDS, ROW, POSITION), expected)


def test_in_bf16_too_another_rotation_is_told() -> None:
    model = made("ernie")
    lower(model)
    assert not computes_alone(model.base_model)


def test_the_last_layers_network_sees_only_the_places_that_are_read() -> None:
    model = made("llama")
    assert computes_alone(model.base_model)
    seen: list[int] = []
    for layer in model.base_model.layers:
        layer.mlp.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[:-1].numel()))
    hidden_at(model, IDS, ROW, POSITION)
    assert seen == [36, 36, 7]


def test_what_stands_behind_a_place_changes_nothing() -> None:
    model, later = made("llama"), IDS.clone()
    later[0, 8] = 7
    later[1, 1:] = 9
    before, after = (hidden_at(model, ids, ROW, POSITION) for ids in (IDS, later))
    assert torch.equal(before, after)


def test_an_adapter_is_heard_and_learns_in_the_last_layer_too() -> None:
    model = made("llama")
    add_adapter(model, "a", rank=2, seed=0)
    with torch.no_grad():
        for factor in factors(model, "a").values():
            factor.add_(0.05)
    expected, found = (states_and_gradients(model, alone) for alone in (False, True))
    assert len(found) == 1 + len(factors(model, "a")) == len(expected)
    for theirs, ours in zip(expected, found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_in_bf16_it_multiplies_in_bf16() -> None:
    model = made("llama")
    whole = hidden_at(model, IDS, ROW, POSITION)
    lower(model)
    low = hidden_at(model, IDS, ROW, POSITION)
    expected = model.base_model(input_ids=IDS, use_cache=False).last_hidden_state[ROW, POSITION]
    assert 1e-3 < float((low - whole).norm() / whole.norm()) < 0.1
    torch.testing.assert_close(low.float(), expected.float(), atol=0.1, rtol=0.1)

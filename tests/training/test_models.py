import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
)

from app.core.configs import PPOConfig, SFTConfig, TrainConfig
from app.policy.lora import factors, heard, using
from app.policy.precision import compute_dtype
from app.training import memory
from app.training.failures import RunFailure
from app.training.logprobs import read_tokens
from app.training.memory import free_memory, require_memory, stored_parameters, trained
from app.training.models import freeze, learning, load_state, prepare, require_finite_weights, state_of

SHAPE = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}
IDS = torch.tensor([[5, 6, 7, 8, 9], [9, 10, 11, 12, 13]])
PLACES = (torch.tensor([0, 0, 1]), torch.tensor([1, 3, 2]), torch.tensor([7, 9, 12]))


def llama(dropout: float = 0.0) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE, attention_dropout=dropout, tie_word_embeddings=True)).eval()


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=40, n_positions=32, n_embd=16, n_layer=3, n_head=2, eos_token_id=1, pad_token_id=0)
    return GPT2LMHeadModel(config).eval()


def gradients(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    model.zero_grad()
    read_tokens(model, IDS, *PLACES).logprobs.sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# ---- recomputing layers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recomputed_layers_give_the_same_bits(make: type, rank: int, precision: str) -> None:
    def found(again: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model = make()
        config = TrainConfig(gradient_checkpointing=again, lora_rank=rank, precision=precision)  # type: ignore[arg-type]
        prepare(model, config, seed=1)
        if rank:
            for parameter in factors(model, "policy").values():
                nn.init.constant_(parameter, 0.1)
        return read_tokens(model, IDS, *PLACES).logprobs.detach(), gradients(model)

    (plain, expected), (again, recomputed) = found(again=False), found(again=True)
    assert torch.equal(plain, again)
    assert expected.keys() == recomputed.keys()
    assert all(torch.equal(expected[name], recomputed[name]) for name in expected)


def test_recomputation_works_in_evaluation_mode_and_leaves_out_what_it_promises() -> None:
    calls = []
    model = prepare(llama(), TrainConfig(gradient_checkpointing=True), seed=1)
    read_tokens(model, IDS, *PLACES)  # the model is tried out once
    # Not the last layer: going back begins with it, and what it holds is gone before the next is computed again.
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    loss = read_tokens(model, IDS, *PLACES).logprobs.sum()
    assert not model.training
    assert len(calls) == 1
    loss.backward()
    assert len(calls) == 2
    with torch.no_grad():
        read_tokens(model, IDS, *PLACES)
    assert len(calls) == 3


def test_a_layer_is_recomputed_with_the_adapter_of_its_forward_pass() -> None:
    def found(again: bool) -> dict[str, torch.Tensor]:
        model = prepare(llama(), TrainConfig(gradient_checkpointing=again, lora_rank=2), seed=1)
        for parameter in factors(model, "policy").values():
            nn.init.constant_(parameter, 0.1)
        loss = read_tokens(model, IDS, *PLACES).logprobs.sum()
        with using(model, None):  # DPO, say, reads its reference before it goes back
            loss.backward()
        return {name: p.grad for name, p in factors(model, "policy").items() if p.grad is not None}

    expected, recomputed = found(again=False), found(again=True)
    assert len(expected) == len(recomputed) > 0
    assert all(torch.equal(expected[name], recomputed[name]) for name in expected)


def test_dropout_draws_the_same_numbers_when_a_layer_is_recomputed() -> None:
    def found(again: bool) -> dict[str, torch.Tensor]:
        model = prepare(llama(dropout=0.5).train(), TrainConfig(gradient_checkpointing=again), seed=1)
        torch.manual_seed(4)
        return gradients(model)

    expected, recomputed = found(again=False), found(again=True)
    assert all(torch.equal(expected[name], recomputed[name]) for name in expected)


def test_a_model_without_layers_to_recompute_is_refused() -> None:
    class Bare(LlamaForCausalLM):
        pass

    model = Bare(LlamaConfig(**SHAPE))
    model.model.layers = nn.ModuleList()
    with pytest.raises(RunFailure, match="Bare has no layers that can be recomputed"):
        prepare(model, TrainConfig(gradient_checkpointing=True), seed=1)


# ---- bf16 ---------------------------------------------------------------------------------------------------------


def test_bf16_covers_the_matrices_and_nothing_else() -> None:
    model = prepare(llama(), TrainConfig(precision="bf16"), seed=1)
    seen: dict[str, torch.dtype] = {}
    for name, module in model.model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out.dtype}))
    reading = read_tokens(model, IDS, *PLACES, entropy=True)
    assert compute_dtype(model) is torch.bfloat16
    assert set(seen.values()) == {torch.bfloat16}
    assert len(seen) == 3 * 7
    assert reading.logprobs.dtype is torch.float32
    assert reading.entropy is not None
    assert reading.entropy.dtype is torch.float32
    reading.logprobs.sum().backward()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("make", [llama, gpt2])
def test_bf16_is_near_fp32(make: type) -> None:
    exact = read_tokens(make(), IDS, *PLACES).logprobs
    low = read_tokens(prepare(make(), TrainConfig(precision="bf16"), seed=1), IDS, *PLACES).logprobs
    torch.testing.assert_close(low, exact, atol=0.01, rtol=0.01)
    assert not torch.equal(low, exact)


def test_a_frozen_model_in_bf16_says_to_the_bit_what_the_live_one_does_and_takes_less_room() -> None:
    config = TrainConfig(precision="bf16")
    live, frozen = prepare(llama(), config, seed=1), freeze(llama(), config)
    assert torch.equal(read_tokens(live, IDS, *PLACES).logprobs, read_tokens(frozen, IDS, *PLACES).logprobs)
    assert frozen.model.layers[0].mlp.up_proj.weight.dtype is torch.bfloat16
    assert frozen.model.embed_tokens.weight.dtype is torch.float32
    assert not any(p.requires_grad for p in frozen.parameters())


def test_a_copy_of_a_prepared_model_computes_with_its_own_weights() -> None:
    model = prepare(llama(), TrainConfig(precision="bf16", gradient_checkpointing=True), seed=1)
    twin = copy.deepcopy(model)
    before = read_tokens(model, IDS, *PLACES).logprobs
    nn.init.zeros_(model.model.layers[0].mlp.up_proj.weight)
    assert torch.equal(read_tokens(twin, IDS, *PLACES).logprobs, before)
    assert not torch.equal(read_tokens(model, IDS, *PLACES).logprobs, before)


# ---- LoRA ---------------------------------------------------------------------------------------------------------


def test_with_lora_the_state_is_the_adapter_and_comes_back() -> None:
    config = TrainConfig(lora_rank=2)
    one, other = (prepare(llama(), config, seed=seed) for seed in (1, 2))
    assert heard(one) == "policy"
    assert state_of(one).keys() == factors(one, "policy").keys() == dict(learning(one)).keys()
    for parameter in factors(one, "policy").values():
        nn.init.normal_(parameter)
    assert not torch.equal(read_tokens(one, IDS, *PLACES).logprobs, read_tokens(other, IDS, *PLACES).logprobs)
    load_state(other, state_of(one))
    assert torch.equal(read_tokens(one, IDS, *PLACES).logprobs, read_tokens(other, IDS, *PLACES).logprobs)


def test_without_lora_the_state_is_the_whole_model() -> None:
    model = prepare(llama(), TrainConfig(), seed=1)
    assert state_of(model).keys() == model.state_dict().keys()
    assert dict(learning(model)).keys() == dict(model.named_parameters()).keys()


def test_a_classifier_s_score_learns_beside_its_adapter() -> None:
    torch.manual_seed(0)
    body = prepare(LlamaForSequenceClassification(LlamaConfig(**SHAPE, num_labels=1)), TrainConfig(lora_rank=2), seed=1)
    assert {name for name, p in body.named_parameters() if p.requires_grad and "lora" not in name} == {"score.weight"}
    assert "score.weight" in state_of(body)


@pytest.mark.parametrize("config", [{"optimizer": "muon"}], ids=str)
def test_lora_and_muon_do_not_go_together(config: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="Muon is made for whole matrices"):
        PPOConfig.model_validate({"lora_rank": 4, **config})
    with pytest.raises(ValueError, match="Muon is made for whole matrices"):
        SFTConfig(lora_rank=4, muon_learning_rate=1e-3)
    assert SFTConfig(lora_rank=4, muon_learning_rate=0).lora_rank == 4


# ---- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(poison: float) -> None:
    model = llama()
    model.model.layers[1].mlp.up_proj.weight.data[3, 4] = poison
    with pytest.raises(RunFailure, match=r"policy has weights that are NaN or infinite \(model\.layers\.1\."):
        require_finite_weights(model, "policy")


def test_a_run_that_cannot_fit_is_refused_with_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: 3_000_000_000)
    require_memory({"policy": 2_999_999_999}, torch.device("cpu"), "mend")
    with pytest.raises(RunFailure) as refusal:
        require_memory({"policy": 3_000_000_000, "reference": 500_000_000}, torch.device("cpu"), "Set lora_rank.")
    assert refusal.value.error.kind == "memory"
    assert "at least 3.5 GB (policy 3 GB, reference 0.5 GB); 3 GB is free" in refusal.value.error.message


def test_where_nobody_says_how_much_is_free_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MEMINFO", Path("/nowhere"))
    assert free_memory(torch.device("cpu")) is None
    require_memory({"policy": 10**18}, torch.device("cpu"), "mend")


def test_free_memory_is_the_machine_s_or_the_control_group_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   2000 kB\nSwapFree: 500 kB\nHugePages: 0\n")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert free_memory(torch.device("cpu")) == 2500 * 1024
    (tmp_path / "memory.current").write_text("1000000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(torch.device("cpu")) == 2500 * 1024
    (tmp_path / "memory.max").write_text("1500000\n")
    assert free_memory(torch.device("cpu")) == 500_000


def test_what_learns_is_held_with_gradient_and_moments(tmp_path: Path) -> None:
    # Weights, gradient, two moments: 16 bytes each; one more copy: 20.
    assert trained(1000) == 16_000
    assert trained(1000, copies=1) == 20_000
    model = llama()
    model.save_pretrained(tmp_path)
    assert stored_parameters(tmp_path) == sum(p.numel() for p in model.parameters())

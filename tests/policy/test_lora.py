import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from app.core.configs import SamplingSettings
from app.core.errors import Invalid
from app.policy.checkpoint import load_policy, save_policy
from app.policy.decoders import GenericDecoder, LlamaDecoder
from app.policy.engine import generate
from app.policy.lora import (
    add_adapter,
    as_now,
    effective_weight,
    factors,
    hear,
    heard,
    load_factors,
    merged,
    merged_with,
    read_adapter,
    save_model,
    using,
)
from app.policy.starter import new_starter

SHAPE = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}
IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


def made(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True)).eval()
    if kind == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**SHAPE)).eval()
    gpt2 = GPT2Config(vocab_size=40, n_positions=32, n_embd=16, n_layer=2, n_head=2, eos_token_id=1, pad_token_id=0)
    return GPT2LMHeadModel(gpt2).eval()


KINDS = ["llama", "qwen2", "gpt2"]


def learn(model: PreTrainedModel, name: str) -> None:
    """Give an adapter numbers, as training would."""
    generator = torch.Generator().manual_seed(len(name))
    for parameter in factors(model, name).values():
        parameter.data.normal_(0, 0.2, generator=generator)


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    return model(input_ids=IDS).logits


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_adapter_changes_nothing_and_one_that_learnt_can_be_switched_off(kind: str) -> None:
    model = made(kind)
    plain = logits(model)
    add_adapter(model, "policy", rank=3, seed=1)
    add_adapter(model, "value", rank=2, seed=2)
    assert heard(model) == "value"
    assert torch.equal(logits(model), plain)
    learn(model, "policy")
    assert torch.equal(logits(model), plain)
    with using(model, "policy"):
        first = logits(model)
        assert (first - plain).abs().max() > 1e-3
        with using(model, None):
            assert torch.equal(logits(model), plain)
        assert torch.equal(logits(model), first)
    assert heard(model) == "value"


def test_one_layer_worked_by_hand() -> None:
    model = made("llama")
    add_adapter(model, "policy", rank=1, alpha=3.0, targets=["down_proj"], seed=1)
    layer = model.model.layers[0].mlp.down_proj
    layer.base_layer.weight.data.fill_(0.5)
    layer.lora_A["policy"].weight.data.fill_(2.0)
    layer.lora_B["policy"].weight.data.fill_(0.25)
    # W + alpha / rank B A = 0.5 + 3 x 0.25 x 2 in every entry; 24 inputs of 1 sum to 48.
    assert torch.equal(effective_weight(layer), torch.full((16, 24), 2.0))
    with torch.no_grad():
        torch.testing.assert_close(layer(torch.ones(1, 24)), torch.full((1, 16), 48.0))
    assert len(factors(model, "policy")) == 4  # A and B of two layers


@pytest.mark.parametrize("kind", KINDS)
def test_only_adapters_learn_and_each_only_while_it_is_heard(kind: str) -> None:
    model = made(kind)
    add_adapter(model, "policy", rank=2, seed=1)
    add_adapter(model, "value", rank=2, seed=2)
    for name in ("policy", "value"):
        learn(model, name)
    with using(model, "policy"):
        loss = model(input_ids=IDS).logits.sum()
    hear(model, "value")  # what is heard going back does not matter
    loss.backward()
    assert all(p.grad is not None for p in factors(model, "policy").values())
    assert all(p.grad is None for p in factors(model, "value").values())
    assert sum(p.grad is not None for p in model.parameters()) == len(factors(model, "policy"))


def test_the_same_seed_gives_the_same_adapter_and_disturbs_no_other_generator() -> None:
    one, two = made("llama"), made("llama")
    before = torch.get_rng_state()
    add_adapter(one, "policy", rank=2, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    add_adapter(two, "policy", rank=2, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_targets_that_the_model_does_not_have_are_refused_by_name() -> None:
    with pytest.raises(Invalid, match="names no linear layer of LlamaForCausalLM") as refusal:
        add_adapter(made("llama"), "policy", rank=2, targets=["c_attn"], seed=1)
    assert "down_proj, gate_proj, k_proj" in str(refusal.value.mend)


def test_an_adapter_of_another_rank_is_refused() -> None:
    model, other = made("llama"), made("llama")
    add_adapter(model, "policy", rank=2, seed=1)
    add_adapter(other, "policy", rank=2, targets=["q_proj"], seed=1)
    with pytest.raises(Invalid, match="another model or rank"):
        load_factors(model, "policy", factors(other, "policy"))


def test_a_recomputation_hears_what_was_heard_at_first() -> None:
    model = made("llama")
    add_adapter(model, "policy", rank=2, seed=1)
    learn(model, "policy")
    layer = model.model.layers[0]
    hear(model, None)
    then = as_now(layer)
    hear(model, "policy")
    with then:
        assert layer.self_attn.q_proj.disable_adapters
        assert not model.model.layers[1].self_attn.q_proj.disable_adapters
    assert heard(model) == "policy"


# ---- on disk ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_is_a_plain_merged_model_and_an_adapter_that_peft_puts_onto_the_base(
    kind: str, tmp_path: Path
) -> None:
    model = made(kind)
    model.save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    keys = set(model.state_dict())
    add_adapter(model, "value", rank=4, seed=3)
    add_adapter(model, "policy", rank=3, alpha=2.0, seed=1)
    learn(model, "policy")
    learn(model, "value")
    expected = torch.log_softmax(logits(model), -1)
    assert merged(model).keys() == keys
    (tmp_path / "final").mkdir()
    save_model(tmp_path / "final", model)

    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "final").eval()
    assert type(plain) is type(model)
    torch.testing.assert_close(torch.log_softmax(logits(plain), -1), expected, atol=1e-5, rtol=1e-5)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    onto = PeftModel.from_pretrained(base, str(tmp_path / "final" / "adapter")).eval()
    with torch.no_grad():
        found = torch.log_softmax(onto(input_ids=IDS).logits, -1)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    settings = json.loads((tmp_path / "final" / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "base"
    assert settings["target_modules"] == sorted(settings["target_modules"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_adapter_merged_by_hand_is_the_merged_model(kind: str, tmp_path: Path) -> None:
    model, base = made(kind), made(kind)
    add_adapter(model, "policy", rank=3, seed=1)
    learn(model, "policy")
    save_model(tmp_path, model)
    saved = read_adapter(tmp_path / "adapter")
    assert (saved.rank, saved.alpha, saved.score) == (3, 6.0, None)
    ours, theirs = merged_with(base, saved), merged(model)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=1e-6, rtol=1e-6)
    assert any(not torch.equal(tensor, base.state_dict()[name]) for name, tensor in ours.items())
    # Of another shape nothing is merged.
    other = LlamaForCausalLM(LlamaConfig(**{**SHAPE, "hidden_size": 32}))
    assert all(torch.equal(t, other.state_dict()[n]) for n, t in merged_with(other, saved).items())


def test_a_classifier_s_score_goes_with_its_adapter(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPE, num_labels=1)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "base")
    load = AutoModelForSequenceClassification.from_pretrained
    model = load(tmp_path / "base").eval()
    add_adapter(model, "policy", rank=2, seed=1)
    learn(model, "policy")
    model.score.weight.data.normal_()
    (tmp_path / "final").mkdir()
    save_model(tmp_path / "final", model)
    expected = logits(model)
    torch.testing.assert_close(logits(load(tmp_path / "final").eval()), expected, atol=1e-5, rtol=1e-5)
    onto = PeftModel.from_pretrained(load(tmp_path / "base"), str(tmp_path / "final" / "adapter")).eval()
    torch.testing.assert_close(logits(onto), expected, atol=1e-6, rtol=1e-6)
    score = read_adapter(tmp_path / "final" / "adapter").score
    assert score is not None
    assert torch.equal(score, model.score.weight)


def test_an_adapter_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="cannot be read"):
        read_adapter(tmp_path / "adapter")


# ---- sampling -----------------------------------------------------------------------------------------------------


def test_a_policy_with_an_adapter_samples_as_its_merged_self(tmp_path: Path) -> None:
    model, tokenizer = new_starter("tiny")
    add_adapter(model, "policy", rank=4, seed=1)
    learn(model, "policy")
    save_policy(tmp_path, model, tokenizer)
    plain = load_policy(tmp_path).model
    prompts, seeds = [[5, 6, 7], [8, 9], [10]], [1, 2, 3]

    def sampled(policy: PreTrainedModel) -> list[tuple[list[int], list[float]]]:
        answers = generate(policy, prompts, seeds, SamplingSettings(max_tokens=12), 1, 0)
        return [(answer.token_ids, answer.logprobs) for answer in answers]

    ours, theirs = sampled(model), sampled(plain)
    assert [ids for ids, _ in ours] == [ids for ids, _ in theirs]
    for (_, one), (_, other) in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, abs=1e-4)
    with using(model, None):
        assert [ids for ids, _ in sampled(model)] != [ids for ids, _ in theirs]


def test_the_fast_decoder_hears_the_adapter_as_the_general_one_does() -> None:
    model = made("llama")
    add_adapter(model, "policy", rank=4, seed=1)
    learn(model, "policy")
    with torch.no_grad():
        fast, slow = LlamaDecoder(model, 8), GenericDecoder(model)  # type: ignore[arg-type]
        lengths = torch.tensor([4, 4])
        torch.testing.assert_close(fast.prefill(IDS, lengths), slow.prefill(IDS, lengths), atol=1e-5, rtol=1e-5)
        token = torch.tensor([3, 4])
        torch.testing.assert_close(fast.step(token), slow.step(token), atol=1e-5, rtol=1e-5)


def test_the_fast_decoder_in_bf16_is_near_the_exact_one() -> None:
    model = made("llama")
    with torch.no_grad():
        exact, low = LlamaDecoder(model, 8), LlamaDecoder(model, 8, torch.bfloat16)  # type: ignore[arg-type]
        lengths, token = torch.tensor([4, 4]), torch.tensor([3, 4])
        for one, other in (
            (exact.prefill(IDS, lengths), low.prefill(IDS, lengths)),
            (exact.step(token), low.step(token)),
        ):
            assert other.dtype is torch.float32
            torch.testing.assert_close(other, one, atol=0.02, rtol=0.02)
            assert not torch.equal(other, one)

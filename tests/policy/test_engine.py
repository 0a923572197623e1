import math

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from app.core.configs import SamplingSettings
from app.core.errors import Invalid
from app.core.vocabulary import FinishReason
from app.policy import engine
from app.policy.decoders import GenericDecoder, LlamaDecoder
from app.policy.engine import generate

PAD, END = 0, 1
VOCABULARY = 50
SETTINGS = SamplingSettings(max_tokens=12)
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [5, 6, 7], [20, 21]]
SEEDS = [1, 2, 3, 4, 5]


def llama(**changes):
    torch.manual_seed(0)
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
        "pad_token_id": PAD,
        "eos_token_id": END,
    }
    return LlamaForCausalLM(LlamaConfig(**{**shape, **changes})).eval()


def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=40, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3,
        bos_token_id=END, eos_token_id=END,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def qwen():
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.3, bos_token_id=None, eos_token_id=END, pad_token_id=PAD,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).eval()


LLAMAS = {
    "plain": {},
    "grouped queries": {"num_key_value_heads": 2},
    "one key-value head": {"num_key_value_heads": 1},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "tied": {"tie_word_embeddings": True},
    "wide heads": {"head_dim": 16},
    "scaled rotary": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
}


def plain_logprobs(model, prompt, answer, temperature=1.0):
    """By one forward pass over the row alone, without padding or cache."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits / temperature, -1)[range(len(answer)), answer]


@pytest.mark.parametrize("changes", LLAMAS.values(), ids=LLAMAS.keys())
def test_the_fast_path_the_general_path_and_a_plain_forward_agree(changes, monkeypatch):
    model = llama(**changes)
    assert LlamaDecoder.fits(model)
    fast = generate(model, PROMPTS, SEEDS, SETTINGS, END, PAD)
    monkeypatch.setattr(engine, "decoder_for", lambda model, capacity, like=None: GenericDecoder(model))
    general = generate(model, PROMPTS, SEEDS, SETTINGS, END, PAD)
    assert [g.token_ids for g in fast] == [g.token_ids for g in general]
    for prompt, a, b in zip(PROMPTS, fast, general, strict=True):
        expected = plain_logprobs(model, prompt, a.token_ids)
        torch.testing.assert_close(torch.tensor(a.logprobs), expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(torch.tensor(b.logprobs), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("make", [gpt2, qwen])
def test_any_causal_model_goes_through_its_own_cache(make):
    model = make()
    assert not LlamaDecoder.fits(model)
    answers = generate(model, PROMPTS, SEEDS, SETTINGS, END, PAD)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        expected = plain_logprobs(model, prompt, answer.token_ids)
        torch.testing.assert_close(torch.tensor(answer.logprobs), expected, atol=1e-4, rtol=0)


def test_a_rotary_embedding_that_depends_on_the_length_is_left_to_the_model():
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    assert not LlamaDecoder.fits(llama(rope_parameters=rope))


@pytest.mark.parametrize("make", [llama, gpt2])
def test_a_row_depends_on_its_seed_not_on_its_batch_mates(make):
    model = make()
    together = generate(model, PROMPTS * 8, list(range(40)), SETTINGS, END, PAD)
    for i in (0, 7, 22, 39):
        [alone] = generate(model, [(PROMPTS * 8)[i]], [i], SETTINGS, END, PAD)
        assert alone.token_ids == together[i].token_ids
    in_pieces = generate(model, PROMPTS * 8, list(range(40)), SETTINGS, END, PAD, max_batch=7)
    assert [g.token_ids for g in in_pieces] == [g.token_ids for g in together]


def test_seeds_make_the_difference():
    model = llama()
    answers = generate(model, [[5, 6, 7]] * 20, list(range(20)), SETTINGS, END, PAD)
    assert len({tuple(a.token_ids) for a in answers}) > 15


def test_tokens_come_as_often_as_the_model_says():
    model = llama()
    with torch.no_grad():
        probabilities = torch.softmax(model(input_ids=torch.tensor([[5, 6, 7]])).logits[0, -1], -1)
    one = SamplingSettings(max_tokens=1)
    answers = generate(model, [[5, 6, 7]] * 4000, list(range(4000)), one, END, PAD, max_batch=1000)
    counts = torch.bincount(torch.tensor([a.token_ids[0] for a in answers]), minlength=VOCABULARY)
    spread = (probabilities * (1 - probabilities) * 4000).sqrt()
    assert ((counts - probabilities * 4000).abs() < 5 * spread + 1).all()


def test_logprobs_are_those_at_the_sampling_temperature():
    model = llama()
    cold = SamplingSettings(max_tokens=8, temperature=0.5)
    [answer] = generate(model, [[5, 6]], [3], cold, END, PAD)
    expected = plain_logprobs(model, [5, 6], answer.token_ids, temperature=0.5)
    torch.testing.assert_close(torch.tensor(answer.logprobs), expected, atol=1e-4, rtol=0)


def test_top_p_keeps_the_smallest_set_that_has_enough():
    weights = torch.tensor([[0.5, 0.125, 0.25, 0.125]])
    assert engine._nucleus(weights, torch.tensor([[0.5]])).tolist() == [[1, 0, 0, 0]]
    assert engine._nucleus(weights, torch.tensor([[0.51]])).tolist() == [[1, 0, 1, 0]]
    assert engine._nucleus(weights, torch.tensor([[1.0]])).tolist() == [[1, 1, 1, 1]]


def test_a_narrow_top_p_always_takes_the_likeliest_token():
    model = llama()
    greedy = SamplingSettings(max_tokens=6, top_p=1e-6)
    first, second = generate(model, [[5, 6]] * 2, [1, 2], greedy, END, PAD)
    assert first.token_ids == second.token_ids
    with torch.no_grad():
        best = int(model(input_ids=torch.tensor([[5, 6]])).logits[0, -1].argmax())
    assert first.token_ids[0] == best


def test_every_row_may_have_its_own_settings():
    model = llama()
    settings = [SamplingSettings(max_tokens=3), SamplingSettings(max_tokens=9, temperature=2.0, top_p=0.7)]
    mixed = generate(model, [[5], [6, 7]], [1, 2], settings, END, PAD)
    alone = [generate(model, [p], [s], c, END, PAD)[0] for p, s, c in zip([[5], [6, 7]], [1, 2], settings, strict=True)]
    assert [g.token_ids for g in mixed] == [g.token_ids for g in alone]
    assert len(mixed[0].token_ids) <= 3


def test_an_answer_ends_with_the_stop_token_or_at_the_limit():
    model = llama()
    answers = generate(model, [[5, 6]] * 60, list(range(60)), SETTINGS, {END, 2}, PAD)
    stopped = [a for a in answers if a.finish is FinishReason.STOP]
    cut = [a for a in answers if a.finish is FinishReason.LENGTH]
    assert stopped
    assert cut
    assert all(a.token_ids[-1] in (END, 2) and not {END, 2} & set(a.token_ids[:-1]) for a in stopped)
    assert all(len(a.token_ids) == 12 and not {END, 2} & set(a.token_ids) for a in cut)
    assert all(len(a.logprobs) == len(a.token_ids) and max(a.logprobs) <= 0 for a in answers)


@pytest.mark.parametrize("make", [gpt2, lambda: llama(max_position_embeddings=40)])
def test_an_answer_never_outgrows_the_context(make):
    model = make()
    long = SamplingSettings(max_tokens=100)
    first, second = generate(model, [[5] * 38, [5]], [1, 2], long, eos_id=[], pad_id=PAD)
    assert (len(first.token_ids), first.finish) == (2, FinishReason.LENGTH)
    assert len(second.token_ids) == 39
    with pytest.raises(Invalid, match="40 tokens"):
        generate(model, [[5] * 40], [1], long, END, PAD)
    with pytest.raises(Invalid, match="at least one token"):
        generate(model, [[]], [1], long, END, PAD)


def test_live_weights_are_used_and_the_model_is_left_as_it_was():
    model = llama().train()
    before = generate(model, [[5, 6]], [1], SETTINGS, END, PAD)
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight.add_(1.0)
        model.lm_head.weight.neg_()
    after = generate(model, [[5, 6]], [1], SETTINGS, END, PAD)
    assert before[0].token_ids != after[0].token_ids
    assert model.training
    loss = model(input_ids=torch.tensor([[5, 6]]), labels=torch.tensor([[5, 6]])).loss
    loss.backward()
    assert math.isfinite(loss.item())


def test_unequal_lists_are_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="equally many"):
        generate(llama(), [[5]], [1, 2], SETTINGS, END, PAD)


def test_no_prompts_give_no_answers():
    assert generate(llama(), [], [], SETTINGS, END, PAD) == []

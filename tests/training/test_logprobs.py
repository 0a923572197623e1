import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from app.training import logprobs, losses
from app.training.logprobs import head_reading, plain_head, read_tokens, token_logits

SHAPE = {
    "vocab_size": 60,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}


def made(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    gpt2 = GPT2Config(vocab_size=60, n_positions=64, n_embd=16, n_layer=2, n_head=2, eos_token_id=1, bos_token_id=1)
    models = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True)),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
        "gpt2": lambda: GPT2LMHeadModel(gpt2),
        "phi, whose head has a bias": lambda: PhiForCausalLM(PhiConfig(**SHAPE)),
        "granite, not scaled": lambda: GraniteForCausalLM(GraniteConfig(**SHAPE)),
        "granite": lambda: GraniteForCausalLM(GraniteConfig(**SHAPE, logits_scaling=8.0)),
        "cohere": lambda: CohereForCausalLM(CohereConfig(**SHAPE)),
        "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SHAPE, head_dim=8)),
    }
    return models[name]().eval()


# ---- what is computed ---------------------------------------------------------------------------------------------


def test_two_tokens_worked_by_hand() -> None:
    # Logits (0, ln 2, ln 5): probabilities 1/8, 2/8, 5/8. At temperature 1/2 they are 1/30, 4/30, 25/30.
    hidden = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    weight = torch.tensor([[0.0, 9.0], [math.log(2), 9.0], [math.log(5), 9.0]])
    token = torch.tensor([1, 2])
    logp, entropy = head_reading(hidden, weight, None, token, entropy=True)
    assert logp.tolist() == pytest.approx([math.log(2 / 8), math.log(5 / 8)], abs=1e-6)
    bits = math.log(8) / 8 + 2 / 8 * math.log(4) + 5 / 8 * math.log(8 / 5)
    assert entropy is not None
    assert entropy.tolist() == pytest.approx([bits, bits], abs=1e-6)
    sharp = head_reading(hidden, weight, None, token, 0.5)
    assert sharp.logprobs.tolist() == pytest.approx([math.log(4 / 30), math.log(25 / 30)], abs=1e-6)
    assert sharp.entropy is None
    # A bias of ln 3 on the last entry: 1/18, 2/18, 15/18.
    biased = head_reading(hidden, weight, torch.tensor([0.0, 0.0, math.log(3)]), token)
    assert biased.logprobs.tolist() == pytest.approx([math.log(2 / 18), math.log(15 / 18)], abs=1e-6)


@pytest.mark.parametrize("chunk", [1, 60, 180, 10**9], ids=["one row", "a row", "three rows", "whole"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_and_gradients_are_those_of_whole_logits(chunk: int, bias: bool, temperature: float) -> None:
    torch.manual_seed(1)
    leaves = [torch.randn(7, 16), torch.randn(60, 16) / 4, torch.randn(60)]
    token = torch.randint(60, (7,))
    up_logp, up_entropy = torch.randn(7), torch.randn(7)

    def results(cut: bool) -> list[torch.Tensor]:
        hidden, weight, offset = (leaf.clone().requires_grad_() for leaf in leaves)
        if cut:
            logp, entropy = head_reading(
                hidden, weight, offset if bias else None, token, temperature, entropy=True, chunk=chunk
            )
            assert entropy is not None
        else:
            logits = nn.functional.linear(hidden, weight, offset if bias else None)
            logp, entropy = losses.token_logprobs(logits, token, temperature), losses.entropy(logits, temperature)
        (logp @ up_logp + entropy @ up_entropy).backward()
        grads = [leaf.grad for leaf in (hidden, weight, offset) if leaf.grad is not None]
        return [logp.detach(), entropy.detach(), *grads]

    plain, chunked = results(cut=False), results(cut=True)
    assert len(plain) == len(chunked) == 4 + bias
    for expected, found in zip(plain, chunked, strict=True):
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


def test_gradients_are_the_slopes_of_the_values() -> None:
    torch.manual_seed(2)
    hidden, weight, bias = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((3, 4), (5, 4), (5,)))

    def both(h: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logp, entropy = head_reading(h, w, b, torch.tensor([0, 4, 2]), 0.8, entropy=True, chunk=10)
        assert entropy is not None
        return logp, entropy

    assert torch.autograd.gradcheck(both, (hidden, weight, bias))


def test_a_frozen_head_gets_no_gradient() -> None:
    hidden, weight = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4)
    head_reading(hidden, weight, None, torch.tensor([0, 4, 2]), chunk=5).logprobs.sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None


# ---- which way is taken -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "phi, whose head has a bias", "granite, not scaled"])
def test_a_head_that_only_multiplies_is_recognised(name: str) -> None:
    model = made(name)
    assert plain_head(model) is model.get_output_embeddings()


@pytest.mark.parametrize("name", ["granite", "cohere", "gemma2"])
def test_a_head_that_does_more_is_recognised_too(name: str) -> None:
    assert plain_head(made(name)) is None


def test_a_head_whose_weights_hide_what_it_does_is_not_taken_for_plain() -> None:
    model = made("gemma2")  # all logits 0: its soft cap shows in none of them
    nn.init.zeros_(model.get_output_embeddings().weight)
    assert plain_head(model) is None


def test_a_model_that_changes_what_its_head_reads_is_not_plain() -> None:
    model = made("llama")
    head = model.get_output_embeddings()
    head.register_forward_pre_hook(lambda module, arguments: (arguments[0] * 2,))
    assert plain_head(model) is None


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi, whose head has a bias", "granite", "gemma2"])
def test_every_model_says_the_same_in_chunks_and_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(name)
    torch.manual_seed(3)
    ids = torch.randint(2, 60, (3, 9))
    row, position = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([4, 5, 7, 3, 6])
    token = ids[row, position + 1]

    def results() -> list[torch.Tensor]:
        model.zero_grad()
        reading = read_tokens(model, ids, row, position, token, 0.9, entropy=True)
        assert reading.entropy is not None
        (reading.logprobs.sum() + 0.1 * reading.entropy.sum()).backward()
        return [reading.logprobs.detach(), reading.entropy.detach(), *(p.grad.clone() for p in model.parameters())]

    whole = results()
    logits = torch.log_softmax(model(ids).logits / 0.9, -1)
    torch.testing.assert_close(whole[0], logits[row, position, token].detach(), atol=1e-5, rtol=1e-5)
    monkeypatch.setattr(logprobs, "CHUNK", 120)
    for found, expected in zip(results(), whole, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_a_model_that_cannot_leave_out_columns_is_read_at_the_right_ones() -> None:
    model = made("llama")
    ids, row, position = torch.randint(2, 60, (2, 6)), torch.tensor([0, 1]), torch.tensor([3, 4])
    expected = token_logits(model, ids, row, position)

    class Whole(LlamaForCausalLM):
        def forward(self, input_ids: torch.Tensor, use_cache: bool) -> object:
            return super().forward(input_ids=input_ids, use_cache=use_cache)

    whole = Whole(model.config).eval()
    whole.load_state_dict(model.state_dict())
    torch.testing.assert_close(token_logits(whole, ids, row, position), expected, atol=1e-5, rtol=1e-5)


# ---- memory -------------------------------------------------------------------------------------------------------

PEAK = """
import sys
import torch
from app.training import losses
from app.training.logprobs import head_reading
torch.set_num_threads(1)
def most():  # a child's ru_maxrss begins with its parent's
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
hidden, weight = torch.randn(2048, 8, requires_grad=True), torch.randn(20_000, 8, requires_grad=True)
token = torch.zeros(2048, dtype=torch.long)
before = most()
if sys.argv[1] == "chunks":
    found = head_reading(hidden, weight, None, token, chunk=1 << 20).logprobs
else:
    found = losses.token_logprobs(hidden @ weight.T, token)
found.sum().backward()
print((most() - before) / 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel does not say")
def test_forty_million_logits_and_their_gradients_fit_into_a_few_chunks() -> None:
    def peak(way: str) -> float:
        done = subprocess.run([sys.executable, "-c", PEAK, way], capture_output=True, text=True, check=True)
        return float(done.stdout)

    # 2048 x 20,000 logits are 156 MiB; a chunk is 4.
    assert peak("whole") > 300
    assert peak("chunks") < 60

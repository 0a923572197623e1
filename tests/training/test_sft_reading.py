"""SFT reads large vocabularies without their logits, and says the same."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from app.core.configs import TrainConfig
from app.training import logprobs, sft
from app.training.models import prepare
from app.training.sft import _accumulate, answer_nll, completion_logits
from app.training.sft_data import Example, collate
from tests.training.test_logprobs import made

ROWS = [
    Example("a", [5, 6, 7], [8, 9, 10, 1], [True, False, False, False]),
    Example("b", [11, 12], [13, 1], [False, False]),
    Example("c", [14], [15, 16, 17, 18, 19, 1], [False] * 6),
]
PLAIN = ["llama", "qwen2", "gpt2", "phi, whose head has a bias"]


def still(name: str) -> PreTrainedModel:
    model = made(name)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.3)
    return model


def figures(model: PreTrainedModel, room: int | None = None) -> tuple[float, float, list[torch.Tensor]]:
    model.zero_grad()
    loss, accuracy = _accumulate(model, ROWS, 2.0, None, 0, room)
    return loss, accuracy, [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("name", [*PLAIN, "granite", "cohere", "gemma2"])
@pytest.mark.parametrize("room", [None, 14], ids=["rows", "packed"])
def test_chunks_say_what_whole_logits_do(name: str, room: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = still(name)
    loss, accuracy, gradients = figures(model, room)
    with torch.no_grad():  # an independent computation, row by row, by the model's own logits
        told = []
        for row in ROWS:
            logits = model(torch.tensor([row.prompt + row.completion])).logits[0, len(row.prompt) - 1 : -1]
            told += list(zip(torch.log_softmax(logits.float(), -1), row.completion, strict=True))
        assert loss == pytest.approx(sum(-float(logp[token]) for logp, token in told) / 12, rel=1e-4)
        assert accuracy == pytest.approx(sum(int(logp.argmax()) == token for logp, token in told) / 12)
    monkeypatch.setattr(logprobs, "CHUNK", 150)
    calls: list[int] = []
    monkeypatch.setattr(sft, "completion_logits", lambda *a: calls.append(1) or completion_logits(*a))
    cut = figures(model, room)
    assert bool(calls) == (name not in PLAIN)  # heads that do more than multiply keep the model's own logits
    assert cut[:2] == pytest.approx((loss, accuracy), rel=1e-5)
    for found, expected in zip(cut[2], gradients, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)


def test_the_most_likely_tokens_are_counted_in_chunks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model = still("llama")
    with torch.no_grad():
        best = completion_logits(model, collate(ROWS, 0))[0].argmax(-1)
        # The last row's second answer token is predicted from its prompt and first answer token alone.
        row = Example("c", [14], [15, int(best[7])], [False, False])
        assert best[7] != 16
        monkeypatch.setattr(logprobs, "CHUNK", 60)
        assert answer_nll(model, collate([row], 0))[1] == 1 + int(best[6] == 15)


@pytest.mark.parametrize("name", PLAIN)
def test_bf16_reads_the_head_in_full_precision(name: str) -> None:
    exact = answer_nll(still(name), collate(ROWS, 0))[0]
    model = prepare(still(name), TrainConfig(precision="bf16"), seed=1)
    seen: list[torch.dtype] = []
    model.get_output_embeddings().register_forward_hook(lambda *call: seen.append(call[2].dtype))
    logprobs.plain_head(model)
    seen.clear()
    nll = answer_nll(model, collate(ROWS, 0))[0]
    assert seen == []  # the model's own head, which would round to three digits, is not asked
    assert nll.dtype is torch.float32
    hidden = model.base_model(input_ids=collate(ROWS, 0).ids).last_hidden_state[0, 2]
    head = model.get_output_embeddings()
    logits = nn.functional.linear(hidden.float(), head.weight, head.bias)
    assert nll[0].item() == pytest.approx(-torch.log_softmax(logits, -1)[8].item(), rel=1e-5)
    torch.testing.assert_close(nll, exact, atol=0.3, rtol=0.1)


def test_an_adapter_learns_the_same_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    def found() -> tuple[float, float, list[torch.Tensor]]:
        return figures(prepare(still("qwen2"), TrainConfig(lora_rank=2), seed=1))

    torch.manual_seed(0)
    whole = found()
    monkeypatch.setattr(logprobs, "CHUNK", 60)
    cut = found()
    assert len(whole[2]) == len(cut[2]) > 0
    for one, other in zip(whole[2], cut[2], strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)


PEAK = """
import sys
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from app.training import logprobs, sft
from app.training.sft_data import Example
torch.set_num_threads(1)
def most():  # a child's ru_maxrss begins with its parent's
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
model = LlamaForCausalLM(LlamaConfig(vocab_size=40_000, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
    num_attention_heads=1, num_key_value_heads=1, pad_token_id=0, eos_token_id=1, bos_token_id=None))
logprobs.CHUNK = int(sys.argv[1])
rows = [Example("p", [5], [6] * 64, [False] * 64)] * 16
sft._accumulate(model, rows[:1], 1.0, None, 0)
before = most()
sft._accumulate(model, rows, 1.0, None, 0)
print((most() - before) / 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel does not say")
def test_an_update_on_forty_million_logits_fits_into_a_few_chunks() -> None:
    def peak(chunk: int) -> float:
        command: list[Any] = [sys.executable, "-c", PEAK, str(chunk)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
        return float(done.stdout)

    # 1024 x 40,000 logits are 156 MiB, and a backward pass holds them twice; a chunk is 4.
    assert peak(10**9) > 250
    assert peak(1 << 20) < 80

"""Demonstrations packed into shared rows: the same loss and gradient, and no look at a neighbour."""

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from app.core.configs import TrainConfig
from app.policy.checkpoint import save_policy
from app.policy.starter import new_starter
from app.training import packing
from app.training.__main__ import main
from app.training.failures import RunFailure
from app.training.models import prepare
from app.training.packing import bins, collate_packed, passes, require_packable
from app.training.run import Run
from app.training.sft import _accumulate, completion_logits
from app.training.sft_data import Example
from tests.training.test_sft import RECORDS, example, rows, run_directory

SHAPE: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
GPT2 = {"vocab_size": 40, "n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 1}
STILL = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama tied": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True)),
    "llama untied": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=False)),
    "llama eager": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, attn_implementation="eager")),
    "qwen2 tied": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE, tie_word_embeddings=True)),
    "qwen2 untied": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE, tie_word_embeddings=False)),
    "gpt2 tied": lambda: GPT2LMHeadModel(GPT2Config(**GPT2, **STILL, eos_token_id=1)),
    "gpt2 untied": lambda: GPT2LMHeadModel(GPT2Config(**GPT2, **STILL, eos_token_id=1, tie_word_embeddings=False)),
    "mistral, short window": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=4)),
    "gemma2, soft cap": lambda: Gemma2ForCausalLM(Gemma2Config(**SHAPE, head_dim=8, sliding_window=4)),
}


def made(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model = MODELS[name]().train()
    for parameter in model.parameters():
        # Large enough that attention matters.
        parameter.data.normal_(0, 0.3)
    return model


def examples() -> list[Example]:
    draw = random.Random(3)
    shapes = [(3, 5), (6, 2), (1, 1), (4, 9), (8, 8), (2, 3), (5, 4), (0, 4)]
    return [
        Example(
            "p",
            [draw.randrange(2, 40) for _ in range(prompt)],
            [draw.randrange(2, 40) for _ in range(answer - 1)] + [1],
            [draw.random() < 0.3 for _ in range(answer)],
        )
        for prompt, answer in shapes
    ]


def gradient(
    model: PreTrainedModel, some: list[Example], micro: int | None, room: int | None
) -> tuple[float, float, torch.Tensor]:
    model.zero_grad()
    loss, accuracy = _accumulate(model, some, 2.0, micro, 0, room)
    return loss, accuracy, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradient_are_those_of_unpacked_rows(name: str) -> None:
    model = made(name)
    loss, accuracy, whole = gradient(model, examples(), None, None)
    assert float(whole.abs().max()) > 0.01
    for room, micro in ((20, None), (20, 1), (33, 2), (200, None)):
        packed = gradient(model, examples(), micro, room)
        assert packed[:2] == pytest.approx((loss, accuracy), rel=1e-5)
        torch.testing.assert_close(packed[2], whole, atol=2e-6 * float(whole.abs().max()) + 1e-6, rtol=1e-3)


@pytest.mark.parametrize("settings", [{"gradient_checkpointing": True}, {"lora_rank": 2}], ids=str)
def test_recomputed_layers_and_adapters_learn_the_same_from_packed_rows(settings: dict[str, Any]) -> None:
    model = prepare(made("llama tied"), TrainConfig(**settings), seed=1)
    whole, packed = gradient(model, examples(), None, None), gradient(model, examples(), None, 24)
    assert packed[0] == pytest.approx(whole[0], rel=1e-5)
    torch.testing.assert_close(packed[2], whole[2], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_another_neighbour_changes_nothing(name: str) -> None:
    model = made(name).eval()
    require_packable(model)
    first, other, own = ([example_of(5, seed), example_of(6, seed + 9)] for seed in (1, 2, 3))
    with torch.no_grad():
        logits = [
            completion_logits(model, collate_packed([[*neighbour, *own]], 0))[0][-own_targets(own) :]
            for neighbour in (first, other)
        ]
        alone = completion_logits(model, collate_packed([own], 0))[0]
    assert torch.equal(*logits)
    torch.testing.assert_close(logits[0], alone, atol=1e-4, rtol=1e-4)


def example_of(length: int, seed: int) -> Example:
    draw = random.Random(seed)
    ids = [draw.randrange(2, 40) for _ in range(length)]
    return Example("p", ids[:2], ids[2:], [False] * (length - 2))


def own_targets(some: list[Example]) -> int:
    return sum(len(one.completion) for one in some)


def test_the_first_token_of_an_example_is_never_predicted_from_its_neighbour() -> None:
    no_prompt = Example("p", [], [9, 1], [True, False])
    batch = collate_packed([[example(2, 3, copied=1), no_prompt, example(1, 2)], [example(3, 3)]], pad_id=0)
    assert batch.ids.tolist() == [[5, 5, 6, 6, 6, 9, 1, 5, 6, 6], [5, 5, 5, 6, 6, 6, 0, 0, 0, 0]]
    assert batch.positions is not None
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 0, 1, 0, 1, 2], [0, 1, 2, 3, 4, 5, 0, 1, 2, 3]]
    yes, no = True, False
    assert batch.targets.tolist() == [
        [no, no, yes, yes, yes, no, yes, no, yes, yes],
        [no, no, no, yes, yes, yes, no, no, no, no],
    ]
    assert not bool(batch.targets[batch.positions == 0].any())
    assert batch.copied[0].tolist() == [no, no, yes, no, no, yes, no, no, no, no]


def test_rows_are_filled_by_first_fit_from_the_longest_and_every_update_keeps_its_examples() -> None:
    lengths = [5, 9, 2, 7, 3, 4, 10, 1]
    found = bins([example(1, length - 1) if length > 1 else example(0, 1) for length in lengths], room=10)
    # 10 | 9 1 | 7 3 | 5 4 | 2: by hand, fullest first.
    assert [[len(e) for e in row] for row in found] == [[10], [9, 1], [7, 3], [5, 4], [2]]
    some = examples()
    for most, room in itertools.product((None, 1, 3), (17, 40, None)):
        batches = list(passes(some, most, room, 0))
        assert sum(int(batch.targets.sum()) for batch in batches) == sum(len(e.completion) for e in some) - 1 * (
            room is not None  # the answer without a prompt: its first token has nothing before it
        )
        assert all(len(batch.ids) <= (most or 99) for batch in batches)
        assert all(batch.ids.shape[1] <= (room or 99) for batch in batches)
    assert [b.ids.tolist() for b in passes(some, 2, 20, 0)] == [b.ids.tolist() for b in passes(some, 2, 20, 0)]


# ---- models that cannot ---------------------------------------------------------------------------------------------


class Deaf(LlamaForCausalLM):
    """A Llama that hears no position ids, as models with positions of their own do."""

    def forward(self, input_ids: torch.Tensor, position_ids: Any = None, **more: Any) -> Any:  # type: ignore[override]
        return super().forward(input_ids=input_ids, **more)


def misplaced() -> PreTrainedModel:
    """Examples are kept apart by the mask, but stand at the wrong places: only GPT-2 adds places to its embeddings."""
    model = GPT2LMHeadModel(GPT2Config(**GPT2, **STILL, eos_token_id=1))
    forward = model.transformer.wpe.forward
    model.transformer.wpe.forward = lambda ids: forward(torch.arange(ids.shape[1]).unsqueeze(0))  # type: ignore[method-assign]
    return model


@pytest.mark.parametrize(
    "make",
    [
        lambda: MambaForCausalLM(MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, state_size=4)),
        lambda: BloomForCausalLM(BloomConfig(vocab_size=40, hidden_size=16, n_layer=2, n_head=2)),
        lambda: Deaf(LlamaConfig(**SHAPE)),
        misplaced,
    ],
    ids=["recurrent", "alibi", "deaf", "misplaced"],
)
def test_a_model_that_would_mix_packed_examples_is_refused(make: Callable[[], PreTrainedModel]) -> None:
    torch.manual_seed(0)
    with pytest.raises(RunFailure, match=r"packed demonstrations") as refusal:
        require_packable(make())
    assert refusal.value.error.kind == "config"
    assert "packing to false" in refusal.value.error.mend


def test_the_trial_leaves_a_model_as_it_was_and_says_nothing_of_broken_weights() -> None:
    model = made("llama tied")
    before = torch.get_rng_state()
    require_packable(model)
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    torch.nn.init.constant_(model.get_input_embeddings().weight, float("nan"))
    require_packable(model)


# ---- runs -----------------------------------------------------------------------------------------------------------

PACKED = {"packing": True, "max_length": 256, "checkpoint_every": 3, "log_every": 1}


def test_a_packed_run_learns_as_an_unpacked_one_and_resumes_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, whole, cut = (
        run_directory(tmp_path / name, PACKED | {"packing": name != "plain"}) for name in ("plain", "whole", "cut")
    )
    assert main([str(plain)]) == main([str(whole)]) == 0
    losses = [[r["loss"] for r in rows(root / "metrics.jsonl") if r["phase"] == "train"] for root in (plain, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)

    end_step = Run.end_step

    def dies(self: Run[Any], step: int, *arguments: Any) -> None:
        end_step(self, step, *arguments)
        if step == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "end_step", dies)
    assert main([str(cut)]) == 4
    monkeypatch.setattr(Run, "end_step", end_step)
    assert main([str(cut)]) == 0
    one, two = (load_file(root / "final" / "model.safetensors") for root in (whole, cut))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_policy_that_cannot_be_packed_is_refused_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = new_starter("tiny").tokenizer
    (tmp_path / "mamba").mkdir()
    shape = MambaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        state_size=4,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    save_policy(tmp_path / "mamba", MambaForCausalLM(shape), tokenizer)
    root = run_directory(tmp_path / "run", {"packing": True}, policy=str(tmp_path / "mamba"), records=RECORDS[:20])
    assert main([str(root)]) == 4
    error = json.loads((root / "error.json").read_text())
    assert error["kind"] == "config"
    assert "MambaForCausalLM does not keep packed demonstrations apart" in error["message"]
    assert not (root / "metrics.jsonl").exists()
    monkeypatch.setattr(packing, "_TOLERANCE", 0.0)
    assert main([str(run_directory(tmp_path / "unasked", {"max_steps": 1}))]) == 0

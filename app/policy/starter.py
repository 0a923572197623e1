"""The starter policy: a small Llama made from nothing, that supervised fine-tuning teaches to write support letters."""

from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from app.policy.checkpoint import Policy, save_policy
from app.policy.grammar import letters
from app.policy.tokenizer_build import build_tokenizer

Size = Literal["standard", "tiny"]
CONTEXT = 512


class _Shape(NamedTuple):
    hidden: int
    intermediate: int
    layers: int
    heads: int


SHAPES: dict[Size, _Shape] = {
    "standard": _Shape(hidden=192, intermediate=512, layers=3, heads=6),
    "tiny": _Shape(hidden=64, intermediate=128, layers=2, heads=4),
}


@cache
def starter_texts() -> tuple[str, ...]:
    """The letters that the tokenizer is learnt from."""
    return tuple(text for letter in letters(seed=0, n=2000) for text in letter)


def new_starter(size: Size = "standard", seed: int = 0) -> Policy:
    """An untrained starter with its tokenizer, the same for the same seed."""
    tokenizer: PreTrainedTokenizerFast = build_tokenizer(starter_texts())
    shape = SHAPES[size]
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=True, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return Policy(model.eval(), tokenizer)


def make_starter(folder: Path, size: Size = "standard", seed: int = 0) -> None:
    """Write an untrained starter's files into an existing folder."""
    save_policy(folder, *new_starter(size, seed))

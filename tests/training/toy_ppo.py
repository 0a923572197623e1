"""PPO on a policy of seconds' size with a reward that anybody can check: the share of even token ids in the answer.

As a script, `toy_ppo.py RUN_DIR [PAUSE]` is app.training's own main with that reward in the place of a learnt one.
"""

import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from app.policy.checkpoint import save_policy
from app.policy.tokenizer_build import build_tokenizer
from app.training import __main__ as entry
from app.training import networks
from app.training.run import Run

PROMPTS = [f"Please answer question {i}" + " now" * (i % 4) for i in range(12)]


class EvenTokens(nn.Module):
    """A stand-in for a reward model: the judge counts even tokens, the value function learns from a small Llama."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.offset, self.scale = 0.5, 4.0
        torch.manual_seed(11)
        self.backbone = LlamaModel(config)
        self.head = nn.Linear(config.hidden_size, 1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor) -> Tensor:
        even = ((input_ids % 2 == 0) & completion_mask.bool()).sum(1)
        return even / completion_mask.sum(1)

    def values_at(self, ids: Tensor, row: Tensor, position: Tensor) -> Tensor:
        values: Tensor = self.head(self.backbone(input_ids=ids).last_hidden_state[row, position])[..., 0]
        return values


def make_policy(folder: Path, words: str = "Dear customer, thank you for your patience. Yours, the shop.") -> None:
    """An untrained Llama of two layers with a tokenizer and a chat template."""
    tokenizer = build_tokenizer([*PROMPTS, words] * 20)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=96,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        tie_word_embeddings=True,
    )
    torch.manual_seed(3)
    folder.mkdir(parents=True)
    save_policy(folder, LlamaForCausalLM(config), tokenizer)


def prompt_rows(heldout: int = 2) -> list[dict[str, Any]]:
    return [
        {
            "prompt_id": f"p{i}",
            "prompt": [{"role": "user", "content": text}],
            "split": "heldout" if i < heldout else "train",
        }
        for i, text in enumerate(PROMPTS)
    ]


def load_toy(folder: Path) -> EvenTokens:
    return EvenTokens(LlamaConfig.from_pretrained(folder))


def main() -> int:
    pause = float(sys.argv[2]) if len(sys.argv) > 2 else 0.0
    networks.load_reward_model = load_toy  # type: ignore[assignment]
    progress = Run.progress

    def slow(self: Run[Any], step: int, total: int, phase: str) -> None:
        time.sleep(pause)
        progress(self, step, total, phase)

    Run.progress = slow  # type: ignore[method-assign]
    return entry.main([sys.argv[1]])


if __name__ == "__main__":
    sys.exit(main())

"""What PPO is read beside: DPO on the same judgments, and the best of n answers by the same reward model.

Measured as PPO is, by the noiseless taste against the same answers of SFT.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from app.core.agreement import wilson
from app.core.configs import SamplingSettings
from app.policy.best_of_n import candidates, expected, kl_bound
from app.policy.chat import decode, encode_prompt
from app.policy.checker import check
from app.policy.checkpoint import load_policy
from app.policy.reward_model import load_reward_model
from app.rehearsal import taste
from app.rehearsal.measure import PROMPTS, answers, heldout_prompts, logprobs, measure_policies

BEST_PROMPTS = 300
"""Best of n reads n answers a prompt, so it is measured on fewer prompts."""


def measure_dpo(sft: Path, dpo: Path, prompts_file: Path, sampling: SamplingSettings, seed: int) -> dict[str, Any]:
    """DPO against SFT, with the figures and under the names that `measure` gives PPO."""
    prompts = heldout_prompts(prompts_file, PROMPTS, seed)
    before = load_policy(sft)
    first = answers(before, prompts, sampling, seed=1000 + 10 * seed)
    after = answers(load_policy(dpo), prompts, sampling, seed=1003 + 10 * seed)
    figures = measure_policies(prompts, first, after, logprobs(before, prompts, after.ids, sampling.temperature))
    return {"dpo_vs_sft": figures.pop("ppo_vs_sft"), **figures}


def measure_best_of(
    sft: Path, reward_model: Path, prompts_file: Path, best_of: Sequence[int], sampling: SamplingSettings, seed: int
) -> dict[str, Any]:
    """The best of n of SFT's answers, chosen by the reward model, against one answer of SFT, for each n.

    All n are told from the same answers (`app.policy.best_of_n.expected`), which are none of those played against.
    """
    prompts = heldout_prompts(prompts_file, PROMPTS, seed)[:BEST_PROMPTS]
    policy = load_policy(sft)
    against = answers(policy, prompts, sampling, seed=1000 + 10 * seed)
    encoded = [encode_prompt(policy.tokenizer, [{"role": "user", "content": text}]) for text in prompts]
    pool = candidates(policy, load_reward_model(reward_model), encoded, max(best_of), sampling, 1004 + 10 * seed)
    texts = [[decode(policy.tokenizer, answer.token_ids) for answer in each] for each in pool.answers]
    rows = list(zip(prompts, texts, against.texts, strict=True))
    wins = torch.tensor([[taste.noiseless(p, text, other) for text in each] for p, each, other in rows])
    valid = torch.tensor([[float(check(p, text).grammatical) for text in each] for p, each, _ in rows])
    figures = {}
    for n in sorted(best_of):
        won = float(expected(wins, pool.rewards, n).sum())
        low, high = wilson(won, len(prompts))
        figures[str(n)] = {
            "win_rate": won / len(prompts),
            "low": low,
            "high": high,
            "n": len(prompts),
            "kl_bound": kl_bound(n),
            "grammatical": float(expected(valid, pool.rewards, n).mean()),
        }
    return figures

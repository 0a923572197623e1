"""What a rehearsal measures when the loop has gone round: the reward model and the new policy, by the noiseless taste.

Prompts are held out. Both policies answer at one temperature, from seeds that no pair of the pool used. Equal utilities
count one half for a policy's win, and are left out of a reward model's accuracy.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from app.core.agreement import wilson
from app.core.configs import SamplingSettings
from app.core.pairing import pairs_of
from app.core.records import PreferenceRecord, PromptRecord
from app.core.vocabulary import Split
from app.policy.chat import decode, encode_prompt
from app.policy.checker import check
from app.policy.checkpoint import Policy, load_policy, stop_ids
from app.policy.engine import generate
from app.policy.reward_model import load_reward_model, load_reward_tokenizer, pack
from app.rehearsal import taste
from app.rehearsal.floors import BagOfWords, accuracy

PROMPTS = 1000
SHOWN = 20


@dataclass(frozen=True)
class Answers:
    """One policy's answers to the measured prompts, as texts and as token ids with their log-probabilities."""

    texts: list[str]
    ids: list[list[int]]
    logprobs: list[float]


def heldout_prompts(path: Path, count: int, seed: int) -> list[str]:
    """Up to `count` held-out prompts of a run's data, drawn at random."""
    records = [PromptRecord.model_validate_json(line) for line in path.read_text(encoding="utf-8").splitlines()]
    texts = [str(r.prompt[-1]["content"]) for r in records if r.split is Split.HELDOUT]
    return random.Random(seed).sample(texts, min(count, len(texts)))  # noqa: S311


def answers(policy: Policy, prompts: Sequence[str], sampling: SamplingSettings, seed: int) -> Answers:
    """One answer a prompt; the seed decides all of them."""
    encoded = [encode_prompt(policy.tokenizer, [{"role": "user", "content": text}]) for text in prompts]
    draw = random.Random(seed)  # noqa: S311
    seeds = [draw.getrandbits(63) for _ in encoded]
    pad = int(policy.tokenizer.pad_token_id)
    drawn = generate(policy.model, encoded, seeds, sampling, stop_ids(policy.model, policy.tokenizer), pad)
    texts = [decode(policy.tokenizer, one.token_ids) for one in drawn]
    return Answers(texts, [one.token_ids for one in drawn], [sum(one.logprobs) for one in drawn])


@torch.no_grad()
def logprobs(policy: Policy, prompts: Sequence[str], ids: Sequence[list[int]], temperature: float) -> list[float]:
    """The log-probability of each answer under a policy, in nats."""
    encoded = [encode_prompt(policy.tokenizer, [{"role": "user", "content": text}]) for text in prompts]
    sums: list[float] = []
    for i in range(0, len(ids), 64):
        rows, attention, answer = pack(encoded[i : i + 64], ids[i : i + 64], int(policy.tokenizer.pad_token_id))
        logits = policy.model(input_ids=rows, attention_mask=attention, use_cache=False).logits[:, :-1]
        each = (logits.float() / temperature).log_softmax(-1).gather(-1, rows[:, 1:, None])[..., 0]
        sums += (each * answer[:, 1:]).sum(-1).tolist()
    return sums


def measure_reward_model(
    folder: Path, preferences: Path, prompts: Sequence[str], first: Answers, second: Answers, seed: int
) -> tuple[dict[str, float], float]:
    """Accuracies on pairs of SFT answers to held-out prompts, and how often the noisy labels agree with the noiseless.

    The bag of words learns from the same judgments as the reward model did.
    """
    model, tokenizer = load_reward_model(folder), load_reward_tokenizer(folder)
    encoded = [encode_prompt(tokenizer, [{"role": "user", "content": text}]) for text in prompts]
    margin = (model.score(encoded, first.ids) - model.score(encoded, second.ids)).tolist()
    rng = random.Random(seed)  # noqa: S311
    triples = list(zip(prompts, first.texts, second.texts, strict=True))
    truth = [taste.noiseless(*each) for each in triples]
    noisy = [float(taste.prefers_first(rng, *each)) for each in triples]
    floor = _bag_of_words(preferences).margin(first.texts, second.texts)
    longer = [float(len(a.split()) - len(b.split())) for _, a, b in triples]
    figures = {
        "accuracy_noisy": accuracy(margin, noisy),
        "accuracy_noiseless": accuracy(margin, truth),
        "longer_wins": accuracy(longer, truth),
        "bag_of_words": accuracy(floor, truth),
    }
    return figures, accuracy([y - 0.5 for y in noisy], truth)


def _bag_of_words(preferences: Path) -> BagOfWords:
    records = [PreferenceRecord.model_validate_json(line) for line in preferences.read_text("utf-8").splitlines()]
    train = [r for r in records if r.split is Split.TRAIN]
    pairs = [(r.completions[a], r.completions[b]) for r in train for a, b in pairs_of(r.tiers)]
    return BagOfWords([a for a, _ in pairs], [b for _, b in pairs])


def contest(prompts: Sequence[str], before: Answers, after: Answers) -> dict[str, float | int]:
    """How often `after` is better by the noiseless taste, equal ones one half, with Wilson's 95 % interval."""
    wins = sum(taste.noiseless(*each) for each in zip(prompts, after.texts, before.texts, strict=True))
    low, high = wilson(wins, len(prompts))
    return {"win_rate": wins / len(prompts), "low": low, "high": high, "n": len(prompts)}


def measure_policies(prompts: Sequence[str], before: Answers, after: Answers, reference: list[float]) -> dict[str, Any]:
    """PPO against SFT. `reference` are the log-probabilities of PPO's answers under SFT; kl is in nats an answer."""
    n = len(prompts)

    def mean(value: Callable[[str, str], float], side: Answers) -> float:
        return sum(value(p, r) for p, r in zip(prompts, side.texts, strict=True)) / n

    def grammatical(prompt: str, reply: str) -> float:
        return float(check(prompt, reply).grammatical)

    return {
        "ppo_vs_sft": contest(prompts, before, after),
        "kl": sum(p - q for p, q in zip(after.logprobs, reference, strict=True)) / n,
        "taste": {"before": mean(taste.utility, before), "after": mean(taste.utility, after)},
        "grammatical": {"before": mean(grammatical, before), "after": mean(grammatical, after)},
    }


class Measured(NamedTuple):
    """One turn's figures as documented, how often noisy labels agree with noiseless ones, and lines for a reader."""

    figures: dict[str, Any]
    label_agreement: float
    lines: list[str]


def measure(
    sft: Path,
    ppo: Path,
    reward_model: Path,
    prompts_file: Path,
    preferences: Path,
    sampling: SamplingSettings,
    seed: int,
) -> Measured:
    """All figures of one turn of the loop, and lines for a reader: the label noise and 20 random pairs."""
    prompts = heldout_prompts(prompts_file, PROMPTS, seed)
    before = load_policy(sft)
    first, second = (answers(before, prompts, sampling, seed=1000 + 10 * seed + i) for i in (0, 1))
    after = answers(load_policy(ppo), prompts, sampling, seed=1002 + 10 * seed)
    model, agreement = measure_reward_model(reward_model, preferences, prompts, first, second, seed)
    reference = logprobs(before, prompts, after.ids, sampling.temperature)
    figures = {"reward_model": model, **measure_policies(prompts, first, after, reference)}
    lines = [f"Noisy labels agree with the noiseless ones in {agreement:.1%} of {len(prompts)} pairs.", ""]
    words = {1.0: "better by the taste", 0.5: "as good by the taste", 0.0: "worse by the taste"}
    for i in random.Random(seed).sample(range(len(prompts)), min(SHOWN, len(prompts))):  # noqa: S311
        mark = words[taste.noiseless(prompts[i], after.texts[i], first.texts[i])]
        lines += [
            f"> {prompts[i]}",
            f"  before: {first.texts[i]}",
            f"  after:  {after.texts[i]}",
            f"          ({mark})",
        ]
    return Measured(figures, agreement, lines)

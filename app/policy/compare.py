"""Policies side by side on the same prompts, by a reward model: a base, the best of n of its answers, and others.

`python -m app.policy.compare --base NAME=FOLDER --reward-model FOLDER --prompts FILE [--policy NAME=FOLDER ...]
[--best-of N ...]` prints one JSON object: the comparison, or {"message", "mend"} where there can be none.

A reward model is no impartial judge of a policy that was trained on it, nor of answers that it chose itself: their
scores are what was maximised, not what people would say.
"""

import argparse
import json
import logging
import math
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from app.core.agreement import wilson
from app.core.configs import SamplingSettings
from app.core.errors import Invalid, PairwrightError
from app.core.records import Message, PromptRecord
from app.core.vocabulary import FinishReason, Split
from app.policy.best_of_n import Candidates, candidates, expected, kl_bound
from app.policy.chat import encode_prompts
from app.policy.checkpoint import Policy, load_policy
from app.policy.likelihood import answer_logprobs
from app.policy.reward_model import load_reward_model, load_reward_tokenizer

Z = 1.959964

logger = logging.getLogger("pairwright.policy")


@dataclass(frozen=True)
class Line:
    """One policy, or the best of n of the base's answers. Rewards are in the reward model's unit, KL in nats an answer.

    `win_rate` is against one answer of the base, by the same reward model, equal rewards one half; intervals are 95 %.
    `kl` is an estimate from the answers, `kl_bound` what best-of-n cannot exceed; each stands alone.
    """

    name: str
    n: int
    reward: float
    reward_low: float
    reward_high: float
    win_rate: float | None
    win_low: float | None
    win_high: float | None
    kl: float | None
    kl_bound: float | None
    length: float
    truncated_share: float
    prompts: int


def compare(
    base: tuple[str, Path],
    others: Mapping[str, Path],
    reward_model: Path,
    prompts: Sequence[Sequence[Message]],
    best_of: Sequence[int],
    sampling: SamplingSettings,
    seed: int,
) -> list[Line]:
    """The base first, then the best of each n, then the others. Invalid where one reads other tokens than another."""
    judge, name = load_reward_model(reward_model), base[0]
    first = _opened(*base, reward_model)
    ids = _fitting(first, prompts, sampling.max_tokens)
    logger.info("%s answers %d prompts", name, len(ids))
    plain = candidates(first, judge, ids, 1, sampling, seed)
    against = plain.rewards[:, 0]
    lines = [_line(name, 1, plain, None, kl=0.0)]
    if best_of:
        logger.info("%s answers each prompt %d times", name, max(best_of))
        # A seed of its own: the answer that is played against is none of these.
        pool = candidates(first, judge, ids, max(best_of), sampling, seed + 1)
        lines += [_line(f"{name}, best of {n}", n, pool, against) for n in sorted(set(best_of))]
    for other, folder in others.items():
        policy = _opened(other, folder, reward_model)
        logger.info("%s answers %d prompts", other, len(ids))
        drawn = candidates(policy, judge, ids, 1, sampling, seed + 2)
        lines.append(_line(other, 1, drawn, against, kl=_kl(policy, first, ids, drawn, sampling.temperature)))
    return lines


def _opened(name: str, folder: Path, reward_model: Path) -> Policy:
    policy = load_policy(folder)
    if load_reward_tokenizer(reward_model).get_vocab() != policy.tokenizer.get_vocab():
        raise Invalid(
            f"The reward model reads other tokens than {name} writes.",
            "Take a reward model that was trained on this policy, or on one with the same tokenizer.",
        )
    return policy


def _fitting(policy: Policy, prompts: Sequence[Sequence[Message]], max_tokens: int) -> list[list[int]]:
    """Token ids of the prompts that the template takes and that leave room for a whole answer."""
    context = getattr(policy.model.config, "max_position_embeddings", None)
    encoded = encode_prompts(policy.tokenizer, prompts)
    kept = [
        ids for ids in encoded if not isinstance(ids, Invalid) and (context is None or len(ids) + max_tokens <= context)
    ]
    if len(kept) < len(prompts):
        logger.warning("%d of %d prompts are left out: refused or too long", len(prompts) - len(kept), len(prompts))
    if not kept:
        raise Invalid("There is no prompt that the policy can answer.", "Give prompts, or lower the longest answer.")
    return kept


def _line(name: str, n: int, drawn: Candidates, against: Tensor | None, kl: float | None = None) -> Line:
    """Figures of the best of n of what was drawn; with n = 1 of one answer a prompt, of those answers."""

    def mean_of(values: Tensor) -> Tensor:
        return expected(values, drawn.rewards, n)

    rewards = mean_of(drawn.rewards)
    reward, half = float(rewards.mean()), _half_width(rewards)
    win_rate = low = high = None
    if against is not None:
        beaten, level = drawn.rewards > against.unsqueeze(1), drawn.rewards == against.unsqueeze(1)
        wins = float(mean_of(beaten.double() + 0.5 * level.double()).sum())
        win_rate = wins / len(rewards)
        low, high = wilson(wins, len(rewards))
    lengths = torch.tensor([[float(len(a.token_ids)) for a in each] for each in drawn.answers])
    cut = torch.tensor([[float(a.finish is FinishReason.LENGTH) for a in each] for each in drawn.answers])
    return Line(
        name=name,
        n=n,
        reward=reward,
        reward_low=reward - half,
        reward_high=reward + half,
        win_rate=win_rate,
        win_low=low,
        win_high=high,
        kl=kl,
        kl_bound=kl_bound(n) if n > 1 else None,
        length=float(mean_of(lengths).mean()),
        truncated_share=float(mean_of(cut).mean()),
        prompts=len(rewards),
    )


def _half_width(values: Tensor) -> float:
    """Half of the 95 % interval of a mean over prompts, by its standard error."""
    return Z * float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.inf


@torch.no_grad()
def _kl(policy: Policy, base: Policy, ids: Sequence[list[int]], drawn: Candidates, temperature: float) -> float | None:
    """Mean of log pi - log base over the answers, nats (k1); None where the base has other tokens."""
    if policy.tokenizer.get_vocab() != base.tokenizer.get_vocab():
        return None
    answers = [each[0].token_ids for each in drawn.answers]
    pad_id = int(policy.tokenizer.pad_token_id)
    here, there = (
        answer_logprobs(model, ids, answers, pad_id, temperature=temperature) for model in (policy.model, base.model)
    )
    return float((here - there).mean())


def read_prompts(path: Path, count: int, seed: int) -> list[list[Message]]:
    """Up to `count` held-out prompts, drawn at random, of a JSONL file of PromptRecord; of all where none is held out.

    Invalid, with the line's number, where a line is no such record.
    """
    records = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                records.append(PromptRecord.model_validate_json(line))
            except ValidationError:
                mend = "Each line is an object with prompt_id, prompt and split, as in a run's data/prompts.jsonl."
                raise Invalid(f"Line {number} of {path.name} is no prompt.", mend) from None
    chosen = [r for r in records if r.split is Split.HELDOUT] or records
    drawn = random.Random(seed).sample(chosen, min(count, len(chosen)))  # noqa: S311 - a draw of prompts, no secret
    return [record.prompt for record in drawn]


def main(arguments: list[str] | None = None) -> int:
    """Compare what the command line names, and print the comparison or why there is none; 1 in that case."""
    parser = argparse.ArgumentParser(prog="python -m app.policy.compare", description=__doc__)
    parser.add_argument("--base", type=_named, required=True, metavar="NAME=FOLDER")
    parser.add_argument("--policy", type=_named, action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--reward-model", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--best-of", type=int, action="append", default=[], metavar="N")
    parser.add_argument("--prompts", type=Path, required=True, metavar="FILE", help="JSONL, as a run's data/prompts")
    parser.add_argument("--count", type=int, default=200, help="how many of its held-out prompts")
    parser.add_argument("--sampling", type=SamplingSettings.model_validate_json, default=SamplingSettings())
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    answer: dict[str, object]
    try:
        prompts = read_prompts(given.prompts, given.count, given.seed)
        others = dict(given.policy)
        lines = compare(given.base, others, given.reward_model, prompts, given.best_of, given.sampling, given.seed)
        answer = {"seed": given.seed, "sampling": given.sampling.model_dump(), "lines": [asdict(one) for one in lines]}
    except PairwrightError as error:
        answer = {"message": error.message, "mend": error.mend}
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0 if "lines" in answer else 1


def _named(word: str) -> tuple[str, Path]:
    name, equals, folder = word.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{word} is not NAME=FOLDER")
    return name, Path(folder)


if __name__ == "__main__":
    sys.exit(main())

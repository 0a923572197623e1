"""Best of n: sample n answers, keep the one that a reward model likes best (Stiennon et al. 2020; Nakano et al. 2021).

No training, n times the sampling: the baseline beside which a policy trained on the same reward model is read.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from app.core.configs import SamplingSettings
from app.core.errors import Invalid
from app.policy.checkpoint import Policy, stop_ids
from app.policy.engine import Generation, generate
from app.policy.reward_model import RewardModel


@dataclass(frozen=True)
class Candidates:
    """`answers[i]` are the samples for prompt i, all prompts the same number of them; `rewards` [P, N] their scores."""

    answers: list[list[Generation]]
    rewards: Tensor

    def best(self, prompt: int) -> Generation:
        """The answer of greatest reward; the first of equals."""
        return self.answers[prompt][int(self.rewards[prompt].argmax())]


def candidates(
    policy: Policy,
    reward_model: RewardModel,
    prompts: Sequence[Sequence[int]],
    count: int,
    sampling: SamplingSettings,
    seed: int,
) -> Candidates:
    """`count` scored answers a prompt (token ids); the seed, a prompt's place and an answer's decide what is drawn.

    The reward model must read the policy's tokens; whoever loads both checks that.
    """
    if count < 1:
        raise Invalid("Best of n needs at least one answer a prompt.")
    each = [prompt for prompt in prompts for _ in range(count)]
    seeds = [_seed(seed, row, place) for row in range(len(prompts)) for place in range(count)]
    pad_id = policy.tokenizer.pad_token_id
    assert pad_id is not None
    drawn = generate(policy.model, each, seeds, sampling, stop_ids(*policy), pad_id)
    rewards = reward_model.score(each, [answer.token_ids for answer in drawn])
    answers = [drawn[i : i + count] for i in range(0, len(drawn), count)]
    return Candidates(answers, rewards.view(len(prompts), count))


def rank_weights(count: int, n: int) -> list[float]:
    """The probability that each of `count` samples, from worst to best, is the best of n drawn from them: sums to 1.

    C(i - 1, n - 1) / C(count, n) for the i-th. The mean of any property under these weights is an unbiased estimate of
    that property of best-of-n, from all samples at once and for every n up to `count` (Nakano et al. 2021).
    """
    if not 1 <= n <= count:
        raise ValueError(f"best of {n} cannot be told from {count} samples")
    whole = math.comb(count, n)
    return [math.comb(i, n - 1) / whole for i in range(count)]


def expected(values: Tensor, rewards: Tensor, n: int) -> Tensor:
    """What best-of-n, chosen by `rewards`, has of `values`, in expectation: [P, N], [P, N] -> [P].

    Samples of equal reward share their ranks' weights, as a choice among them by chance would.
    """
    weights = torch.tensor(rank_weights(rewards.shape[1], n), dtype=torch.float64)
    order = rewards.argsort(dim=1, stable=True)
    ordered = rewards.gather(1, order)
    given = torch.empty_like(ordered, dtype=torch.float64)
    for row, line in enumerate(ordered):
        _, group, sizes = line.unique_consecutive(return_inverse=True, return_counts=True)
        shared = torch.zeros(len(sizes), dtype=torch.float64).index_add(0, group, weights) / sizes
        given[row] = shared[group]
    return (values.double().gather(1, order) * given).sum(1)


def kl_bound(n: int) -> float:
    """log n - (n - 1) / n, in nats: the KL of best-of-n from the policy sampled from is at most this.

    Often given as its value (Stiennon et al. 2020, appendix G.3), which holds where no answer can come twice and no two
    have the same reward; with either it is less (Beirami et al. 2024).
    """
    if n < 1:
        raise ValueError("best of n begins with n = 1")
    return math.log(n) - (n - 1) / n


def _seed(*parts: int) -> int:
    digest = hashlib.sha256("/".join(map(str, ("best-of-n", *parts))).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1

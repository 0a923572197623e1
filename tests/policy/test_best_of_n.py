"""Choosing among n answers: the weights by hand, the bound by hand, and a reward that anybody can check."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from app.core.configs import SamplingSettings
from app.core.errors import Invalid
from app.policy.best_of_n import candidates, expected, kl_bound, rank_weights
from app.policy.checkpoint import Policy, load_policy
from app.policy.reward_model import RewardModel, RewardSettings

PROMPTS = [[5, 6, 7], [8, 9]]
SHORT = SamplingSettings(max_tokens=6)


class EvenTokens(RewardModel):
    """The share of even tokens in the answer."""

    def __init__(self) -> None:
        super().__init__(RewardSettings(), pad_id=0)

    def members(self, ids: torch.Tensor, attention: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
        return (((ids % 2 == 0) & answer).sum(1) / answer.sum(1))[None]


@pytest.fixture(scope="module")
def policy(root: Path) -> Policy:
    return load_policy(root / "one")


def test_the_chance_of_being_the_best_of_n_by_hand() -> None:
    # Of four samples, best of two: the worst never is, then 1, 2 and 3 of the 6 pairs.
    assert rank_weights(4, 2) == pytest.approx([0, 1 / 6, 2 / 6, 3 / 6])
    assert rank_weights(3, 1) == pytest.approx([1 / 3] * 3)
    assert rank_weights(3, 3) == [0, 0, 1]
    assert sum(rank_weights(64, 16)) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="5 cannot be told from 4"):
        rank_weights(4, 5)


def test_the_expected_property_of_the_best_by_hand() -> None:
    rewards = torch.tensor([[0.3, 0.9, 0.1, 0.5]])
    lengths = torch.tensor([[10.0, 20.0, 30.0, 40.0]])
    # From worst to best the samples are 2, 0, 3, 1.
    assert expected(lengths, rewards, 2).tolist() == pytest.approx([(1 * 10 + 2 * 40 + 3 * 20) / 6])
    assert expected(lengths, rewards, 1).tolist() == pytest.approx([25.0])
    assert expected(lengths, rewards, 4).tolist() == pytest.approx([20.0])


def test_equal_rewards_share_what_their_ranks_have() -> None:
    rewards = torch.tensor([[0.5, 0.5, 0.1], [0.5, 0.5, 0.5]])
    values = torch.tensor([[1.0, 3.0, 7.0], [1.0, 3.0, 8.0]])
    # Best of three is one of the two by a coin; where all are equal, any.
    assert expected(values, rewards, 3).tolist() == pytest.approx([2.0, 4.0])
    turned = expected(values.flip(1), rewards.flip(1), 2)
    assert turned.tolist() == pytest.approx(expected(values, rewards, 2).tolist())


def test_the_bound_on_the_kl_by_hand() -> None:
    assert kl_bound(1) == 0.0
    assert kl_bound(2) == pytest.approx(0.19314718055994530)
    assert kl_bound(4) == pytest.approx(0.63629436111989060)
    assert kl_bound(16) == pytest.approx(1.83508872223978100)
    with pytest.raises(ValueError, match="n = 1"):
        kl_bound(0)


def exact_kl_of_best(probabilities: Sequence[float], rewards: Sequence[float], n: int) -> float:
    """KL(best of n || policy) over a handful of answers, equal rewards broken by the order of drawing."""
    order = sorted(range(len(rewards)), key=lambda i: rewards[i])
    below, chance = 0.0, {}
    for i in order:
        chance[i] = (below + probabilities[i]) ** n - below**n
        below += probabilities[i]
    return sum(p * math.log(p / probabilities[i]) for i, p in chance.items() if p > 0)


@pytest.mark.parametrize("n", [2, 4, 16])
def test_the_bound_holds_for_small_distributions_and_is_reached_by_many_rare_answers(n: int) -> None:
    few = [0.5, 0.3, 0.2]
    assert exact_kl_of_best(few, [0.1, 0.9, 0.5], n) < kl_bound(n)
    many = [1 / 20000] * 20000
    assert exact_kl_of_best(many, list(range(20000)), n) == pytest.approx(kl_bound(n), abs=5e-3)
    assert exact_kl_of_best(many, list(range(20000)), n) <= kl_bound(n)


def test_the_best_answer_is_the_one_with_most_of_what_is_rewarded(policy: Policy) -> None:
    pool = candidates(policy, EvenTokens(), PROMPTS, 8, SHORT, seed=3)
    assert pool.rewards.shape == (2, 8)
    for row, answers in enumerate(pool.answers):
        shares = [sum(token % 2 == 0 for token in a.token_ids) / len(a.token_ids) for a in answers]
        assert pool.rewards[row].tolist() == pytest.approx(shares)
        best = pool.best(row)
        assert shares[answers.index(best)] == max(shares)
    means = [float(expected(pool.rewards, pool.rewards, n).mean()) for n in (1, 2, 4, 8)]
    assert means == sorted(means)
    assert means[-1] > means[0]


def test_the_seed_decides_the_answers_and_other_prompts_do_not(policy: Policy) -> None:
    def drawn(prompts: Sequence[Sequence[int]], count: int, seed: int) -> list[list[list[int]]]:
        pool = candidates(policy, EvenTokens(), prompts, count, SHORT, seed)
        return [[answer.token_ids for answer in each] for each in pool.answers]

    both = drawn(PROMPTS, 4, 3)
    assert drawn(PROMPTS[:1], 4, 3) == both[:1]
    assert [each[:2] for each in both] == drawn(PROMPTS, 2, 3)
    assert drawn(PROMPTS, 4, 4) != both
    assert len({tuple(answer) for each in both for answer in each}) > 4


def test_no_answer_at_all_is_refused(policy: Policy) -> None:
    with pytest.raises(Invalid, match="at least one answer"):
        candidates(policy, EvenTokens(), PROMPTS, 0, SHORT, seed=3)

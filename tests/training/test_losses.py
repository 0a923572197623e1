"""Literals are worked out by hand (or with exact fractions), never by the formula under test."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical

from app.training.losses import (
    entropy,
    explained_variance,
    gae,
    kl_k1,
    kl_k3,
    masked_mean,
    ppo_policy_loss,
    ppo_value_loss,
    token_logprobs,
    token_rewards,
    whiten,
)

NAN = float("nan")


def tensor(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


# ---- masks --------------------------------------------------------------------------------------------------------


def test_a_masked_mean_reads_real_tokens_only_even_beside_nan() -> None:
    values = tensor([1.0, 2.0, NAN], [6.0, NAN, NAN])
    mask = tensor([1, 1, 0], [1, 0, 0])
    assert masked_mean(values, mask).item() == 3.0
    assert masked_mean(values, mask, count=9).item() == 1.0


def test_whitening_is_over_the_real_tokens_of_the_whole_batch() -> None:
    values = tensor([1.0, 2.0, 99.0], [3.0, 99.0, 99.0])
    mask = tensor([1, 1, 0], [1, 0, 0])
    # Mean 2, unbiased variance 1.
    torch.testing.assert_close(whiten(values, mask), tensor([-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]), atol=1e-7, rtol=0)


def test_whitening_one_token_gives_zero_not_nan() -> None:
    assert whiten(tensor([5.0, 7.0]), tensor([1, 0])).tolist() == [[0.0, 0.0]]


# ---- log-probabilities --------------------------------------------------------------------------------------------


def test_log_probabilities_of_known_odds() -> None:
    logits = torch.log(torch.tensor([[1.0, 2.0, 5.0]]))
    assert token_logprobs(logits, torch.tensor([2])).item() == pytest.approx(math.log(5 / 8), abs=1e-6)
    # At temperature 1/2 the odds are squared: 1 : 4 : 25.
    assert token_logprobs(logits, torch.tensor([1]), 0.5).item() == pytest.approx(math.log(4 / 30), abs=1e-6)


def test_log_probabilities_and_entropy_agree_with_torch_at_any_temperature() -> None:
    torch.manual_seed(0)
    logits, tokens = torch.randn(3, 5, 11) * 4, torch.randint(0, 11, (3, 5))
    theirs = Categorical(logits=logits / 0.7)
    torch.testing.assert_close(token_logprobs(logits, tokens, 0.7), theirs.log_prob(tokens))
    torch.testing.assert_close(entropy(logits, 0.7), theirs.entropy())
    cross = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none")
    torch.testing.assert_close(token_logprobs(logits, tokens).flatten(), -cross)


def test_entropy_of_a_fair_choice_of_four_is_ln_4() -> None:
    assert entropy(torch.zeros(4)).item() == pytest.approx(1.3862944, abs=1e-6)


# ---- KL -----------------------------------------------------------------------------------------------------------


def test_both_kl_estimates_have_the_exact_kl_as_their_expectation() -> None:
    # KL((1/2, 1/4, 1/4) || (1/4, 1/4, 1/2)) = 1/2 ln 2 - 1/4 ln 2 = ln(2) / 4.
    p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.25, 0.5])
    for estimate in (kl_k1, kl_k3):
        assert (p * estimate(p.log(), q.log())).sum().item() == pytest.approx(math.log(2) / 4, abs=1e-6)


def test_k3_is_never_negative_and_k1_may_be() -> None:
    policy, reference = tensor([-3.0, -1.0]), tensor([-1.0, -3.0])
    assert kl_k1(policy, reference).tolist() == [[-2.0, 2.0]]
    # exp(2) - 3 and exp(-2) + 1.
    torch.testing.assert_close(kl_k3(policy, reference), tensor([4.38905610, 1.13533528]), atol=1e-7, rtol=0)


# ---- rewards and advantages ---------------------------------------------------------------------------------------


def test_the_score_lands_on_the_last_real_token_and_kl_costs_on_each() -> None:
    rewards = token_rewards(
        torch.tensor([2.0, -1.0]).double(),
        tensor([1.0, 3.0, NAN], [0.5, NAN, NAN]),
        tensor([1, 1, 0], [1, 0, 0]),
        beta=0.5,
    )
    assert rewards.tolist() == [[-0.5, 0.5, 0.0], [-1.25, 0.0, 0.0]]


def test_gae_with_lambda_one_is_the_return_minus_the_value() -> None:
    advantages, returns = gae(tensor([1.0, 2.0, 3.0]), tensor([0.5, 1.0, 1.5]), tensor([1, 1, 1]), 1.0, 1.0)
    assert advantages.tolist() == [[5.5, 4.0, 1.5]]
    assert returns.tolist() == [[6.0, 5.0, 3.0]]


def test_gae_by_hand_with_padding() -> None:
    # gamma 1/2, lambda 1/2; values 1, 2, 4. delta_3 = 8 - 4 = 4; delta_2 = 0 + 2 - 2 = 0; delta_1 = 1 + 1 - 1 = 1.
    # A_3 = 4; A_2 = 0 + 4/4 = 1; A_1 = 1 + 1/4 = 1.25.
    advantages, returns = gae(
        tensor([1.0, 0.0, 8.0, NAN]), tensor([1.0, 2.0, 4.0, 77.0]), tensor([1, 1, 1, 0]), 0.5, 0.5
    )
    assert advantages.tolist() == [[1.25, 1.0, 4.0, 0.0]]
    assert returns.tolist() == [[2.25, 3.0, 8.0, 0.0]]


# ---- the policy's loss --------------------------------------------------------------------------------------------


def policy_loss(ratios: list[float], advantages: list[float], mask: list[int] | None = None) -> float:
    logprobs = tensor(ratios).log()
    kept = tensor(mask or [1] * len(ratios))
    result = ppo_policy_loss(
        logprobs, torch.zeros_like(logprobs), tensor(advantages), kept, clip=0.2, clamp=10.0, count=float(kept.sum())
    )
    return result.loss.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss"),
    [
        (1.0, 2.0, -2.0),
        (1.5, 2.0, -2.4),  # a good action is not pushed past 1.2
        (0.5, 2.0, -1.0),  # but one that lost probability is pulled back without bound
        (0.5, -1.0, 0.8),  # a bad action is not pushed below 0.8
        (1.5, -1.0, 1.5),
    ],
)
def test_the_clipped_objective_case_by_case(ratio: float, advantage: float, loss: float) -> None:
    assert policy_loss([ratio], [advantage]) == pytest.approx(loss, abs=1e-12)


def test_the_policy_loss_ignores_padding() -> None:
    assert policy_loss([1.5, 0.5, 9.0], [2.0, -1.0, 50.0], [1, 1, 0]) == pytest.approx((-2.4 + 0.8) / 2)


def test_where_the_clip_holds_there_is_no_gradient() -> None:
    logprobs = tensor([1.5, 1.1, 0.5]).log().requires_grad_()
    result = ppo_policy_loss(
        logprobs, tensor([0.0, 0.0, 0.0]), tensor([1.0, 1.0, 1.0]), tensor([1, 1, 1]), clip=0.2, clamp=10.0, count=3
    )
    result.loss.backward()
    # d(-A r)/d log r = -A r where the clip is not active: -1.1 / 3 and -0.5 / 3.
    assert logprobs.grad is not None
    torch.testing.assert_close(logprobs.grad, tensor([0.0, -1.1 / 3, -0.5 / 3]))
    assert result.clip_share.item() == pytest.approx(1 / 3)
    assert result.ratio_error.item() == pytest.approx(0.5)


def test_a_wild_log_ratio_is_clamped_to_something_finite() -> None:
    wild = ppo_policy_loss(tensor([500.0]), tensor([0.0]), tensor([-1.0]), tensor([1]), clip=0.2, clamp=2.0, count=1)
    assert wild.loss.item() == pytest.approx(math.exp(2.0))


# ---- the value function's loss ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "old", "target", "loss"),
    [
        (1.0, 1.0, 3.0, 2.0),  # (1 - 3)^2 / 2
        (2.0, 1.0, 3.0, 1.62),  # clipped at 1.2: (1.8)^2 / 2 is the larger
        (0.0, 1.0, 3.0, 4.5),  # moved away: the plain error is the larger
    ],
)
def test_the_value_clip_case_by_case(value: float, old: float, target: float, loss: float) -> None:
    result = ppo_value_loss(tensor([value]), tensor([old]), tensor([target]), tensor([1]), clip=0.2, count=1)
    assert result.loss.item() == pytest.approx(loss, abs=1e-12)


def test_nan_in_the_padding_reaches_neither_value_loss_nor_gradient() -> None:
    values = tensor([1.0, NAN]).requires_grad_()
    result = ppo_value_loss(values, tensor([1.0, NAN]), tensor([3.0, NAN]), tensor([1, 0]), clip=0.2, count=1)
    result.loss.backward()
    assert result.loss.item() == 2.0
    assert values.grad is not None
    assert values.grad.tolist() == [[-2.0, 0.0]]


def test_explained_variance() -> None:
    mask = tensor([1, 1, 1, 0])
    returns = tensor([0.0, 2.0, 4.0, 50.0])
    assert explained_variance(returns, returns, mask) == 1.0
    assert explained_variance(tensor([9.0, 9.0, 9.0, 0.0]), returns, mask) == 0.0
    # R - V = (0, 1, 2): variance 1 against 4.
    assert explained_variance(tensor([0.0, 1.0, 2.0, 0.0]), returns, mask) == pytest.approx(0.75)


# ---- micro-batches ------------------------------------------------------------------------------------------------


def test_a_batch_of_eight_equals_eight_batches_of_one_with_any_padding() -> None:
    generator = torch.Generator().manual_seed(3)

    def draw() -> Tensor:
        return torch.randn(8, 6, generator=generator, dtype=torch.float64)

    mask = (torch.arange(6) < torch.tensor([6, 1, 3, 2, 5, 4, 6, 2]).unsqueeze(1)).double()
    new, old, advantages, values, old_values, returns = draw(), draw(), draw(), draw(), draw(), draw()
    count = float(mask.sum())

    def losses(rows: slice, width: int) -> tuple[Tensor, Tensor]:
        cut = (rows, slice(width))
        policy = ppo_policy_loss(new[cut], old[cut], advantages[cut], mask[cut], clip=0.2, clamp=10.0, count=count).loss
        return policy, ppo_value_loss(values[cut], old_values[cut], returns[cut], mask[cut], clip=0.2, count=count).loss

    whole = losses(slice(0, 8), 6)
    singles = [losses(slice(i, i + 1), int(mask[i].sum())) for i in range(8)]
    for k in range(2):
        assert whole[k].item() == pytest.approx(sum(single[k].item() for single in singles), abs=1e-12)

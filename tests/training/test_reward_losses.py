"""The reward model's losses against figures worked by hand."""

import pytest
import torch

from app.training.reward_losses import (
    calibration_error,
    correlation,
    pair_accuracy,
    pairs_of_judgments,
    preference_loss,
    preference_nll,
)

STRICT, TIED = torch.tensor([False]), torch.tensor([True])


def test_bradley_terry_at_a_margin_of_two_costs_0_1269_nats() -> None:
    assert preference_nll(torch.tensor([2.0]), STRICT, None).item() == pytest.approx(0.126928, abs=1e-6)
    assert preference_nll(torch.tensor([-2.0]), STRICT, None).item() == pytest.approx(2.126928, abs=1e-6)


def test_without_a_threshold_a_tie_is_half_a_win_for_each_side() -> None:
    assert preference_nll(torch.tensor([2.0]), TIED, None).item() == pytest.approx(1.126928, abs=1e-6)


def test_rao_kupper_gives_a_win_a_tie_and_a_loss_their_probabilities() -> None:
    eta, margin = torch.tensor(0.5), torch.tensor([1.0])
    win = preference_nll(margin, STRICT, eta)
    lose = preference_nll(-margin, STRICT, eta)
    tie = preference_nll(margin, TIED, eta)
    assert win.item() == pytest.approx(0.474077, abs=1e-6)  # -log sigmoid(0.5)
    assert lose.item() == pytest.approx(1.701413, abs=1e-6)  # -log sigmoid(-1.5)
    assert (torch.exp(-win) + torch.exp(-lose) + torch.exp(-tie)).item() == pytest.approx(1.0, abs=1e-6)


def test_a_judgment_of_three_weighs_as_much_as_a_judgment_of_two() -> None:
    pairs = pairs_of_judgments([[[2], [0], [1]], [[1], [0]]])
    assert pairs.first.tolist() == [2, 2, 0, 4]
    assert pairs.second.tolist() == [0, 1, 1, 3]
    assert pairs.weight.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1.0])


def test_completions_of_one_tier_make_a_tied_pair() -> None:
    pairs = pairs_of_judgments([[[0, 2], [1]]])
    assert list(zip(pairs.first.tolist(), pairs.second.tolist(), pairs.tied.tolist(), strict=True)) == [
        (0, 1, False),
        (2, 1, False),
        (0, 2, True),
    ]


def test_the_loss_is_the_mean_over_judgments() -> None:
    scores = torch.tensor([2.0, 0.0, 0.0, 2.0])
    loss = preference_loss(scores, pairs_of_judgments([[[0], [1]], [[0], [1]]]))
    assert loss.item() == pytest.approx((0.126928 + 2.126928) / 2, abs=1e-6)
    members = torch.stack([scores, torch.zeros(4)])
    both = preference_loss(members, pairs_of_judgments([[[0], [1]], [[0], [1]]]))
    assert both.item() == pytest.approx((1.126928 + 0.693147) / 2, abs=1e-6)


def test_eight_judgments_at_once_have_the_gradient_of_eight_of_one() -> None:
    tiers = [[[1], [0]], [[0], [1]], [[0, 1]], [[2], [0], [1]]]
    threshold = torch.tensor(0.3)
    whole = torch.linspace(-1, 1, 9, requires_grad=True)
    preference_loss(whole, pairs_of_judgments(tiers), threshold).backward()
    parts = torch.linspace(-1, 1, 9, requires_grad=True)
    row = 0
    for judgment in tiers:
        count = sum(len(t) for t in judgment)
        (preference_loss(parts[row : row + count], pairs_of_judgments([judgment]), threshold) / len(tiers)).backward()
        row += count
    assert torch.allclose(whole.grad, parts.grad, atol=1e-7)  # type: ignore[arg-type]


def test_accuracy_counts_equal_scores_as_half_and_leaves_ties_out() -> None:
    margin = torch.tensor([1.0, -1.0, 0.0, 5.0])
    assert pair_accuracy(margin, torch.tensor([False, False, False, True])) == (1.5, 3)


def test_a_coin_that_claims_ninety_percent_has_a_calibration_error_of_forty_points() -> None:
    margin = torch.tensor([2.1972246, -2.1972246])
    assert calibration_error(margin, torch.tensor([False, False])) == pytest.approx(0.4, abs=1e-6)
    assert calibration_error(margin, torch.tensor([True, True])) == 0.0


def test_correlation_is_pearsons_and_zero_where_nothing_varies() -> None:
    assert correlation([1, 2, 3], [2, 4, 7]) == pytest.approx(0.9933993, abs=1e-6)
    assert correlation([1, 1, 1], [2, 4, 7]) == 0.0

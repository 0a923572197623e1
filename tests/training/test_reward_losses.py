"""The reward model's losses against figures worked by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from app.training.reward_losses import (
    chance_of_worse,
    margin_of,
    objective,
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


def test_a_strength_asks_for_the_margins_of_llama_2() -> None:
    assert [margin_of(s, 1.0) for s in (1, 2, 3, 4)] == pytest.approx([0.0, 1 / 3, 2 / 3, 1.0])
    assert [margin_of(s, 3.0) for s in (1, 2, 3, 4)] == pytest.approx([0.0, 1.0, 2.0, 3.0])
    assert margin_of(None, 3.0) == 0.0


def test_a_margin_asked_for_is_taken_off_the_difference() -> None:
    asked = torch.tensor([2 / 3])
    assert preference_nll(torch.tensor([1.0]), STRICT, None, asked).item() == pytest.approx(0.540306, abs=1e-6)
    # With a threshold of 1/2 as well: -log sigmoid(1 - 1 - 1/2).
    both = preference_nll(torch.tensor([1.0]), STRICT, torch.tensor(0.5), torch.tensor([1.0]))
    assert both.item() == pytest.approx(0.974077, abs=1e-6)


def test_no_margin_is_asked_of_a_tie() -> None:
    pairs = pairs_of_judgments([[[0, 1]], [[0], [1]]], asked=[1.0, 1.0])
    assert pairs.asked.tolist() == [0.0, 1.0]


def test_smoothing_of_a_tenth_mixes_the_right_label_and_the_wrong_one() -> None:
    smoothed = preference_nll(torch.tensor([2.0]), STRICT, None, smoothing=0.1)
    assert smoothed.item() == pytest.approx(0.326928, abs=1e-6)
    theirs = F.binary_cross_entropy_with_logits(torch.tensor([2.0]), torch.tensor([0.9]))
    assert smoothed.item() == pytest.approx(theirs.item(), abs=1e-6)
    assert preference_nll(torch.tensor([2.0]), TIED, None, smoothing=0.1).item() == pytest.approx(1.126928, abs=1e-6)


def test_averaged_votes_are_cross_entropy_against_their_share() -> None:
    # Two votes of three for the first, margin 1: -(2/3) log sigmoid(1) - (1/3) log sigmoid(-1).
    votes = [[[0], [1]], [[0], [1]], [[1], [0]]]
    rows = [[0, 1]] * 3
    pairs = pairs_of_judgments(votes, rows, units=[0, 0, 0])
    assert pairs.weight.tolist() == pytest.approx([1 / 3] * 3)
    scores = torch.tensor([1.0, 0.0], requires_grad=True)
    loss = preference_loss(scores, pairs)
    assert loss.item() == pytest.approx(0.646595, abs=1e-6)
    loss.backward()
    logit = torch.tensor([1.0], requires_grad=True)
    theirs = F.binary_cross_entropy_with_logits(logit, torch.tensor([2 / 3]))
    theirs.backward()
    assert loss.item() == pytest.approx(theirs.item(), abs=1e-6)
    assert scores.grad is not None
    assert logit.grad is not None
    assert scores.grad[0].item() == pytest.approx(logit.grad.item(), abs=1e-6)


def test_three_votes_weigh_three_as_judgments_and_one_when_averaged() -> None:
    tiers = [[[0], [1]], [[0], [1]], [[1], [0]], [[0], [1]]]
    rows = [[0, 1]] * 3 + [[2, 3]]
    scores = torch.tensor([2.0, 0.0, 0.0, 0.0])
    each = preference_loss(scores, pairs_of_judgments(tiers, rows))
    averaged = preference_loss(scores, pairs_of_judgments(tiers, rows, units=[0, 0, 0, 1]))
    voted = 2 * 0.126928 + 2.126928  # two right votes and a wrong one at a margin of 2; the other pair is even
    assert each.item() == pytest.approx((voted + 0.693147) / 4, abs=1e-5)
    assert averaged.item() == pytest.approx((voted / 3 + 0.693147) / 2, abs=1e-5)


def test_plackett_luce_of_scores_two_one_nought_costs_0_3604_nats_a_choice() -> None:
    # -log(e^2 / (e^2 + e + 1)) = 0.407606, then -log(e / (e + 1)) = 0.313262; their mean.
    pairs = pairs_of_judgments([[[0], [1], [2]]], plackett_luce=True)
    assert preference_loss(torch.tensor([2.0, 1.0, 0.0]), pairs).item() == pytest.approx(0.360434, abs=1e-6)
    assert float(pairs.weight.sum()) == pytest.approx(1.0)


def test_plackett_luce_is_torchs_cross_entropy_of_each_choice_with_its_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    ranking = [3, 0, 4, 1, 2]
    ours = torch.randn(5, generator=generator, dtype=torch.float64).requires_grad_(True)
    theirs = ours.detach().clone().requires_grad_(True)
    pairs = pairs_of_judgments([[[i] for i in ranking]], plackett_luce=True)
    loss = preference_loss(ours, pairs)
    choices = [F.cross_entropy(theirs[ranking[k:]].unsqueeze(0), torch.tensor([0])) for k in range(4)]
    expected = torch.stack(choices).mean()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-7)
    loss.backward()
    expected.backward()
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-7)  # type: ignore[arg-type]


def test_plackett_luce_of_two_is_bradley_terry_and_leaves_ties_as_pairs() -> None:
    tiers = [[[0], [1]], [[1], [0, 2]], [[0, 1]]]
    scores = torch.linspace(-1, 1, 7)
    for threshold in (None, torch.tensor(0.4)):
        one = preference_loss(scores, pairs_of_judgments(tiers, plackett_luce=True), threshold)
        two = preference_loss(scores, pairs_of_judgments(tiers), threshold)
        assert one.item() == two.item()


def test_a_threshold_stands_against_every_rival_of_a_choice() -> None:
    # log(1 + e^(1/2 - 2) + e^(1/2 - 1)), scores 2, 0, 1 and eta 1/2.
    pairs = pairs_of_judgments([[[0], [2], [1]]], plackett_luce=True)
    margin = torch.tensor([2.0, 0.0, 1.0])[pairs.first] - torch.tensor([2.0, 0.0, 1.0])[pairs.second]
    first = objective(margin, pairs, torch.tensor(0.5))[:2]
    assert first.tolist() == pytest.approx([0.604131, 0.604131], abs=1e-6)


def test_plackett_luce_bears_any_score() -> None:
    pairs = pairs_of_judgments([[[0], [1], [2]]], plackett_luce=True)
    loss = preference_loss(torch.tensor([-300.0, 0.0, 300.0]), pairs)
    assert loss.item() == pytest.approx((600.0 + 300.0) / 2, abs=1e-3)
    shares = chance_of_worse(torch.tensor([-300.0, -600.0, -300.0]), pairs)
    assert shares.tolist() == pytest.approx([0.0, 1.0, 1.0], abs=1e-6)


def test_the_order_of_answers_and_of_judgments_decides_nothing() -> None:
    scores = torch.tensor([0.3, -0.2, 1.1, 0.4, -0.9])
    tiers, rows = [[[1], [0], [2]], [[0], [1]]], [[0, 1, 2], [3, 4]]
    turned, places = [[[0], [1]], [[0], [2], [1]]], [[3, 4], [1, 2, 0]]
    for ranked in (True, False):
        one = preference_loss(scores, pairs_of_judgments(tiers, rows, plackett_luce=ranked))
        two = preference_loss(scores, pairs_of_judgments(turned, places, plackett_luce=ranked))
        assert one.item() == pytest.approx(two.item(), abs=1e-6)


def test_a_member_learns_from_its_own_share_of_the_judgments() -> None:
    scores = torch.tensor([[2.0, 0.0, 0.0, 2.0], [2.0, 0.0, 0.0, 2.0]], requires_grad=True)
    pairs = pairs_of_judgments([[[0], [1]], [[0], [1]]])
    loss = preference_loss(scores, pairs, share=torch.tensor([[2.0, 0.0], [0.0, 2.0]]))
    assert loss.item() == pytest.approx((2 * 0.126928 / 2 + 2 * 2.126928 / 2) / 2, abs=1e-6)
    loss.backward()
    assert scores.grad is not None
    assert scores.grad[0, 2:].tolist() == [0.0, 0.0]
    assert scores.grad[1, :2].tolist() == [0.0, 0.0]
    assert math.isclose(float(scores.grad[0, 0]), -float(torch.sigmoid(torch.tensor(-2.0))) / 2, abs_tol=1e-6)

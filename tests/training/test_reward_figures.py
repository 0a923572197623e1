"""The figures of a reward model against figures worked by hand."""

import math

import pytest
import torch

from app.training.reward_figures import (
    calibration_error,
    correlation,
    counted,
    fitted_temperature,
    half_credit,
    mean_nll,
    pair_accuracy,
    reliability,
    similarity,
)


def none_tied(count: int) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.bool)


def test_accuracy_counts_equal_scores_as_half_and_leaves_ties_out() -> None:
    margin = torch.tensor([1.0, -1.0, 0.0, 5.0])
    assert pair_accuracy(margin, torch.tensor([False, False, False, True])) == (1.5, 3)


def test_a_coin_that_claims_ninety_percent_has_a_calibration_error_of_forty_points() -> None:
    margin = torch.tensor([2.1972246, -2.1972246])
    assert calibration_error(margin, torch.tensor([False, False])) == pytest.approx(0.4, abs=1e-6)
    assert calibration_error(margin, torch.tensor([True, True])) == 0.0


def test_a_temperature_that_makes_the_coin_honest_takes_the_error_away() -> None:
    margin = torch.tensor([2.1972246, -2.1972246])
    # sigmoid(ln 9 / 1000) = 0.50055
    assert calibration_error(margin, none_tied(2), temperature=1000.0) == pytest.approx(0.00055, abs=1e-5)


def test_reliability_puts_each_pair_into_the_bin_of_its_confidence() -> None:
    # sigmoid(ln 3.2) = .762 twice, once right; sigmoid(ln 12) = .923, right.
    margin = torch.tensor([math.log(3.2), -math.log(3.2), math.log(12), 0.5])
    table = reliability(margin, torch.tensor([False, False, False, True]))
    filled = {round(one.low, 2): one for one in table if one.pairs}
    assert sorted(filled) == [0.75, 0.9]
    assert (filled[0.75].pairs, filled[0.75].accuracy) == (2, 0.5)
    assert filled[0.75].confidence == pytest.approx(3.2 / 4.2, abs=1e-6)
    assert filled[0.9].accuracy == 1.0
    assert [one.pairs for one in table if not one.pairs] == [0] * 8
    assert table[0].confidence is None


def test_three_quarters_right_at_margin_one_has_the_temperature_one_over_log_three() -> None:
    # sigmoid(1 / T) = 3/4.
    margin = torch.tensor([1.0] * 15 + [-1.0] * 5)
    found = fitted_temperature(margin, none_tied(20), torch.ones(20))
    assert found == pytest.approx(0.910239, abs=1e-5)
    assert found is not None
    cooler, hotter = (mean_nll(margin, none_tied(20), found * factor) for factor in (0.9, 1.1))
    best = mean_nll(margin, none_tied(20), found)
    assert best is not None
    assert best == pytest.approx(0.562335, abs=1e-6)  # the entropy of 3/4
    assert cooler is not None
    assert hotter is not None
    assert best < min(cooler, hotter)


def test_the_temperature_weighs_votes_as_they_were_weighed_in_learning() -> None:
    # Fifteen right pairs at a third of a unit each against five wrong ones at one: even, so as hot as may be.
    margin = torch.tensor([1.0] * 15 + [-1.0] * 5)
    weight = torch.tensor([1 / 3] * 15 + [1.0] * 5)
    assert fitted_temperature(margin, none_tied(20), weight) == pytest.approx(10.0, abs=1e-6)


def test_all_right_ends_at_the_coldest_temperature_and_too_few_pairs_at_none() -> None:
    assert fitted_temperature(torch.ones(20), none_tied(20), torch.ones(20)) == pytest.approx(0.1, abs=1e-6)
    assert fitted_temperature(torch.ones(19), none_tied(19), torch.ones(19)) is None
    assert fitted_temperature(torch.ones(30), torch.arange(30) < 15, torch.ones(30)) is None


def test_three_votes_on_one_comparison_are_one_trial() -> None:
    # Comparison 0: three votes, two as the model says; comparison 1: one, right. (2/3 + 1) / 2 of two trials.
    share = counted(torch.tensor([1.0, 1.0, 0.0, 1.0]), torch.tensor([0, 0, 0, 1]))
    assert share.value == pytest.approx(0.833333, abs=1e-6)
    assert (share.comparisons, share.pairs) == (2, 4)
    # Wilson's interval of 5/3 successes in 2 trials, and not of 3 in 4, which would be .30 to .95.
    assert (share.low, share.high) == (pytest.approx(0.240780, abs=1e-5), pytest.approx(0.987473, abs=1e-5))


def test_copying_a_vote_narrows_no_interval() -> None:
    credit, comparison = torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0, 1, 2])
    once = counted(credit, comparison)
    often = counted(credit.repeat(50), comparison.repeat(50))
    assert (once.low, once.high) == pytest.approx((often.low, often.high))


def test_without_comparisons_nothing_is_known() -> None:
    share = counted(torch.zeros(0), torch.zeros(0, dtype=torch.long))
    assert share == (None, 0.0, 1.0, 0, 0)
    assert mean_nll(torch.zeros(2), torch.tensor([True, True])) is None


def test_half_credit_is_given_for_an_exact_tie_only() -> None:
    assert half_credit(torch.tensor([1e-9, 0.0, -1e-9])).tolist() == [1.0, 0.5, 0.0]


def test_correlation_is_pearsons_and_zero_where_nothing_varies() -> None:
    assert correlation([1, 2, 3], [2, 4, 7]) == pytest.approx(0.9933993, abs=1e-6)
    assert correlation([1, 1, 1], [2, 4, 7]) == 0.0


def test_turning_a_pair_round_does_not_change_how_its_differences_go_together() -> None:
    margin, words = torch.tensor([1.0, 2.0]).double(), torch.tensor([3.0, -1.0]).double()
    # (3 - 2) / (sqrt(5) sqrt(10))
    assert similarity(margin, words) == pytest.approx(0.141421, abs=1e-6)
    turned = torch.tensor([1.0, -1.0]).double()
    assert similarity(margin * turned, words * turned) == pytest.approx(0.141421, abs=1e-6)

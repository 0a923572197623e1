"""Intervals and rates against figures worked by hand."""

import pytest

from app.core.agreement import longer_wins, raw_agreement, wilson


def test_wilson_interval_of_a_textbook_case() -> None:
    # Newcombe 1998, table 1: 81 of 263 gives .2553 to .3662.
    low, high = wilson(81, 263)
    assert low == pytest.approx(0.2553, abs=5e-5)
    assert high == pytest.approx(0.3662, abs=5e-5)


def test_wilson_stays_inside_the_unit_interval_and_knows_nothing_without_trials() -> None:
    assert wilson(0, 10)[0] == 0.0
    assert wilson(10, 10)[1] == pytest.approx(1.0)
    assert wilson(0, 0) == (0.0, 1.0)


def test_longer_wins_counts_equal_lengths_one_half() -> None:
    assert longer_wins(["a b c", "a", "one two"], ["a b", "a b", "x y"]) == pytest.approx(0.5)
    assert longer_wins(["a b c", "x y"], ["a b", "x"]) == 1.0


def test_agreement_is_over_pairs_of_votes_on_the_same_item() -> None:
    assert raw_agreement([["a", "a", "b"], ["a", "a"], ["b"]]) == (pytest.approx(2 / 4), 4)
    assert raw_agreement([["a"], []]) == (0.0, 0)

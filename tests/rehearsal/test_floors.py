"""The bag of words and the accuracy that all models are measured by."""

import random

import pytest

from app.rehearsal.floors import BagOfWords, accuracy


def test_a_word_that_always_wins_is_learnt() -> None:
    rng = random.Random(0)
    words = ["order", "item", "reply", "soon", "today", "later"]
    better = [f"thanks {' '.join(rng.sample(words, 3))}" for _ in range(60)]
    worse = [f"no {' '.join(rng.sample(words, 3))}" for _ in range(60)]
    bag = BagOfWords(better, worse)
    assert bag.margin(["thanks order"], ["no order"])[0] > 0
    assert bag.margin(["no order"], ["thanks order"])[0] < 0


def test_it_cannot_read_the_prompt() -> None:
    bag = BagOfWords(["a b", "b a"] * 10, ["c d", "d c"] * 10)
    assert bag.margin(["order 1234"], ["order 9876"]) == [0.0]


def test_accuracy_counts_no_opinion_as_half_and_leaves_equal_pairs_out() -> None:
    assert accuracy([1.0, -1.0, 0.0, 5.0, 2.0], [1.0, 1.0, 0.0, 0.5, 0.0]) == pytest.approx((1 + 0 + 0.5 + 0) / 4)

"""The split, the order of sides, and pairs from rankings."""

from collections import Counter

from app.core.pairing import normalise, pairs_of, side_order, split_of
from app.core.vocabulary import Split


def test_spellings_a_reader_would_call_the_same_are_normalised_alike() -> None:
    assert normalise("  My Kettle\n is  BROKEN ") == "my kettle is broken"
    assert normalise("ﬁne") == "fine"


def test_the_same_question_is_on_the_same_side_however_it_is_typed() -> None:
    assert split_of("salt", "Where is my order?") == split_of("salt", " where IS my  order?\n")


def test_about_a_tenth_is_held_out_and_another_salt_holds_out_others() -> None:
    texts = [f"question {i}" for i in range(4000)]
    one = [split_of("a", t) is Split.HELDOUT for t in texts]
    other = [split_of("b", t) is Split.HELDOUT for t in texts]
    assert 320 < sum(one) < 480
    assert sum(x and y for x, y in zip(one, other, strict=True)) < 80


def test_no_share_and_the_whole_share_are_what_they_say() -> None:
    assert all(split_of("s", str(i), 0.0) is Split.TRAIN for i in range(50))
    assert all(split_of("s", str(i), 1.0) is Split.HELDOUT for i in range(50))


def test_sides_are_fixed_for_a_person_and_fair_over_people() -> None:
    assert side_order("c1", "a1") == side_order("c1", "a1")
    firsts = Counter(side_order("c1", f"annotator-{i}")[0] for i in range(2000))
    assert 900 < firsts[0] < 1100
    assert sorted(side_order("c", "a", 5)) == [0, 1, 2, 3, 4]


def test_a_ranking_with_ties_gives_only_strict_pairs() -> None:
    assert pairs_of([[2], [0, 1]]) == [(2, 0), (2, 1)]
    assert pairs_of([[0, 1]]) == []
    assert pairs_of([[3], [1], [0]]) == [(3, 1), (3, 0), (1, 0)]

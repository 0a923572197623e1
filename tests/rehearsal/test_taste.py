"""The hidden taste: what it likes, and how unsteady the hand is."""

import random

import pytest

from app.policy.grammar import letters
from app.rehearsal.taste import CRITERIA, criteria, noiseless, prefers_first, utility

PROMPT = "My kettle arrived broken. My order number is 4821. Please help."
GOOD = (
    "Hello! I am sorry about the damage. I have found order 4821 for your kettle. "
    "We will send you a new kettle free of charge."
)


def test_a_good_reply_adds_up() -> None:
    # Item .5, order 1, step 1, apology .6, greeting .3.
    assert utility(PROMPT, GOOD) == pytest.approx(3.4)


@pytest.mark.parametrize(
    ("reply", "criterion", "change"),
    [
        (GOOD.replace("kettle", "lamp"), "right_item", -2.5),
        (GOOD.replace("4821", "4822"), "right_order", -3.0),
        (
            GOOD.replace("We will send you a new kettle free of charge.", "I have cancelled the order for you."),
            "fitting_step",
            -2.0,
        ),
        (GOOD.replace("I am sorry about the damage. ", ""), "apology", -0.6),
        (GOOD.replace("Hello! ", ""), "courtesy", -0.3),
        (GOOD + " Please stop wasting our time.", "respect", -2.0),
        (GOOD + " Our warehouse was painted blue last spring.", "to_the_point", -0.7),
        (GOOD + " Blah kettle blah.", "care", -0.8),
    ],
)
def test_each_flaw_costs_what_the_document_says(reply: str, criterion: str, change: float) -> None:
    before, after = criteria(PROMPT, GOOD), criteria(PROMPT, reply)
    assert after[criterion] - before[criterion] == pytest.approx(change)
    assert noiseless(PROMPT, GOOD, reply) == 1.0
    assert noiseless(PROMPT, reply, GOOD) == 0.0


def test_asking_for_a_number_that_was_given_is_worse_than_asking_for_one_that_was_not() -> None:
    reply = "Hello! May I have the order number?"
    assert criteria(PROMPT, reply)["right_order"] == pytest.approx(-0.5)
    assert criteria("My kettle arrived broken.", reply)["right_order"] == pytest.approx(0.5)


def test_there_are_nine_criteria_and_three_of_them_need_the_prompt() -> None:
    other = "My lamp has not arrived. My order number is 1111."
    here, there = criteria(PROMPT, GOOD), criteria(other, GOOD)
    assert tuple(here) == CRITERIA
    assert [name for name in CRITERIA if here[name] != there[name]] == ["right_item", "right_order", "fitting_step"]


def test_the_noise_is_bradley_and_terrys() -> None:
    worse = GOOD.replace("Hello! ", "")
    rng = random.Random(0)
    share = sum(prefers_first(rng, PROMPT, GOOD, worse) for _ in range(4000)) / 4000
    assert share == pytest.approx(0.592667, abs=0.025)  # sigmoid(0.3 / 0.8)


def test_equal_replies_are_one_half() -> None:
    assert noiseless(PROMPT, GOOD, GOOD) == 0.5


def test_the_longer_reply_is_not_the_better_one() -> None:
    some = letters(11, 400)
    marks = []
    for first, second in zip(some[::2], some[1::2], strict=True):
        label = noiseless(first.prompt_text, first.reply_text, second.reply_text)
        longer = len(first.reply_text.split()) - len(second.reply_text.split())
        marks += [float((longer > 0) == (label > 0.5))] if label != 0.5 and longer else []
    assert sum(marks) / len(marks) < 0.65

import random
from dataclasses import asdict

import pytest

from app.policy.checker import check, in_plausible_order, parse, read_message, sentences_of
from app.policy.grammar import letters
from app.policy.lexicon import Issue, Part, Step

PROMPT = "Hello! My kettle arrived broken. My order number is 4821. Please help."
GOOD = (
    "Hello! I am sorry about the damage. I have found order 4821 for your kettle. "
    "We will send you a new kettle free of charge. Please allow two days for this. Kind regards, Mia."
)


def test_a_message_is_read():
    asked = read_message(PROMPT)
    assert (asked.item, asked.order, asked.issue) == ("kettle", "4821", Issue.DAMAGED)


def test_any_other_message_is_read_as_far_as_it_goes():
    asked = read_message("what is a kettle?")
    assert (asked.item, asked.order, asked.issue) == ("kettle", None, None)


def test_a_good_reply_is_seen_as_one():
    c = check(PROMPT, GOOD)
    assert c.grammatical
    assert c.right_item
    assert c.right_order
    assert c.right_trouble
    assert c.step_fits
    assert c.greets
    assert c.apologises
    assert c.says_when
    assert c.signs
    assert not c.closes
    assert not c.thanks
    assert c.steps == (Step.REPLACE,)
    assert (c.curt, c.sloppy, c.vague, c.rude, c.asides, c.unknown_sentences) == (0, 0, 0, 0, 0, 0)
    assert c.words == 34


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("4821", "1573", "right_order"),
        ("kettle", "lamp", "right_item"),
        ("the damage", "the delay", "right_trouble"),
        ("We will send you a new kettle free of charge.", "Order cancelled.", "step_fits"),
    ],
)
def test_a_mistake_shows_only_beside_the_message(old, new, field):
    c = check(PROMPT, GOOD.replace(old, new))
    assert c.grammatical
    assert getattr(c, field) is False
    assert getattr(check(PROMPT, GOOD), field) is True


def test_two_items_in_one_reply_are_not_the_right_item():
    c = check(PROMPT, GOOD.replace("new kettle", "new lamp"))
    assert c.names_item
    assert not c.right_item


def test_asking_for_a_number_that_was_given_is_noticed():
    reply = "Could you send me your order number? We will send you a new kettle free of charge."
    assert check(PROMPT, reply).asks_known_order
    assert not check("My kettle arrived broken.", reply).asks_known_order
    assert check("My kettle arrived broken.", reply).asks_order


def test_tones_are_counted():
    c = check(PROMPT, "Please stop wasting our time. i canceld ur order. Do not write again.")
    assert (c.rude, c.sloppy) == (2, 1)
    assert not c.step_fits
    assert c.offers_step


@pytest.mark.parametrize(
    "reply", ["", " ", "Hello!", "Hello", "4821", "kettle kettle", "Order 48215.", "Order 482.", "?!", "a\nb"]
)
def test_texts_that_are_no_letters_are_refused_without_an_error(reply):
    assert not check(PROMPT, reply).grammatical


@pytest.mark.parametrize(
    ("parts", "plausible"),
    [
        ((Part.GREET, Part.SORRY, Part.ACK, Part.STEP, Part.WHEN, Part.CLOSE, Part.SIGN), True),
        ((Part.STEP,), True),
        ((Part.GREET, Part.SIGN), False),
        ((Part.STEP, Part.GREET), False),
        ((Part.SIGN, Part.STEP), False),
        ((Part.WHEN, Part.STEP), False),
        ((Part.ASIDE, Part.ACK, Part.ASIDE, Part.STEP), True),
        ((Part.ASIDE, Part.GREET, Part.ACK), False),
        ((Part.ACK, Part.SIGN, Part.ASIDE), False),
        ((Part.JAB, Part.JAB, Part.JAB, Part.JAB), False),
        ((), False),
    ],
)
def test_parts_must_stand_in_an_order_that_a_letter_can_have(parts, plausible):
    assert in_plausible_order(parts) is plausible


def _drop_word(words, rng):
    i = rng.randrange(len(words))
    return words[:i] + words[i + 1 :]


def _swap_words(words, rng):
    i = rng.randrange(len(words) - 1)
    return [*words[:i], words[i + 1], words[i], *words[i + 2 :]]


def _double_word(words, rng):
    i = rng.randrange(len(words))
    return [*words[:i], words[i], *words[i:]]


def _strange_word(words, rng):
    i = rng.randrange(len(words))
    return [*words[:i], "gravel", *words[i + 1 :]]


@pytest.mark.parametrize("mutate", [_drop_word, _swap_words, _double_word, _strange_word])
def test_damaged_letters_are_refused(mutate):
    rng = random.Random(0)
    accepted = 0
    for letter in letters(11, 500):
        words = letter.reply_text.split()
        damaged = " ".join(mutate(words, rng))
        accepted += damaged != letter.reply_text and check(letter.prompt_text, damaged).grammatical
    # A lost "very" or a lost one-word sentence may leave a sound letter; anything else must not.
    assert accepted <= 15


def test_a_repeated_sentence_and_a_cut_end_are_refused():
    for letter in letters(12, 300):
        sentences = sentences_of(letter.reply_text)
        assert not check(letter.prompt_text, " ".join([*sentences, sentences[-1]])).grammatical
        assert not check(letter.prompt_text, letter.reply_text[:-1]).grammatical
        assert not check(letter.prompt_text, letter.reply_text + " ").grammatical


def test_a_sentence_that_is_no_instance_parses_to_none():
    hello, strange = parse("Hello! The moon is a harsh mistress.")
    assert hello is not None
    assert hello.template.part is Part.GREET
    assert strange is None


def test_a_check_holds_plain_values():
    assert set(map(type, asdict(check(PROMPT, GOOD)).values())) <= {bool, int, tuple}

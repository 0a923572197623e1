from app.core.pairing import split_of
from app.core.vocabulary import Split
from app.policy.checker import check
from app.policy.grammar import demonstrations, letters, prompts
from app.policy.lexicon import COMPLAINTS, ITEMS, REPLY_TEMPLATES, Issue

SAMPLE = letters(seed=3, n=3000)
CHECKS = [check(*letter) for letter in SAMPLE]


def share(values):
    values = list(values)
    return sum(values) / len(values)


def test_the_world_is_wide_enough():
    assert len(set(ITEMS)) >= 20
    assert len(set(Issue)) >= 6
    assert len({t.text for t in REPLY_TEMPLATES}) == len(REPLY_TEMPLATES) >= 120
    assert all(len(COMPLAINTS[issue]) >= 5 for issue in Issue)


def test_the_same_seed_writes_the_same_letters_and_another_seed_others():
    assert letters(7, 50) == letters(7, 50)
    assert not set(letters(7, 50)) & set(letters(8, 50))


def test_no_message_comes_twice():
    assert len({letter.prompt_text for letter in SAMPLE}) == len(SAMPLE)


def test_replies_hardly_repeat():
    assert len({letter.reply_text for letter in SAMPLE[:1000]}) >= 900


def test_every_letter_is_grammatical():
    assert all(c.grammatical for c in CHECKS)


def test_letters_are_short():
    assert max(len(letter.prompt_text.split()) for letter in SAMPLE) <= 30
    assert max(len(letter.reply_text.split()) for letter in SAMPLE) <= 80


def test_replies_make_the_mistakes_that_only_the_message_shows():
    citing = [c for c in CHECKS if c.names_order]
    assert 0.22 < share(not c.right_order for c in citing) < 0.30
    naming = [c for c in CHECKS if c.names_item]
    assert 0.03 < share(not c.right_item for c in naming) < 0.06
    offering = [c for c in CHECKS if c.offers_step]
    assert 0.15 < share(not c.step_fits for c in offering) < 0.25
    sloppy = [c for c in citing if c.sloppy]
    assert share(not c.right_order for c in sloppy) > share(not c.right_order for c in citing)


def test_a_wrong_order_number_is_wrong_at_a_glance():
    for (prompt, reply), c in zip(SAMPLE, CHECKS, strict=True):
        if c.names_order and not c.right_order:
            asked = next(w for w in prompt.replace(".", " ").split() if w.isdigit())
            cited = next(w for w in reply.replace(".", " ").replace(",", " ").split() if w.isdigit())
            assert asked[0] != cited[0]


def test_the_longest_replies_are_not_the_plain_ones():
    plain = [c.words for c in CHECKS if not (c.curt or c.sloppy or c.vague or c.rude or c.asides)]
    rambling = [c.words for c in CHECKS if c.asides]
    assert sum(rambling) / len(rambling) > sum(plain) / len(plain) + 5


def test_demonstrations_are_split_by_the_salt_and_carry_two_texts_only():
    records = list(demonstrations(seed=1, n=200, salt="pepper"))
    assert len({r.prompt_id for r in records}) == 200
    assert set(records[0].model_dump()) == {"prompt_id", "prompt", "completion", "split"}
    assert all(r.split is split_of("pepper", r.prompt[0]["content"]) for r in records)
    assert 5 <= sum(r.split is Split.HELDOUT for r in records) <= 40


def test_prompts_are_messages_without_a_reply():
    records = list(prompts(seed=1, n=20, salt="pepper"))
    assert [r.prompt[0]["content"] for r in records] == [letter.prompt_text for letter in letters(1, 20)]

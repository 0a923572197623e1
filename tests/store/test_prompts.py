"""Prompts, their split, and the order in which they are drawn."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select

from app.core.errors import Invalid
from app.core.pairing import split_of
from app.core.vocabulary import Split
from app.store import prompts
from app.store.db import make_engine, session_factory
from app.store.models import Completion, Prompt


def questions(n, word="Question"):
    return [[{"role": "user", "content": f"{word} {i}"}] for i in range(n)]


def test_the_split_is_that_of_the_first_user_message_whatever_follows(session, make):
    project = make.project(heldout_share=0.5)
    conversations = [
        turns
        for [first] in questions(40)
        for turns in (
            [first],
            [first, {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "More."}],
            [{"role": "system", "content": "Be brief."}, {"role": "user", "content": first["content"].upper() + "  "}],
        )
    ]
    assert prompts.add_prompts(session, project, conversations, "test") == 120
    by_question = {}
    for prompt in session.scalars(select(Prompt)):
        first = next(message["content"] for message in prompt.messages if message["role"] == "user")
        assert prompt.split == split_of(project.salt, first, 0.5)
        by_question.setdefault(first.strip().lower(), set()).add(prompt.split)
    assert [len(sides) for sides in by_question.values()] == [1] * 40
    assert set().union(*by_question.values()) == {Split.TRAIN, Split.HELDOUT}


def test_another_project_splits_the_same_prompts_differently(session, make):
    sides = []
    for _ in range(2):
        project = make.project(heldout_share=0.5)
        prompts.add_prompts(session, project, questions(64), "test")
        query = select(Prompt.split).where(Prompt.project_id == project.id).order_by(Prompt.id)
        sides.append(list(session.scalars(query)))
    assert sides[0] != sides[1]


def test_a_prompt_that_is_there_is_not_added_again(session, make):
    project = make.project()
    assert prompts.add_prompts(session, project, questions(3), "one") == 3
    assert prompts.add_prompts(session, project, questions(5), "two") == 2
    counts = prompts.counts(session, project.id)
    assert counts.train + counts.heldout == 5


def test_a_conversation_without_a_user_is_refused(session, make):
    with pytest.raises(Invalid, match="message from the user"):
        prompts.add_prompts(session, make.project(), [[{"role": "system", "content": "x"}]], "test")


def test_every_prompt_is_drawn_once_before_any_comes_twice(session, make):
    project = make.project(heldout_share=0.01)
    prompts.add_prompts(session, project, questions(20), "test")
    train = prompts.counts(session, project.id).train
    drawn = Counter(prompt.id for _ in range(2) for prompt, _ in prompts.draw_prompts(session, project.id, train))
    assert set(drawn.values()) == {2}
    assert len(drawn) == train


def test_a_draw_says_how_probable_it_was_among_what_the_round_had_left(session, make):
    project = make.project(heldout_share=0.3)
    prompts.add_prompts(session, project, questions(60), "test")
    counts = prompts.counts(session, project.id)
    first = prompts.draw_prompts(session, project.id, 5)
    assert [one.probability for one in first] == [1 / counts.train] * 5
    # Two of these come from the next round, in which only the first five stood yet.
    rest = prompts.draw_prompts(session, project.id, counts.train - 3)
    assert Counter(one.probability for one in rest) == {1 / (counts.train - 5): counts.train - 5, 1 / 5: 2}
    for prompt, probability in prompts.draw_prompts(session, project.id, 4, split=None):
        left = {Split.HELDOUT: 0.3 / counts.heldout, Split.TRAIN: 0.7 / (counts.train - 2)}[prompt.split]
        assert probability == pytest.approx(left)
    assert prompts.draw_prompts(session, make.project().id, 3) == []


def test_a_draw_keeps_to_its_side_and_one_without_a_side_takes_both(session, make):
    project = make.project(heldout_share=0.3)
    prompts.add_prompts(session, project, questions(200), "test")
    for split in Split:
        assert {one.split for one, _ in prompts.draw_prompts(session, project.id, 10, split)} == {split}
    both = prompts.draw_prompts(session, project.id, 100, split=None)
    assert len(both) == 100
    assert 10 <= sum(one.split == Split.HELDOUT for one, _ in both) <= 50


def test_workers_that_draw_at_once_get_different_prompts(database_url, make_with):
    engine = make_engine(database_url)
    sessions = session_factory(engine)
    with sessions.begin() as s:
        project = make_with(s).project(heldout_share=0.001)
        prompts.add_prompts(s, project, questions(100), "test")

    def draw(_):
        with sessions.begin() as s:
            return [prompt.id for prompt, _ in prompts.draw_prompts(s, project.id, 10)]

    with ThreadPoolExecutor(4) as pool:
        drawn = [prompt_id for some in pool.map(draw, range(8)) for prompt_id in some]
    engine.dispose()
    assert len(drawn) == len(set(drawn)) == 80


def test_a_written_demonstration_names_its_author_and_an_imported_one_its_source(session, make):
    project = make.project()
    person = make.person(project)
    [question] = questions(1)
    assert prompts.add_demonstrations(session, project, [(question, "By hand.")], person.id) == 1
    assert prompts.add_demonstrations(session, project, [(question, "From a file.")], "a file") == 1
    found = {one.text: (one.origin, one.author_id, one.source) for one in session.scalars(select(Completion))}
    assert found == {"By hand.": ("written", person.id, None), "From a file.": ("imported", None, "a file")}

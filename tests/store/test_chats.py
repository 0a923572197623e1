"""Chats: turns as comparisons, what goes on, what ends, what training reads."""

import uuid

import pytest
from sqlalchemy import func, select

from app.core.errors import Conflict, Invalid, NotFound
from app.core.pairing import split_of
from app.core.vocabulary import (
    AssignmentState,
    ChatState,
    ComparisonState,
    DrawReason,
    FinishReason,
    Mode,
    Role,
    Verdict,
)
from app.store import chats, checkpoints, claims, snapshots
from app.store.comparisons import SampledCompletion
from app.store.judgments import Submission
from app.store.models import Assignment, Chat, ChatTurn, Comparison, Completion, Prompt, Slot, SlotState


@pytest.fixture
def room(session, make):
    """A project whose mode is chat, its policy, and somebody to lead a chat."""
    project = make.project()
    project.mode, project.chat_turns = Mode.CHAT, 3
    policy = make.policy(project, promote=True)
    return project, policy, make.person(project)


def answered(s, project, person, message, texts=("red", "blue")):
    plan = chats.plan(s, project, person.id, message)
    answers = [
        SampledCompletion(text, policy, 7, 1.0, 1.0, 96, "ab" * 32, FinishReason.STOP, 12.5, [1, 2], [-0.5, -0.25])
        for text, policy in zip(texts, plan.policies, strict=True)
    ]
    return chats.keep(s, project, person.id, plan, answers)


def picked(s, project, person, verdict=Verdict.LEFT, key=None):
    waiting = chats.talk(s, project, person.id).waiting
    submission = Submission(
        comparison_id=waiting.comparison_id, key=key or uuid.uuid4(), verdict=verdict, order=waiting.order
    )
    return chats.pick(s, project, person.id, submission)


def test_a_turn_is_a_comparison_with_its_whole_history(session, room):
    project, policy, person = room
    first = answered(session, project, person, "Hello?")
    slot = session.scalars(select(Slot).where(Slot.comparison_id == first.id)).one()
    assert (slot.state, slot.holder_id) == (SlotState.LEASED, person.id)
    assert (first.reason, first.votes_wanted, first.probability) == (DrawReason.CHAT, 1, 1.0)
    shown = chats.talk(session, project, person.id)
    assert sorted(shown.waiting.answers) == ["blue", "red"]
    assert (shown.done, shown.turns, shown.history) == (0, 3, [{"role": "user", "content": "Hello?"}])

    now = picked(session, project, person, Verdict.RIGHT)
    went_on = shown.waiting.answers[1]
    assert now.history == [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": went_on}]
    second = answered(session, project, person, "And then?", ("one", "two"))
    prompt = session.get_one(Prompt, second.prompt_id)
    assert prompt.messages == [*now.history, {"role": "user", "content": "And then?"}]
    assert prompt.source == "chat"
    assert prompt.split == split_of(project.salt, "Hello?", project.heldout_share)
    completions = session.scalars(select(Completion).where(Completion.prompt_id == prompt.id)).all()
    assert {(c.checkpoint_id, c.seed, c.latency_ms, tuple(c.token_ids)) for c in completions} == {
        (policy.id, 7, 12.5, (1, 2))
    }
    turns = session.scalars(select(ChatTurn).order_by(ChatTurn.turn)).all()
    assert [(t.turn, t.comparison_id) for t in turns] == [(0, first.id), (1, second.id)]


def test_the_same_message_is_one_prompt_however_often_it_is_asked(session, room, make):
    project, _, person = room
    first = answered(session, project, person, "Hello?")
    second = answered(session, project, make.person(project), "Hello?")
    assert first.prompt_id == second.prompt_id


@pytest.mark.parametrize("verdict", [Verdict.TIE, Verdict.BOTH_BAD])
def test_a_tie_goes_on_with_the_left_and_both_bad_with_neither(session, room, verdict):
    project, _, person = room
    answered(session, project, person, "Hello?")
    left = chats.talk(session, project, person.id).waiting.answers[0]
    now = picked(session, project, person, verdict)
    asked = {"role": "user", "content": "Hello?"}
    if verdict is Verdict.TIE:
        assert (now.history, now.again) == ([asked, {"role": "assistant", "content": left}], "")
    else:
        assert (now.history, now.again) == ([], "Hello?")
    assert (now.done, now.said, now.state) == (1, verdict, ChatState.OPEN)


def test_the_policies_are_those_that_the_chat_began_with(session, room, make):
    project, policy, person = room
    rival = make.policy(project)
    project.chat_policy_id = rival.id
    comparison = answered(session, project, person, "Hello?")
    assert comparison.checkpoint_id is None
    picked(session, project, person)
    checkpoints.promote(session, project.id, make.policy(project).id, None)
    assert chats.plan(session, project, person.id, "More?").policies == (policy.id, rival.id)


def test_the_last_turn_finishes_the_chat_and_a_new_one_begins(session, room):
    project, _, person = room
    for i in range(3):
        answered(session, project, person, f"Question {i}")
        now = picked(session, project, person)
    assert (now.state, now.done) == (ChatState.FINISHED, 3)
    fresh = chats.talk(session, project, person.id)
    assert (fresh.chat_id, fresh.history, fresh.done) == (None, [], 0)
    assert chats.talk(session, project, person.id, now.chat_id).history == now.history


def test_nothing_new_is_asked_while_two_answers_wait(session, room):
    project, _, person = room
    answered(session, project, person, "Hello?")
    with pytest.raises(Conflict, match="wait for your choice"):
        chats.plan(session, project, person.id, "Well?")


def test_a_turn_from_another_tab_stores_nothing(session, room):
    project, _, person = room
    late = chats.plan(session, project, person.id, "From the other tab")
    answered(session, project, person, "Hello?")
    before = session.scalar(select(func.count()).select_from(Prompt))
    with pytest.raises(Conflict, match="another tab"):
        chats.keep(session, project, person.id, late, [])
    assert session.scalar(select(func.count()).select_from(Prompt)) == before


def test_a_pick_sent_twice_is_one_and_an_older_turn_is_not_changed(session, room):
    project, _, person = room
    answered(session, project, person, "Hello?")
    waiting, key = chats.talk(session, project, person.id).waiting, uuid.uuid4()
    submission = Submission(comparison_id=waiting.comparison_id, key=key, verdict=Verdict.LEFT, order=waiting.order)
    first = chats.pick(session, project, person.id, submission)
    assert chats.pick(session, project, person.id, submission) == first
    answered(session, project, person, "More?")
    changed = Submission(
        comparison_id=waiting.comparison_id, key=uuid.uuid4(), verdict=Verdict.RIGHT, order=waiting.order
    )
    with pytest.raises(Conflict, match="gone on"):
        chats.pick(session, project, person.id, changed)


def test_undo_asks_for_the_newest_pick_again_until_something_new_is_said(session, room):
    project, _, person = room
    answered(session, project, person, "Hello?")
    picked(session, project, person, Verdict.BOTH_BAD)
    assert chats.undo(session, project, person.id).waiting is not None
    picked(session, project, person)
    answered(session, project, person, "More?")
    with pytest.raises(Conflict, match="nothing to undo"):
        chats.undo(session, project, person.id)


def test_undo_opens_a_chat_that_the_pick_finished(session, room):
    project, _, person = room
    project.chat_turns = 1
    answered(session, project, person, "Hello?")
    assert picked(session, project, person).state is ChatState.FINISHED
    now = chats.undo(session, project, person.id)
    assert (now.state, now.waiting is None) == (ChatState.OPEN, False)
    assert chats.talk(session, project, person.id).chat_id == now.chat_id


def test_skipping_a_turn_hands_the_pair_to_nobody(session, room, make):
    project, _, person = room
    comparison = answered(session, project, person, "Hello?")
    now = chats.skip(session, project, person.id, comparison.id)
    assert (now.history, now.again, now.done) == ([], "Hello?", 1)
    session.refresh(comparison)
    assert comparison.state is ComparisonState.RETIRED
    assert claims.claim(session, project.id, make.person(project).id, 2) == []


@pytest.mark.parametrize(("judge", "state"), [(True, ChatState.FINISHED), (False, ChatState.ABANDONED)])
def test_ending_leaves_out_what_was_not_judged(session, room, judge, state):
    project, _, person = room
    answered(session, project, person, "Hello?")
    if judge:
        picked(session, project, person)
        answered(session, project, person, "More?")
    chat = session.scalars(select(Chat)).one()
    chats.end(session, project, person.id, chat.id)
    chats.end(session, project, person.id, chat.id)
    assert (chat.state, chat.ended_at is None) == (state, False)
    states = session.scalars(select(Assignment.state).order_by(Assignment.leased_at)).all()
    assert states == [AssignmentState.JUDGED, AssignmentState.SKIPPED][0 if judge else 1 :]
    assert session.scalars(select(Slot.state)).all().count(SlotState.FREE) == 0


def test_a_lease_that_ran_out_still_takes_the_pick(session, room):
    project, _, person = room
    answered(session, project, person, "Hello?")
    claims.reopen_leases(session, Assignment.account_id == person.id)
    assert chats.talk(session, project, person.id).waiting is not None
    picked(session, project, person)
    assert session.scalars(select(Slot.state)).all() == [SlotState.FILLED]


def test_training_reads_chats_as_preferences(session, room, tmp_path):
    project, _, person = room
    answered(session, project, person, "Hello?")
    picked(session, project, person)
    snapshot = snapshots.freeze(session, project.id)
    assert snapshot.train + snapshot.heldout == 1


def test_somebody_elses_chat_does_not_exist(session, room, make):
    project, _, person = room
    comparison = answered(session, project, person, "Hello?")
    other = make.person(project, Role.ADMIN)
    chat_id = session.scalars(select(Chat.id)).one()
    foreign = Submission(comparison_id=comparison.id, key=uuid.uuid4(), verdict=Verdict.LEFT, order=[0, 1])
    for call in (
        lambda: chats.talk(session, project, other.id, chat_id),
        lambda: chats.end(session, project, other.id, chat_id),
        lambda: chats.skip(session, project, other.id, comparison.id),
        lambda: chats.pick(session, project, other.id, foreign),
    ):
        with pytest.raises(NotFound):
            call()
    assert session.get_one(Comparison, comparison.id).state is ComparisonState.OPEN


def test_what_cannot_be_asked_is_refused(session, room, make):
    project, _, person = room
    for message in ("  \n", "x" * (chats.LONGEST_MESSAGE + 1)):
        with pytest.raises(Invalid):
            chats.plan(session, project, person.id, message)
    pairs = make.project()
    with pytest.raises(NotFound):
        chats.plan(session, pairs, make.person(pairs).id, "Hello?")
    without = make.project()
    without.mode = Mode.CHAT
    with pytest.raises(Conflict, match="No policy"):
        chats.plan(session, without, make.person(without).id, "Hello?")

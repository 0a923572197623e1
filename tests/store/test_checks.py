"""Gold, repeats and the qualification round: who meets what, and what comes of it."""

import uuid
from collections import Counter

import pytest

from app.core.errors import Conflict, Invalid, NotFound
from app.core.pairing import agrees
from app.core.vocabulary import AssignmentState, DrawReason, Role, Verdict
from app.store import checks, claims, gold, judgments, quality
from app.store.models import Assignment, AuditEvent, Candidate, Comparison, Gold, Membership, Slot


@pytest.fixture
def project(make):
    return make.project(votes_wanted=3)


def set_up(session, project, **values):
    for name, value in values.items():
        setattr(project, name, value)
    session.flush()


def gold_of(session, make, project, policy, n=1, qualification=False):
    """Gold whose first answer is right, from pairs that nobody has met and nobody else will."""
    made = []
    for _ in range(n):
        pair = make.pair(project, policy)
        made.append(gold.make_gold(session, project.id, pair.id, [[0], [1]], "it names the order", qualification, None))
        session.query(Slot).filter_by(comparison_id=pair.id).delete()
        pair.state = "retired"
    session.flush()
    return [one.comparison_id for one in made]


def answer(session, project, account, task, right=True, make=None):
    """Say that canonical 0 is better, or the contrary."""
    side = task.order.index(0) if right else task.order.index(1)
    submission = make.submission(task, [Verdict.LEFT, Verdict.RIGHT][side])
    return judgments.submit(session, project.id, account.id, submission)


def test_an_answer_agrees_with_gold_when_it_decides_what_gold_decides():
    assert agrees([[0], [1]], [[0], [1]])
    assert not agrees([[0], [1]], [[1], [0]])
    assert not agrees([[0], [1]], [[0, 1]])
    assert agrees([[2], [0, 1, 3]], [[2], [3], [1], [0]])
    assert not agrees([[2], [0, 1, 3]], [[2, 3], [1], [0]])
    assert agrees([[0, 1]], [[1, 0]])
    assert not agrees([[0, 1]], [[0], [1]])


def test_gold_is_mixed_in_at_its_rate_without_a_slot_and_without_a_mark(
    session, make, project, policy, person, monkeypatch
):
    ids = gold_of(session, make, project, policy, 3)
    make.pair(project, policy)
    set_up(session, project, gold_rate=0.25)
    monkeypatch.setattr(checks.random, "random", lambda: 0.25)
    [task] = claims.claim(session, project.id, person.id, 1)
    assert task.comparison_id not in ids
    judgments.skip(session, project.id, person.id, task.comparison_id)
    monkeypatch.setattr(checks.random, "random", lambda: 0.24)
    held = claims.claim(session, project.id, person.id, 2)
    assert len({task.comparison_id for task in held} & set(ids)) == 2
    receipt = answer(session, project, person, held[0], make=make)
    assert not receipt.counted
    assert session.query(Slot).filter_by(comparison_id=held[0].comparison_id).count() == 0
    # Nothing that a page gets differs in kind from any other task.
    assert {type(value) for value in vars(held[0]).values()} == {type(value) for value in vars(task).values()}


def test_whoever_met_the_original_never_meets_its_gold_and_retired_gold_is_met_by_nobody(
    session, make, project, policy, person
):
    pair = make.pair(project, policy)
    make.judged(project, person)
    made = gold.make_gold(session, project.id, pair.id, [[1], [0]], "why", False, None)
    other = make.person(project)
    set_up(session, project, gold_rate=0.5)
    who = (session, project.id)
    assert all(checks.draw_check(*who, person.id, []) is None for _ in range(20))
    assert checks.unmet(session, project, person.id, qualification=False) == 0
    assert checks.unmet(session, project, other.id, qualification=False) == 1
    gold.retire(session, project.id, made.comparison_id, person.id)
    assert all(checks.draw_check(*who, other.id, []) is None for _ in range(20))
    admin = make.person(project, Role.ADMIN)
    gold_of(session, make, project, policy)
    assert all(checks.draw_check(*who, admin.id, []) is None for _ in range(20))
    assert any(checks.draw_check(*who, other.id, []) for _ in range(40))


def test_a_repeat_is_an_old_clear_judgment_of_ones_own_once_with_the_sides_shuffled_anew(
    session, make, project, policy, person, monkeypatch
):
    friend = make.person(project)
    for _ in range(14):
        make.pair(project, policy)
    first = claims.claim(session, project.id, person.id, 14)
    for number, task in enumerate(first):
        # The first two are ties, the third and fourth are old enough and decided, on the fourth the friend differs.
        verdict = Verdict.TIE if number < 2 else Verdict.LEFT
        judgments.submit(session, project.id, person.id, make.submission(task, verdict))
    theirs = {task.comparison_id: task for task in claims.claim(session, project.id, friend.id, 14)}
    for number in (2, 3):
        best = first[number].order[0] if number == 2 else first[number].order[1]
        task = theirs[first[number].comparison_id]
        judgments.submit(
            session, project.id, friend.id, make.submission(task, [Verdict.LEFT, Verdict.RIGHT][task.order.index(best)])
        )
    set_up(session, project, repeat_rate=0.5)
    monkeypatch.setattr(checks.random, "random", lambda: 0.1)
    drawn = [checks.draw_check(session, project.id, person.id, []) for _ in range(3)]
    assert drawn[2] is None
    again = [session.get_one(Comparison, one) for one in drawn[:2]]
    assert [one.repeat_of for one in again] == [first[2].comparison_id, first[3].comparison_id]
    for one in again:
        assert (one.reason, one.votes_wanted, one.checkpoint_id) == (DrawReason.REPEAT, 0, None)
        # The id does not tell by its age that it was made just now.
        assert one.id != one.repeat_of
        assert one.id.bytes[:6] == one.repeat_of.bytes[:6]
    texts = [
        [k.completion_id for k in session.query(Candidate).filter_by(comparison_id=id_).order_by(Candidate.position)]
        for id_ in (again[0].id, again[0].repeat_of)
    ]
    assert texts[0] == texts[1]
    # Consistency counts the canonical answers, whatever side they stood on.
    [task, other] = claims.claim(session, project.id, person.id, 2)
    answered = Counter()
    for one, keep in ((task, True), (other, False)):
        before = next(t for t in first if t.comparison_id == session.get_one(Comparison, one.comparison_id).repeat_of)
        best = before.order[0] if keep else before.order[1]
        judgments.submit(
            session, project.id, person.id, make.submission(one, [Verdict.LEFT, Verdict.RIGHT][one.order.index(best)])
        )
        answered[keep] += 1
    [mine] = quality.figures(session, project, person.id)
    assert (mine.repeats.hits, mine.repeats.of) == (1, 2)
    assert (mine.agreement.hits, mine.agreement.of) == (1, 2)


def qualifying(session, make, project, policy, on=3, at=0.6, spare=2):
    ids = gold_of(session, make, project, policy, on + spare, qualification=True)
    make.pair(project, policy)
    set_up(session, project, qualify_on=on, qualify_at=at)
    return ids


def meet(session, project, account, make, right):
    """Take the next of the round and answer it; what the annotator is told."""
    [task] = claims.claim(session, project.id, account.id, 1)
    answer(session, project, account, task, right, make)
    return checks.after(session, project.id, account.id, task.comparison_id)


def test_the_round_comes_first_explains_itself_and_opens_the_work(session, make, project, policy, person):
    ids = qualifying(session, make, project, policy)
    # More is never held than the round has.
    held = claims.claim(session, project.id, person.id, 4)
    assert len(held) == 3
    assert {task.comparison_id for task in held} <= set(ids)
    lessons = [meet(session, project, person, make, right) for right in (True, False, True)]
    assert [one.right for one in lessons] == [True, False, True]
    assert [(one.met, one.wanted, one.outcome) for one in lessons] == [(1, 3, None), (2, 3, None), (3, 3, "passed")]
    assert all(one.explanation == "it names the order" for one in lessons)
    member = session.get_one(Membership, (project.id, person.id))
    assert member.qualified_at is not None
    [task] = claims.claim(session, project.id, person.id, 1)
    assert task.comparison_id not in ids
    assert checks.after(session, project.id, person.id, task.comparison_id) is None


def test_who_does_not_pass_gets_no_work_until_an_admin_opens_the_round_again(session, make, project, policy, person):
    admin = make.person(project, Role.ADMIN)
    qualifying(session, make, project, policy, on=2, at=0.6, spare=2)
    assert meet(session, project, person, make, False).outcome is None
    assert meet(session, project, person, make, True).outcome == "failed"
    assert claims.claim(session, project.id, person.id, 2) == []
    quality.try_again(session, project.id, person.id, admin.id)
    assert [meet(session, project, person, make, True).outcome for _ in range(2)] == [None, "passed"]
    # A third round is not possible: there is no gold that they have not met.
    with pytest.raises(Conflict, match="has not failed"):
        quality.try_again(session, project.id, person.id, admin.id)
    other = make.person(project)
    for _ in range(2):
        meet(session, project, other, make, False)
    for one in session.query(Gold).filter_by(project_id=project.id).limit(3):
        gold.retire(session, project.id, one.comparison_id, admin.id)
    with pytest.raises(Conflict, match="not met only"):
        quality.try_again(session, project.id, other.id, admin.id)
    quality.qualify(session, project.id, other.id, admin.id)
    assert len(claims.claim(session, project.id, other.id, 2)) == 1
    actions = [one.action for one in session.query(AuditEvent).filter_by(account_id=admin.id)]
    assert Counter(actions)["quality.try_again"] == Counter(actions)["quality.qualify"] == 1


def test_the_first_answer_qualifies_and_a_skip_is_not_right(session, make, project, policy, person):
    qualifying(session, make, project, policy, on=2, at=1.0)
    [task] = claims.claim(session, project.id, person.id, 1)
    answer(session, project, person, task, False, make)
    assert checks.after(session, project.id, person.id, task.comparison_id).right is False
    undone = judgments.undo(session, project.id, person.id)
    answer(session, project, person, undone, True, make)
    assert checks.after(session, project.id, person.id, task.comparison_id) is None
    [task] = claims.claim(session, project.id, person.id, 1)
    judgments.skip(session, project.id, person.id, task.comparison_id)
    lesson = checks.after(session, project.id, person.id, task.comparison_id)
    assert (lesson.skipped, lesson.right, lesson.met, lesson.had_right, lesson.outcome) == (True, False, 2, 0, "failed")


def test_a_round_lease_that_ran_out_is_handed_out_again(session, make, project, policy, person):
    ids = qualifying(session, make, project, policy, on=1, spare=0)
    assert [task.comparison_id for task in claims.claim(session, project.id, person.id, 1)] == ids
    session.query(Assignment).filter_by(comparison_id=ids[0]).update(
        {"state": AssignmentState.EXPIRED, "lease_expires_at": None}
    )
    assert [task.comparison_id for task in claims.claim(session, project.id, person.id, 1)] == ids


def test_gold_is_proposed_where_three_are_of_one_mind_and_doubted_where_good_people_differ(
    session, make, project, policy
):
    pair, torn = make.pair(project, policy), make.pair(project, policy)
    voters = [make.person(project) for _ in range(3)]
    for number, voter in enumerate(voters):
        for task in claims.claim(session, project.id, voter.id, 2):
            agree = task.comparison_id == pair.id or number != 0
            answer(session, project, voter, task, agree, make)
    [found] = gold.candidates(session, project.id, 2)
    assert (found.comparison_id, found.tiers, found.votes) == (pair.id, [[0], [1]], 3)
    made = gold.make_gold(session, project.id, torn.id, [[1], [0]], "a slip", False, voters[0].id)
    with pytest.raises(Conflict):
        gold.make_gold(session, project.id, torn.id, [[1], [0]], "again", False, None)
    set_up(session, project, gold_rate=0.5)
    for _ in range(3):
        newcomer = make.person(project)
        while checks.draw_check(session, project.id, newcomer.id, []) is None:
            pass
        task = claims.tasks(session, project.id, newcomer.id, [made.comparison_id])[0]
        answer(session, project, newcomer, task, True, make)
    [one] = gold.listed(session, project.id)
    assert (one.answered, one.right, one.doubtful) == (3, 0, True)


def test_gold_can_be_typed_and_what_makes_no_sense_is_refused(session, make, project, policy):
    made = gold.write_gold(
        session, project.id, "Where is order 12?", ["On its way.", "Who knows."], 0, "why", True, None
    )
    assert made.tiers == [[0], [1]]
    assert gold.usable(session, project.id, 2, qualification=True) == 1
    assert gold.usable(session, project.id, 4, qualification=True) == 0
    for fields in (
        ("", ["a", "b"], 0, "why"),
        ("q", ["a", " "], 0, "why"),
        ("q", ["a", "a "], 0, "why"),
        ("q", ["a", "b"], 2, "why"),
        ("q", ["a", "b"], 0, " "),
    ):
        with pytest.raises(Invalid):
            gold.write_gold(session, project.id, *fields, True, None)
    foreign = make.pair(other := make.project(), make.policy(other))
    with pytest.raises(NotFound):
        gold.make_gold(session, project.id, foreign.id, [[0], [1]], "why", True, None)
    with pytest.raises(NotFound):
        gold.retire(session, project.id, uuid.uuid4(), None)
    with pytest.raises(NotFound):
        gold.retire(session, other.id, made.comparison_id, None)

"""Who is handed what: wanted votes that change while people work, priorities, caps, pauses and checks."""

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text

from app.core.errors import Invalid, NotFound
from app.core.vocabulary import DrawReason, Role
from app.store import claims, comparisons, judgments
from app.store.db import make_engine, session_factory
from app.store.models import Assignment, Comparison, Slot
from app.store.standing import standing
from tests.store.test_claims import run_out


def slots(session, pair):
    """Its slots by state, and how many votes it wants."""
    session.expire_all()
    states = session.query(Slot.state).filter_by(comparison_id=pair.id)
    return dict(Counter(state for (state,) in states)), session.get_one(Comparison, pair.id).votes_wanted


def test_more_wanted_votes_open_comparisons_again_and_retired_slots_are_used_first(session, make, project, policy):
    pair = make.pair(project, policy)
    make.judged(project, make.person(project))
    assert claims.claim(session, project.id, make.person(project).id) == []
    comparisons.want_votes(session, project.id, 3, None)
    assert slots(session, pair) == ({"filled": 1, "free": 2}, 3)
    comparisons.want_votes(session, project.id, 2, None)
    assert slots(session, pair) == ({"filled": 1, "free": 1, "retired": 1}, 2)
    comparisons.want_votes(session, project.id, 4, None)
    assert slots(session, pair) == ({"filled": 1, "free": 3}, 4)
    make.judged(project, make.person(project))
    assert make.pair(project, policy).votes_wanted == 4


def test_fewer_wanted_votes_take_back_free_slots_only_and_what_is_given_back_stays_closed(
    session, make, project, policy
):
    comparisons.want_votes(session, project.id, 4, None)
    pair = make.pair(project, policy)
    make.judged(project, make.person(project))
    one, other = make.person(project), make.person(project)
    [task], [_] = claims.claim(session, project.id, one.id), claims.claim(session, project.id, other.id)
    comparisons.want_votes(session, project.id, 1, None)
    assert slots(session, pair) == ({"filled": 1, "leased": 2, "retired": 1}, 3)
    assert judgments.submit(session, project.id, one.id, make.submission(task)).counted
    run_out(session, other)
    assert claims.expire_leases(session, project.id) == 1
    assert slots(session, pair) == ({"filled": 2, "retired": 2}, 2)
    assert claims.claim(session, project.id, make.person(project).id) == []


def test_wanted_votes_are_one_to_a_hundred_of_a_project_that_is_there(session, make, project):
    for votes in (0, 101):
        with pytest.raises(Invalid):
            comparisons.want_votes(session, project.id, votes, None)
    with pytest.raises(NotFound):
        comparisons.want_votes(session, make.person().id, 1, None)


def test_higher_priorities_are_handed_out_first_and_lower_ones_when_those_are_met(session, make, project, policy):
    plain, urgent, late = (make.pair(project, policy) for _ in range(3))
    assert comparisons.prioritise(session, project.id, Comparison.id == urgent.id, 5) == 1
    assert comparisons.prioritise(session, project.id, Comparison.id == late.id, -5) == 1
    comparisons.want_votes(session, project.id, 2, None)  # new slots take the comparison's priority
    for _ in range(2):
        person = make.person(project)
        order = [judged_next(session, make, project, person) for _ in range(3)]
        assert order == [urgent.id, plain.id, late.id]


def judged_next(session, make, project, person):
    [task] = claims.claim(session, project.id, person.id, count=1)
    judgments.submit(session, project.id, person.id, make.submission(task))
    return task.comparison_id


def test_a_cap_is_never_passed_by_what_is_handed_out_ahead(session, make, project, policy):
    for _ in range(6):
        make.pair(project, policy)
    project.cap = 3
    session.flush()
    person, met = make.person(project), set()
    for count in (2, 4):
        tasks = claims.claim(session, project.id, person.id, count)
        met |= {task.comparison_id for task in tasks}
    assert len(met) == 3
    for task in tasks:
        judgments.submit(session, project.id, person.id, make.submission(task))
    assert claims.claim(session, project.id, person.id) == []
    judgments.undo(session, project.id, person.id)
    # The one that is open again is all that the cap leaves room for.
    assert len(claims.claim(session, project.id, person.id)) == 1


@pytest.mark.parametrize("how", ["paused", "failed", "admins", "cap"])
def test_who_may_not_judge_keeps_what_is_held_and_is_handed_nothing_new(session, make, project, policy, how):
    for _ in range(4):
        make.pair(project, policy)
    person = make.person(project, Role.ADMIN if how == "admins" else Role.ANNOTATOR)
    make.judged(project, person)
    [held] = claims.claim(session, project.id, person.id, count=1)
    if how in ("paused", "failed"):
        session.execute(text(f"UPDATE membership SET {how}_at = now() WHERE account_id = :a"), {"a": person.id})
    project.qualify_on, project.admins_judge = 4 if how == "failed" else 0, how != "admins"
    project.cap = 1 if how == "cap" else None
    session.flush()
    assert standing(session, project.id, person.id).why == how
    assert [task.comparison_id for task in claims.claim(session, project.id, person.id, count=3)] == [
        held.comparison_id
    ]
    assert judgments.submit(session, project.id, person.id, make.submission(held)).counted
    assert claims.claim(session, project.id, person.id) == []


def test_a_check_is_leased_without_a_slot_and_mixed_in_where_the_project_asks_for_it(
    session, make, project, policy, monkeypatch
):
    pair, gold = make.pair(project, policy), make.pair(project, policy, reason=DrawReason.GOLD)
    person, asked = make.person(project), []

    def draw(s, project_id, account_id, held):
        asked.append(list(held))
        if gold.id in held:
            return None
        given = {"comparison_id": gold.id, "account_id": account_id, "project_id": project_id}
        s.add(Assignment(**given, lease_expires_at=text("now() + interval '1 minute'")))
        s.flush()
        return gold.id

    monkeypatch.setattr(claims.checks, "draw_check", draw)
    assert [task.comparison_id for task in claims.claim(session, project.id, person.id, count=1)] == [pair.id]
    assert asked == []
    project.gold_rate = 0.5
    session.flush()
    shown, check = claims.claim(session, project.id, person.id)
    assert (shown.comparison_id, check.comparison_id) == (pair.id, gold.id)
    assert not judgments.submit(session, project.id, person.id, make.submission(check)).counted
    judgments.undo(session, project.id, person.id)
    run_out(session, person)
    assert claims.expire_leases(session, project.id) == 2
    # While somebody qualifies there is nothing but checks, and none is left here.
    project.gold_rate, project.qualify_on = 0.0, 4
    session.flush()
    other = make.person(project)
    assert [task.comparison_id for task in claims.claim(session, project.id, other.id)] == [gold.id]


def test_gold_outlives_the_policy_that_wrote_it(session, make, project, policy):
    gold = make.pair(project, policy, reason=DrawReason.GOLD)
    make.pair(project, policy)
    assert comparisons.retire_unjudged(session, project.id, policy.id) == 1
    assert slots(session, gold) == ({}, 0)
    assert session.get_one(Comparison, gold.id).state == "open"


@pytest.fixture
def races(database_url, make_with):
    """Sessions that commit, a comparison that wants three votes, and three people."""
    engine = make_engine(database_url, pool_size=4)
    sessions = session_factory(engine)
    with sessions.begin() as s:
        make = make_with(s)
        project = make.project(votes_wanted=3)
        pair = make.pair(project, make.policy(project))
        people = [make.person(project).id for _ in range(3)]
    yield sessions, project, pair, people
    engine.dispose()


def meanwhile(sessions, first, then):
    """`then` is begun while `first` is not committed, and waits for it."""
    with ThreadPoolExecutor(1) as pool:
        with sessions.begin() as s:
            first(s)
            running = pool.submit(lambda: in_one(sessions, then))
            waits = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
            deadline = time.monotonic() + 20
            while not (waiting := s.execute(waits).scalar_one()) and time.monotonic() < deadline:
                time.sleep(0.02)
            assert waiting
        running.result(20)


def in_one(sessions, what):
    with sessions.begin() as s:
        what(s)


def test_two_leases_given_back_at_once_leave_the_wanted_vote_open(races):
    sessions, project, pair, people = races
    for person in people[:2]:
        in_one(sessions, lambda s, person=person: claims.claim(s, project.id, person))
    in_one(sessions, lambda s: comparisons.want_votes(s, project.id, 1, None))
    meanwhile(
        sessions,
        lambda s: judgments.skip(s, project.id, people[0], pair.id),
        lambda s: judgments.skip(s, project.id, people[1], pair.id),
    )
    with sessions() as s:
        assert slots(s, pair) == ({"free": 1, "retired": 2}, 1)


def test_a_slot_that_is_claimed_while_the_votes_are_lowered_is_one_of_those_that_stay(races, monkeypatch):
    sessions, project, pair, people = races
    monkeypatch.setattr(claims.random, "random", lambda: 0.0)
    # The last slot is the first to be taken, and would be the first to retire.
    in_one(sessions, lambda s: s.execute(text("UPDATE slot SET draw_key = 1 - position / 10.0")))
    meanwhile(
        sessions,
        lambda s: claims.claim(s, project.id, people[0]),
        lambda s: comparisons.want_votes(s, project.id, 1, None),
    )
    with sessions() as s:
        assert slots(s, pair) == ({"leased": 1, "retired": 2}, 1)


def test_a_comparison_that_is_made_while_the_votes_change_wants_the_new_number(races, make_with):
    sessions, project, _, _ = races
    made = []
    with sessions.begin() as s:
        policy, prompt = make_with(s).policy(project), make_with(s).prompt(project)

    def add(s):
        made.append(make_with(s).pair(project, policy, prompt))

    meanwhile(sessions, add, lambda s: comparisons.want_votes(s, project.id, 2, None))
    with sessions() as s:
        assert slots(s, made[0]) == ({"free": 2, "retired": 1}, 2)

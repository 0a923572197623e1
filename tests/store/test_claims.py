"""Handing out comparisons."""

import pytest
from sqlalchemy import text, update

from app.core.errors import NotFound
from app.core.pairing import side_order
from app.store import claims, comparisons, judgments
from app.store.models import Assignment, Slot


def run_out(session, *accounts):
    """Let the leases of these people run out, by the database's clock."""
    session.execute(
        update(Assignment)
        .where(Assignment.account_id.in_([account.id for account in accounts]), Assignment.state == "leased")
        .values(lease_expires_at=text("now() - interval '1 second'")),
        execution_options={"synchronize_session": False},
    )


def test_a_task_shows_both_answers_in_a_fixed_order_and_names_their_policy(session, make, project, policy):
    prompt = make.prompt(project, "Where is my kettle?")
    pair = make.pair(project, policy, prompt)
    person = make.person(project)
    [task] = claims.claim(session, project.id, person.id)
    texts = ["answer", "answer"]
    assert task.comparison_id == pair.id
    assert task.prompt == [{"role": "user", "content": "Where is my kettle?"}]
    assert task.order == side_order(str(pair.id), str(person.id))
    assert [answer.split("-")[0] for answer in task.answers] == texts
    canonical = session.execute(
        text(
            "SELECT text FROM candidate JOIN completion ON id = completion_id"
            " WHERE comparison_id = :c ORDER BY position"
        ),
        {"c": pair.id},
    ).scalars()
    assert [task.answers[task.order.index(i)] for i in range(2)] == list(canonical)
    assert task.policies == ["v1", "v1"]


def test_two_tabs_share_the_same_leases(session, make, project, policy):
    for _ in range(5):
        make.pair(project, policy)
    person = make.person(project)
    first = claims.claim(session, project.id, person.id, count=2)
    second = claims.claim(session, project.id, person.id, count=2)
    assert [task.comparison_id for task in first] == [task.comparison_id for task in second]
    assert len({task.comparison_id for task in first}) == 2


def test_one_wanted_vote_is_leased_to_one_person_only(session, make, project, policy):
    make.pair(project, policy)
    one, other = make.person(project), make.person(project)
    assert len(claims.claim(session, project.id, one.id)) == 1
    assert claims.claim(session, project.id, other.id) == []


def test_three_wanted_votes_go_to_three_people_and_a_fourth_gets_nothing(session, make):
    project = make.project(votes_wanted=3)
    pair = make.pair(project, make.policy(project))
    handed = [claims.claim(session, project.id, make.person(project).id) for _ in range(4)]
    assert [[task.comparison_id for task in tasks] for tasks in handed] == [[pair.id], [pair.id], [pair.id], []]


def test_nobody_meets_a_comparison_again_after_judging_it(session, make):
    project = make.project(votes_wanted=3)
    make.pair(project, make.policy(project))
    person = make.person(project)
    make.judged(project, person)
    assert claims.claim(session, project.id, person.id) == []


@pytest.mark.parametrize("start", [0.0, 0.5, 1.0])
def test_a_claim_of_two_prefers_different_prompts(session, make, project, policy, monkeypatch, start):
    # Wherever the look begins: from the middle all that is left may be of one prompt.
    monkeypatch.setattr(claims.random, "random", lambda: start)
    prompts = [make.prompt(project) for _ in range(2)]
    pairs = [make.pair(project, policy, prompt) for prompt in prompts for _ in range(3)]
    for place, pair in enumerate(pairs):
        key = update(Slot).where(Slot.comparison_id == pair.id).values(draw_key=(place + 0.5) / len(pairs))
        session.execute(key, execution_options={"synchronize_session": False})
    tasks = claims.claim(session, project.id, make.person(project).id, count=2)
    assert len({str(task.prompt) for task in tasks}) == 2


def test_who_holds_a_comparison_of_a_prompt_is_given_one_of_another(session, make, project, policy, monkeypatch):
    monkeypatch.setattr(claims.random, "random", lambda: 0.0)
    person, prompts = make.person(project), [make.prompt(project) for _ in range(2)]
    make.pair(project, policy, prompts[0])
    [held] = claims.claim(session, project.id, person.id, count=1)
    for key, prompt in [(0.1, prompts[0]), (0.9, prompts[1])]:
        pair = make.pair(project, policy, prompt)
        draw = update(Slot).where(Slot.comparison_id == pair.id).values(draw_key=key)
        session.execute(draw, execution_options={"synchronize_session": False})
    tasks = claims.claim(session, project.id, person.id, count=2)
    assert [task.comparison_id for task in tasks] == [held.comparison_id, pair.id]


def test_a_lease_that_ran_out_reopens_its_slot_for_somebody_else(session, make, project, policy):
    pair = make.pair(project, policy)
    one, other = make.person(project), make.person(project)
    claims.claim(session, project.id, one.id)
    run_out(session, one)
    assert claims.expire_leases(session, project.id) == 1
    assert [task.comparison_id for task in claims.claim(session, project.id, other.id)] == [pair.id]


def test_a_claim_that_finds_nothing_reopens_run_out_leases_by_itself(session, make, project, policy):
    pair = make.pair(project, policy)
    one, other = make.person(project), make.person(project)
    claims.claim(session, project.id, one.id)
    run_out(session, one)
    assert [task.comparison_id for task in claims.claim(session, project.id, other.id)] == [pair.id]


def test_who_let_a_lease_run_out_gets_it_again_only_when_nothing_else_is_left(session, make, project, policy):
    first = make.pair(project, policy)
    person = make.person(project)
    claims.claim(session, project.id, person.id, count=1)
    run_out(session, person)
    claims.expire_leases(session)
    fresh = make.pair(project, policy)
    [task] = claims.claim(session, project.id, person.id, count=1)
    assert task.comparison_id == fresh.id
    judgments.submit(session, project.id, person.id, make.submission(task))
    [task] = claims.claim(session, project.id, person.id, count=1)
    assert task.comparison_id == first.id


def test_leases_past_their_half_are_renewed_by_a_claim(session, make, project, policy):
    make.pair(project, policy)
    person = make.person(project)
    claims.claim(session, project.id, person.id)
    session.execute(
        update(Assignment).values(lease_expires_at=text("now() + interval '10 seconds'")),
        execution_options={"synchronize_session": False},
    )
    claims.claim(session, project.id, person.id)
    left = session.execute(text("SELECT extract(epoch FROM lease_expires_at - now()) FROM assignment")).scalar_one()
    assert float(left) == pytest.approx(600, abs=1)


def test_a_stranger_and_somebody_deactivated_get_nothing(session, make, project, policy):
    make.pair(project, policy)
    with pytest.raises(NotFound):
        claims.claim(session, project.id, make.person().id)
    elsewhere = make.person(make.project())
    with pytest.raises(NotFound):
        claims.claim(session, project.id, elsewhere.id)


def test_a_claim_takes_four_statements(session, make, project, policy, count_statements):
    for _ in range(20):
        make.pair(project, policy)
    person = make.person(project)
    # From the second half of the unit interval a random start may find only one of the two; there it takes one more.
    session.execute(update(Slot).values(draw_key=1.0))
    with count_statements() as statements:
        claims.claim(session, project.id, person.id)
    assert len(statements) == 4


def test_fresh_comparisons_are_counted_as_ready_until_somebody_meets_them(session, make):
    project = make.project(votes_wanted=2)
    policy = make.policy(project)
    for _ in range(3):
        make.pair(project, policy)
    assert comparisons.ready(session, project.id) == 3
    assert comparisons.ready(session, project.id, at_most=2) == 2
    claims.claim(session, project.id, make.person(project).id, count=1)
    assert comparisons.ready(session, project.id) == 2

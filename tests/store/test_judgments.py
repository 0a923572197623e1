"""Taking judgments."""

import uuid
from dataclasses import replace

import pytest
from sqlalchemy import select, text, update

from app.core.errors import Conflict, Invalid, NotFound
from app.core.vocabulary import Verdict
from app.store import claims, judgments
from app.store.models import Assignment, Judgment, JudgmentRevision, Slot


@pytest.fixture
def task(session, make, project, policy, person):
    make.pair(project, policy)
    return claims.claim(session, project.id, person.id)[0]


def slots(session, comparison_id):
    query = select(Slot.state).where(Slot.comparison_id == comparison_id).order_by(Slot.position)
    return list(session.scalars(query))


def revisions(session):
    return list(session.scalars(select(JudgmentRevision).order_by(JudgmentRevision.revision)))


def run_out(session, account):
    session.execute(
        update(Assignment)
        .where(Assignment.account_id == account.id, Assignment.state == "leased")
        .values(lease_expires_at=text("now() - interval '1 second'")),
        execution_options={"synchronize_session": False},
    )
    claims.expire_leases(session)


@pytest.mark.parametrize(
    ("verdict", "tiers", "both_bad"),
    [
        (Verdict.LEFT, lambda left, right: [[left], [right]], False),
        (Verdict.RIGHT, lambda left, right: [[right], [left]], False),
        (Verdict.TIE, lambda left, right: [[0, 1]], False),
        (Verdict.BOTH_BAD, lambda left, right: [[0, 1]], True),
    ],
)
def test_a_verdict_on_sides_is_stored_as_tiers_of_canonical_positions(
    session, make, project, person, task, verdict, tiers, both_bad
):
    receipt = judgments.submit(session, project.id, person.id, make.submission(task, verdict, active_ms=1500))
    assert (receipt.revision, receipt.counted, receipt.replayed) == (1, True, False)
    [stored] = revisions(session)
    assert stored.tiers == tiers(*task.order)
    assert stored.both_bad is both_bad
    assert stored.shown_order == task.order
    assert stored.active_ms == 1500
    assert stored.served_at is not None
    assert stored.guideline_version == 1
    assert slots(session, task.comparison_id) == ["filled"]


def test_the_same_key_and_body_give_the_same_receipt(session, make, project, person, task):
    submission = make.submission(task, first_key_ms=10, active_ms=900)
    first = judgments.submit(session, project.id, person.id, submission)
    again = judgments.submit(session, project.id, person.id, submission)
    assert again == replace(first, replayed=True)
    assert len(revisions(session)) == 1


@pytest.mark.parametrize("change", [{"verdict": Verdict.RIGHT}, {"active_ms": 901}, {"first_key_ms": None}])
def test_the_same_key_with_another_body_is_refused(session, make, project, person, task, change):
    submission = make.submission(task, first_key_ms=10, active_ms=900)
    judgments.submit(session, project.id, person.id, submission)
    with pytest.raises(Conflict, match="already used"):
        judgments.submit(session, project.id, person.id, replace(submission, **change))


def test_the_same_key_on_another_comparison_is_refused(session, make, project, policy, person, task):
    key = uuid.uuid4()
    judgments.submit(session, project.id, person.id, make.submission(task, key=key))
    make.pair(project, policy)
    [other] = claims.claim(session, project.id, person.id)
    with pytest.raises(Conflict):
        judgments.submit(session, project.id, person.id, make.submission(other, key=key))


def test_two_people_may_use_the_same_key(session, make, project, policy, person, task):
    key = uuid.uuid4()
    judgments.submit(session, project.id, person.id, make.submission(task, key=key))
    make.pair(project, policy)
    receipt = make.judged(project, make.person(project), key=key)
    assert not receipt.replayed


def test_a_changed_vote_is_the_next_revision_of_the_same_judgment(session, make, project, person, task):
    first = judgments.submit(session, project.id, person.id, make.submission(task, Verdict.LEFT))
    second = judgments.submit(session, project.id, person.id, make.submission(task, Verdict.RIGHT))
    assert (second.judgment_id, second.revision, second.counted) == (first.judgment_id, 2, True)
    assert [one.verdict for one in revisions(session)] == [Verdict.LEFT, Verdict.RIGHT]
    assert judgments.tally(session, project.id, person.id).total == 1


def test_a_late_judgment_takes_a_free_slot(session, make, project, person, task):
    run_out(session, person)
    assert slots(session, task.comparison_id) == ["free"]
    assert judgments.submit(session, project.id, person.id, make.submission(task)).counted
    assert slots(session, task.comparison_id) == ["filled"]


def test_a_late_judgment_without_a_free_slot_is_kept_as_surplus(session, make, project, person, task):
    run_out(session, person)
    make.judged(project, make.person(project))
    receipt = judgments.submit(session, project.id, person.id, make.submission(task))
    assert not receipt.counted
    assert slots(session, task.comparison_id) == ["filled"]
    summary = judgments.summary(session, project.id)
    assert (summary.pairs, summary.surplus, summary.people) == (1, 1, 2)


def test_undo_withdraws_and_gives_the_comparison_back_to_the_same_person(session, make, project, person, task):
    first = judgments.submit(session, project.id, person.id, make.submission(task))
    back = judgments.undo(session, project.id, person.id)
    assert (back.comparison_id, back.order, back.answers) == (task.comparison_id, task.order, task.answers)
    assert [one.withdrawn for one in revisions(session)] == [False, True]
    assert judgments.tally(session, project.id, person.id).total == 0
    assert judgments.summary(session, project.id).pairs == 0
    assert claims.claim(session, project.id, make.person(project).id) == []
    again = judgments.submit(session, project.id, person.id, make.submission(back, Verdict.RIGHT))
    assert (again.judgment_id, again.revision, again.counted) == (first.judgment_id, 3, True)


def test_what_was_undone_comes_before_what_was_already_waiting(session, make, project, policy, person):
    for _ in range(3):
        make.pair(project, policy)
    tasks = claims.claim(session, project.id, person.id, count=3)
    judgments.submit(session, project.id, person.id, make.submission(tasks[2]))
    judgments.undo(session, project.id, person.id)
    assert claims.claim(session, project.id, person.id, count=2)[0].comparison_id == tasks[2].comparison_id


def test_undo_goes_ten_back_and_then_says_so(session, make, project, policy, person):
    judged = []
    for _ in range(11):
        make.pair(project, policy)
        make.judged(project, person)
        judged.append(
            session.scalars(select(Judgment).order_by(Judgment.judged_at.desc()).limit(1)).one().comparison_id
        )
    undone = [judgments.undo(session, project.id, person.id).comparison_id for _ in range(10)]
    assert undone == judged[:0:-1]
    with pytest.raises(Conflict, match="last 10"):
        judgments.undo(session, project.id, person.id)


def test_undo_without_a_judgment_says_so(session, project, person):
    with pytest.raises(Conflict, match="nothing to undo"):
        judgments.undo(session, project.id, person.id)


def test_a_skipped_comparison_goes_to_somebody_else_and_never_comes_back(session, make, project, person, task):
    judgments.skip(session, project.id, person.id, task.comparison_id, "not my language")
    judgments.skip(session, project.id, person.id, task.comparison_id)
    assert claims.claim(session, project.id, person.id) == []
    assert len(claims.claim(session, project.id, make.person(project).id)) == 1
    with pytest.raises(Conflict, match="skipped"):
        judgments.submit(session, project.id, person.id, make.submission(task))


def test_a_judged_comparison_cannot_be_skipped(session, make, project, person, task):
    judgments.submit(session, project.id, person.id, make.submission(task))
    with pytest.raises(Conflict):
        judgments.skip(session, project.id, person.id, task.comparison_id)


def test_comparisons_of_others_and_of_other_projects_do_not_exist_here(session, make, project, person, task):
    stranger = make.person(project)
    with pytest.raises(NotFound):
        judgments.submit(session, project.id, stranger.id, make.submission(task))
    with pytest.raises(NotFound):
        judgments.submit(session, make.project().id, person.id, make.submission(task))
    with pytest.raises(NotFound):
        judgments.skip(session, make.project().id, person.id, task.comparison_id)


def test_what_the_project_does_not_offer_is_refused(session, make):
    project = make.project(allow_tie=False, allow_both_bad=False)
    person = make.person(project)
    make.pair(project, make.policy(project))
    [task] = claims.claim(session, project.id, person.id)
    for verdict, fields in [(Verdict.TIE, {}), (Verdict.BOTH_BAD, {}), (Verdict.LEFT, {"strength": 2})]:
        with pytest.raises(Invalid):
            judgments.submit(session, project.id, person.id, make.submission(task, verdict, **fields))
    assert revisions(session) == []


def test_strength_is_stored_where_the_project_asks_for_it(session, make):
    project = make.project(ask_strength=True)
    make.pair(project, make.policy(project))
    make.judged(project, make.person(project), strength=3)
    assert [one.strength for one in revisions(session)] == [3]


@pytest.mark.parametrize(
    "fields",
    [{"order": [0, 0]}, {"order": [0]}, {"active_ms": -1}, {"active_ms": 10**12}, {"guideline_version": 2}],
)
def test_what_no_page_of_ours_would_send_is_refused(session, make, project, person, task, fields):
    with pytest.raises(Invalid):
        judgments.submit(session, project.id, person.id, make.submission(task, **fields))


def test_answers_claimed_in_the_other_order_are_refused(session, make, project, person, task):
    with pytest.raises(Invalid, match="order"):
        judgments.submit(session, project.id, person.id, make.submission(task, order=task.order[::-1]))


def test_a_submit_takes_three_statements(session, make, project, person, task, count_statements):
    with count_statements() as statements:
        judgments.submit(session, project.id, person.id, make.submission(task))
    assert len(statements) == 3


def test_the_tally_counts_today_and_takes_the_median_of_active_time(session, make, project, policy, person):
    for active_ms in (1000, 3000, 8000):
        make.pair(project, policy)
        make.judged(project, person, active_ms=active_ms)
    session.execute(
        update(Judgment)
        .where(Judgment.judged_at == select(Judgment.judged_at).order_by(Judgment.judged_at).limit(1).scalar_subquery())
        .values(judged_at=text("now() - interval '1 day'"))
    )
    tally = judgments.tally(session, project.id, person.id)
    assert (tally.total, tally.today, tally.median_active_ms) == (3, 2, 3000)


def test_agreement_is_over_pairs_of_counted_votes(session, make):
    project = make.project(votes_wanted=3)
    policy = make.policy(project)
    people = [make.person(project) for _ in range(3)]
    pair = make.pair(project, policy)
    # Canonical votes 0, 0, 1: one agreeing pair of votes out of three.
    for person, better in zip(people, (0, 0, 1), strict=True):
        [task] = claims.claim(session, project.id, person.id)
        assert task.comparison_id == pair.id
        verdict = Verdict.LEFT if task.order[0] == better else Verdict.RIGHT
        judgments.submit(session, project.id, person.id, make.submission(task, verdict))
    summary = judgments.summary(session, project.id)
    assert (summary.pairs, summary.people, summary.agreement_pairs) == (3, 3, 3)
    assert summary.agreement == pytest.approx(1 / 3)

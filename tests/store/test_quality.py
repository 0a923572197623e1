"""People's figures worked by hand, and what an admin does about them."""

import pytest

from app.core.errors import Invalid, NotFound
from app.core.vocabulary import Role, Verdict
from app.store import claims, judgments, quality, snapshots
from app.store.exports import export_trl
from app.store.models import AuditEvent, Membership
from app.store.standing import standing


@pytest.fixture
def project(make):
    return make.project(votes_wanted=2)


def say(session, make, project, account, answers):
    """Judge whatever is handed out, in order of the comparison: 0 or 1 is better, None is a tie."""
    tasks = sorted(claims.claim(session, project.id, account.id, len(answers)), key=lambda task: task.comparison_id)
    for number, (task, best) in enumerate(zip(tasks, answers, strict=True)):
        verdict = Verdict.TIE if best is None else [Verdict.LEFT, Verdict.RIGHT][task.order.index(best)]
        times = {"active_ms": 1000 * (number + 1)}
        judgments.submit(session, project.id, account.id, make.submission(task, verdict, **times))
    return tasks


def test_the_figures_are_those_that_one_counts_by_hand(session, make, project, policy):
    for _ in range(5):
        make.pair(project, policy)
    one, two, idle = (make.person(project) for _ in range(3))
    make.person(project, Role.RESEARCHER)
    say(session, make, project, one, [0, 0, 1, None, 0])
    say(session, make, project, two, [0, 1, 1, None, 1])
    first, second, nothing = quality.figures(session, project)
    assert [figure.account_id for figure in (first, second, nothing)] == [one.id, two.id, idle.id]
    # The same on the first, third and fourth of five. One said 0 three times, 1 and a tie once, two 0 once, 1 thrice, a
    # tie once: by chance (3 * 1 + 1 * 3 + 1 * 1) / 25.
    assert (first.agreement.hits, first.agreement.of, first.chance) == (3, 5, pytest.approx(7 / 25))
    assert second.agreement == first.agreement
    assert first.kappa == pytest.approx((0.6 - 0.28) / 0.72)
    assert (first.judgments, first.today, first.ties, first.median_active_ms) == (5, 5, 1, 3000)
    assert first.left.of == 4
    assert (nothing.judgments, nothing.agreement.share, nothing.chance, nothing.kappa) == (0, None, None, None)
    assert (nothing.median_active_ms, nothing.skill, nothing.repeats.share) == (None, None, None)
    assert quality.figures(session, project, two.id) == [second]


def test_sorting_goes_by_named_columns_only(session, make, project, policy):
    people = [make.person(project) for _ in range(3)]
    make.pair(project, policy)
    make.judged(project, people[1])
    found = quality.figures(session, project)
    assert quality.by(found, "judgments")[0].account_id == people[1].id
    with pytest.raises(Invalid):
        quality.by(found, "password_hash")


def test_somebody_paused_is_handed_nothing_and_what_they_hold_is_taken(session, make, project, policy):
    admin, person = make.person(project, Role.ADMIN), make.person(project)
    make.pair(project, policy)
    [task] = claims.claim(session, project.id, person.id, 1)
    quality.pause(session, project.id, person.id, admin.id)
    quality.pause(session, project.id, person.id, admin.id)
    assert standing(session, project.id, person.id).why == "paused"
    assert judgments.submit(session, project.id, person.id, make.submission(task)).counted
    quality.pause(session, project.id, person.id, admin.id, paused=False)
    assert standing(session, project.id, person.id).why is None
    said = [event.action for event in session.query(AuditEvent).filter_by(account_id=admin.id).order_by(AuditEvent.id)]
    assert said == ["quality.pause", "quality.resume"]
    with pytest.raises(NotFound):
        quality.pause(session, make.project().id, person.id, admin.id)


def test_a_snapshot_and_an_export_are_without_those_who_are_left_out(session, make, project, policy):
    admin, careful, careless = make.person(project, Role.ADMIN), make.person(project), make.person(project)
    for _ in range(3):
        make.pair(project, policy)
    say(session, make, project, careful, [0, 1, 0])
    say(session, make, project, careless, [1, 1, 1])
    everybody = snapshots.freeze(session, project.id)
    quality.leave_out(session, project.id, careless.id, admin.id)
    fewer = snapshots.freeze(session, project.id)
    assert (everybody.train + everybody.heldout, fewer.train + fewer.heldout) == (6, 3)
    assert fewer.query["left_out"] is False
    assert len(list(export_trl(session, project.id))) == 3
    # They stay, and count for the votes that are wanted.
    assert judgments.summary(session, project.id).pairs == 6
    quality.leave_out(session, project.id, careless.id, admin.id, out=False)
    assert snapshots.freeze(session, project.id).sha256 == everybody.sha256
    assert session.get_one(Membership, (project.id, careless.id)).left_out is False

"""Who is handed work, and what keeps the others from it."""

import pytest
from sqlalchemy import text

from app.core.errors import NotFound
from app.core.vocabulary import Role
from app.store import accounts, projects
from app.store.standing import standing


def test_a_new_member_may_judge(session, make, project):
    person = make.person(project)
    found = standing(session, project.id, person.id)
    assert (found.why, found.unread, found.qualifying, found.left) == (None, None, False, None)


def test_guidelines_are_read_before_the_first_judgment_and_after_each_change(session, make, project):
    person = make.person(project)
    version = projects.revise_guidelines(session, project.id, "Prefer the answer that helps.")
    assert standing(session, project.id, person.id).unread == version
    session.execute(text("UPDATE membership SET guidelines_read = :v"), {"v": version})
    assert standing(session, project.id, person.id).unread is None
    assert projects.revise_guidelines(session, project.id, "Prefer the shorter one.") == version + 1
    assert standing(session, project.id, person.id).unread == version + 1


def test_a_cap_counts_the_judgments_that_stand(session, make, project):
    person = make.person(project)
    make.pair(project, make.policy(project, promote=True))
    project.cap = 1
    session.flush()
    assert standing(session, project.id, person.id).left == 1
    make.judged(project, person)
    session.flush()
    found = standing(session, project.id, person.id)
    assert (found.why, found.left) == ("cap", 0)
    session.execute(text("UPDATE judgment SET withdrawn = true"))
    assert standing(session, project.id, person.id).why is None


def test_paused_failed_and_admins_who_do_not_judge_are_told_so(session, make, project):
    person, admin = make.person(project), make.person(project, Role.ADMIN)
    project.qualify_on = 4
    project.admins_judge = False
    session.flush()
    assert standing(session, project.id, person.id).qualifying
    assert standing(session, project.id, admin.id).why == "admins"
    assert not standing(session, project.id, admin.id).qualifying
    session.execute(text("UPDATE membership SET failed_at = now() WHERE account_id = :a"), {"a": person.id})
    assert standing(session, project.id, person.id).why == "failed"
    session.execute(text("UPDATE membership SET paused_at = now() WHERE account_id = :a"), {"a": person.id})
    assert standing(session, project.id, person.id).why == "paused"


def test_somebody_else_does_not_stand_here(session, make, project):
    person, admin = make.person(project), make.person(project, Role.ADMIN)
    accounts.deactivate(session, project.id, person.id, admin.id)
    with pytest.raises(NotFound):
        standing(session, project.id, person.id)

"""Drafts on the server."""

import uuid

import pytest
from sqlalchemy import func, select

from app.core.errors import Invalid, NotFound
from app.store import claims, drafts
from app.store.models import Draft


@pytest.fixture
def task(session, make, project, person):
    make.pair(project, make.policy(project, promote=True))
    return claims.claim(session, project.id, person.id)[0].comparison_id


def test_a_draft_comes_back_as_it_was_last_saved_and_only_to_its_writer(session, make, project, person, task):
    other = make.person(project)
    drafts.save(session, project.id, person.id, task, {"rationale": "It names", "ranking": [1, 0]})
    drafts.save(session, project.id, person.id, task, {"rationale": r"It names the order \u0000 😀"})
    assert drafts.load(session, person.id, [task, uuid.uuid4()]) == {
        task: {"rationale": r"It names the order \u0000 😀"}
    }
    assert drafts.load(session, other.id, [task]) == {}
    drafts.drop(session, person.id, task)
    drafts.drop(session, person.id, task)
    assert drafts.load(session, person.id, [task]) == {}


def test_a_task_of_somebody_else_or_of_another_project_takes_no_draft(session, make, project, person, task):
    other, elsewhere = make.person(project), make.project()
    for project_id, account_id, task_id in [
        (project.id, other.id, task),
        (elsewhere.id, person.id, task),
        (project.id, person.id, uuid.uuid4()),
    ]:
        with pytest.raises(NotFound):
            drafts.save(session, project_id, account_id, task_id, {"text": "x"})
    assert session.scalar(select(func.count()).select_from(Draft)) == 0


@pytest.mark.parametrize("text", ["x" * 65_536, "\0", "\ud83d"])
def test_what_cannot_be_kept_is_refused_and_the_draft_before_it_stays(session, project, person, task, text):
    drafts.save(session, project.id, person.id, task, {"text": "as it was"})
    with pytest.raises(Invalid):
        drafts.save(session, project.id, person.id, task, {"text": text})
    assert drafts.load(session, person.id, [task]) == {task: {"text": "as it was"}}


def test_beyond_a_few_hundred_the_longest_untouched_goes(session, make, project, person, task, monkeypatch):
    monkeypatch.setattr(drafts, "MOST", 2)
    policy = make.policy(project)
    for _ in range(2):
        make.pair(project, policy)
    held = [one.comparison_id for one in claims.claim(session, project.id, person.id, 3)]
    for one in held:
        drafts.save(session, project.id, person.id, one, {"text": str(one)})
    assert set(drafts.load(session, person.id, held)) == set(held[1:])

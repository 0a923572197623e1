"""Guidelines, version by version."""

import pytest

from app.core.errors import Conflict, Invalid, NotFound
from app.store import guidelines, projects
from app.store.standing import standing


@pytest.fixture
def project(make):
    return make.project(guidelines="Be fair.")


def test_every_version_stays_with_who_saved_it(session, make, project):
    admin = make.person(project)
    assert projects.revise_guidelines(session, project.id, "Be fair and quick.", admin.id, base=1) == 2
    assert guidelines.current(session, project.id).body == "Be fair and quick."
    assert guidelines.version(session, project.id, 1).body == "Be fair."
    assert [(one.version, one.by) for one in guidelines.versions(session, project.id)] == [
        (2, admin.username),
        (1, None),
    ]
    for number in (0, 3, -1, 2**40):
        with pytest.raises(NotFound):
            guidelines.version(session, project.id, number)


def test_a_stale_text_is_refused_and_the_same_text_is_no_new_version(session, make, project):
    projects.revise_guidelines(session, project.id, "By Ada.", base=1)
    with pytest.raises(Conflict):
        projects.revise_guidelines(session, project.id, "By Grace.", base=1)
    assert projects.revise_guidelines(session, project.id, "By Ada.\r\n", base=2) == 2
    assert guidelines.current(session, project.id).version == 2


@pytest.mark.parametrize("body", ["x" * 100_001, "a\0b", "\ud800"])
def test_what_cannot_be_kept_is_refused(session, project, body):
    with pytest.raises(Invalid):
        projects.revise_guidelines(session, project.id, body)


def test_reading_is_remembered_and_never_goes_back(session, make, project):
    person = make.person(project)
    projects.revise_guidelines(session, project.id, "Be quick.")
    assert (guidelines.read_by(session, project.id, person.id), standing(session, project.id, person.id).unread) == (
        0,
        2,
    )
    guidelines.mark_read(session, project.id, person.id, 1)
    assert standing(session, project.id, person.id).unread == 2
    guidelines.mark_read(session, project.id, person.id, 2)
    guidelines.mark_read(session, project.id, person.id, 1)
    assert guidelines.read_by(session, project.id, person.id) == 2
    assert standing(session, project.id, person.id).unread is None
    with pytest.raises(NotFound):
        guidelines.mark_read(session, project.id, person.id, 3)

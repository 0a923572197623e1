"""Projects and their guidelines."""

import pytest

from app.core.configs import SamplingSettings
from app.core.errors import Conflict, Invalid, NotFound
from app.core.vocabulary import Role
from app.store import accounts, projects


def test_a_project_has_its_settings_a_salt_of_its_own_and_its_maker_as_admin(session, make):
    person = make.person()
    made = projects.create_project(
        session, "letters", "Letters", sampling=SamplingSettings(max_tokens=64), votes_wanted=3, by=person.id
    )
    assert projects.project_by_slug(session, "letters").id == made.id
    assert SamplingSettings.model_validate(made.sampling).max_tokens == 64
    assert (made.votes_wanted, made.allow_tie, made.ask_strength, made.current_policy_id) == (3, True, False, None)
    assert accounts.membership(session, made.id, person.id).role == Role.ADMIN
    assert projects.create_project(session, "other", "Other").salt != made.salt


@pytest.mark.parametrize("slug", ["", "-x", "Big", "two words", "../up", "ä", "x" * 64])
def test_an_address_that_would_not_look_right_in_a_url_is_refused(session, slug):
    with pytest.raises(Invalid):
        projects.create_project(session, slug, "A project")


def test_a_taken_address_is_refused_and_an_unknown_one_not_found(session, make):
    projects.create_project(session, "letters", "Letters")
    with pytest.raises(Conflict):
        projects.create_project(session, "letters", "Others")
    with pytest.raises(NotFound):
        projects.project_by_slug(session, "nothing")


def test_people_see_the_projects_they_may_enter(session, make):
    one, other = make.project(), make.project()
    person, admin = make.person(one), make.person(one, Role.ADMIN)
    accounts.join(session, other.id, person.id, Role.RESEARCHER)
    assert {project.id for project in projects.projects_of(session, person.id)} == {one.id, other.id}
    accounts.deactivate(session, one.id, person.id, admin.id)
    assert [project.id for project in projects.projects_of(session, person.id)] == [other.id]


def test_guidelines_are_versioned(session, make):
    project = make.project(guidelines="Be fair.")
    assert projects.guidelines(session, project.id) == "Be fair."
    assert projects.revise_guidelines(session, project.id, "Be fair and quick.") == 2
    assert projects.guidelines(session, project.id) == "Be fair and quick."

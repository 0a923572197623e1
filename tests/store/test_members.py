"""Roles, closing and opening, erasing, open invitations."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from sqlalchemy import select

from app.core.errors import Conflict, Forbidden, NotFound, PairwrightError
from app.core.vocabulary import Role
from app.store import accounts, claims, identities, members
from app.store.db import make_engine, session_factory
from app.store.identities import Known
from app.store.models import Account, AuditEvent, Draft, Identity, Judgment, Membership, Slot

PASSWORD = "correct horse battery"


@pytest.fixture
def owner(session):
    return accounts.create_owner(session, accounts.issue_setup_token(session), "Olga", PASSWORD)


def test_a_role_is_changed_by_another_admin_and_never_the_owners_or_ones_own(session, make, owner):
    project = make.project()
    admin, person = make.person(project, Role.ADMIN), make.person(project)
    members.set_role(session, project.id, person.id, Role.RESEARCHER, admin.id)
    assert accounts.membership(session, project.id, person.id).role is Role.RESEARCHER
    for whom in (owner, admin):
        with pytest.raises(Conflict):
            members.set_role(session, project.id, whom.id, Role.ANNOTATOR, admin.id)
    with pytest.raises(NotFound):
        members.set_role(session, project.id, make.person().id, Role.ADMIN, admin.id)
    with pytest.raises(Forbidden):  # they were an admin when the page was loaded
        members.set_role(session, project.id, admin.id, Role.ANNOTATOR, person.id)
    session.flush()
    [event] = session.scalars(select(AuditEvent).where(AuditEvent.action == "member.role"))
    assert (event.account_id, event.subject, event.detail) == (
        admin.id,
        str(person.id),
        {"from": "annotator", "to": "researcher"},
    )


def test_two_admins_who_demote_each_other_at_once_leave_one_admin(database_url, make_with):
    engine = make_engine(database_url)
    sessions = session_factory(engine)
    with sessions.begin() as s:
        make = make_with(s)
        project = make.project()
        pair = [make.person(project, Role.ADMIN) for _ in range(2)]
    together = Barrier(2)

    def demote(whom, by):
        with sessions() as s:
            together.wait()
            try:
                members.set_role(s, project.id, whom.id, Role.ANNOTATOR, by.id)
                s.commit()
            except PairwrightError as error:
                return type(error)
            return None

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(demote, pair, reversed(pair)))
    assert set(outcomes) == {None, Forbidden}
    with sessions() as s:
        roles = [accounts.membership(s, project.id, one.id).role for one in pair]
    assert sorted(roles) == [Role.ADMIN, Role.ANNOTATOR]
    engine.dispose()


def test_who_becomes_a_researcher_gives_back_what_they_held(session, make, owner):
    project = make.project()
    make.pair(project, make.policy(project))
    person = make.person(project)
    claims.claim(session, project.id, person.id)
    members.set_role(session, project.id, person.id, Role.RESEARCHER, owner.id)
    assert list(session.scalars(select(Slot.state))) == ["free"]


def test_a_project_is_opened_again_with_the_same_pseudonym(session, make, owner):
    project = make.project()
    person = make.person(project, Role.RESEARCHER)
    pseudonym = accounts.membership(session, project.id, person.id).pseudonym
    accounts.deactivate(session, project.id, person.id, owner.id)
    members.reactivate(session, project.id, person.id, owner.id)
    found = accounts.membership(session, project.id, person.id)
    assert (found.role, found.pseudonym) == (Role.RESEARCHER, pseudonym)


def test_closing_an_account_closes_everything_at_once_and_keeps_the_judgments(session, make, owner):
    project, other = make.project(), make.project()
    policy = make.policy(project)
    for _ in range(2):
        make.pair(project, policy)
    person = make.person(project)
    accounts.join(session, other.id, person.id, Role.ADMIN)
    token = accounts.open_session(session, person.id)
    make.judged(project, person)
    claims.claim(session, project.id, person.id, count=1)
    members.close_account(session, person.id, owner.id)
    assert accounts.account_of_session(session, token) is None
    assert accounts.membership(session, other.id, person.id) is None
    assert sorted(session.scalars(select(Slot.state))) == ["filled", "free"]
    assert len(list(session.scalars(select(Judgment)))) == 1
    assert members.member(session, project.id, person.id).account_closed
    with pytest.raises(Conflict):
        members.reactivate(session, project.id, person.id, owner.id)
    members.open_account(session, person.id, owner.id)
    assert accounts.membership(session, project.id, person.id) is not None
    assert accounts.account_of_session(session, token) is None


def test_only_the_owner_closes_accounts_and_never_their_own(session, make, owner):
    project = make.project()
    admin, person = make.person(project, Role.ADMIN), make.person(project)
    for act in (members.close_account, members.open_account, members.erase):
        with pytest.raises(Forbidden):
            act(session, person.id, admin.id)
        with pytest.raises(Conflict):
            act(session, owner.id, owner.id)


def test_erasing_clears_who_somebody_is_and_nothing_of_what_they_said(session, make, owner):
    project = make.project()
    make.pair(project, make.policy(project))
    person = make.person(project)
    name = person.username
    identities.link(session, person.id, Known("https://idp.example", "sub-1"))
    make.judged(project, person)
    session.add(Draft(account_id=person.id, task_id=person.id, project_id=project.id, body={"text": name}))
    pseudonym = accounts.membership(session, project.id, person.id).pseudonym
    before = list(session.scalars(select(Judgment.id)))
    members.erase(session, person.id, owner.id)
    session.flush()
    assert members.member(session, project.id, person.id).erased
    assert session.get_one(Membership, (project.id, person.id)).pseudonym == pseudonym
    assert list(session.scalars(select(Judgment.id))) == before
    for table in (Account, Identity, Draft, AuditEvent):
        assert name not in str(session.execute(select(table.__table__)).all())
    assert list(session.scalars(select(Identity))) == []
    with pytest.raises(Conflict):
        members.open_account(session, person.id, owner.id)
    # The name is free again.
    token = accounts.invite(session, project.id, Role.ANNOTATOR, owner.id)
    assert accounts.accept_invitation(session, token, name, PASSWORD).id != person.id


def test_open_invitations_are_listed_and_revoked(session, make, owner):
    project, other = make.project(), make.project()
    token = accounts.invite(session, project.id, Role.ANNOTATOR, owner.id, note="  for Rosa ")
    [sent] = members.open_invitations(session, project.id)
    assert (sent.role, sent.note, sent.invited_by) == (Role.ANNOTATOR, "for Rosa", "Olga")
    with pytest.raises(NotFound):
        members.revoke(session, other.id, sent.id, owner.id)
    members.revoke(session, project.id, sent.id, owner.id)
    assert members.open_invitations(session, project.id) == []
    with pytest.raises(NotFound):
        accounts.invitation(session, token)


def test_one_browser_or_all_others_are_signed_out(session, make):
    person, stranger = make.person(), make.person()
    tokens = [accounts.open_session(session, person.id) for _ in range(3)]
    theirs = accounts.open_session(session, stranger.id)
    newest, middle, oldest = members.browsers(session, person.id)
    members.end_browsers(session, person.id, newest.id, middle.id)
    alive = [accounts.account_of_session(session, token) is not None for token in tokens]
    assert alive == [True, False, True]
    members.end_browsers(session, person.id, newest.id)
    assert [one.id for one in members.browsers(session, person.id)] == [newest.id]
    members.end_browsers(session, person.id, newest.id, members.browsers(session, stranger.id)[0].id)
    assert accounts.account_of_session(session, theirs) is not None
    assert oldest not in members.browsers(session, person.id)


@pytest.mark.parametrize(
    ("name", "fitted"),
    [
        ("grace@example.org", "grace"),
        ("Grace Hopper", "Grace.Hopper"),
        ("  a\u202eb\tc ", "a.b.c"),
        ("é" * 90, "é" * 64),
        ("明日香", "明日香"),
        ("@", ""),
        ("...", ""),
    ],
)
def test_a_providers_name_is_made_to_fit(name, fitted):
    assert identities.fit(name) == fitted


def test_taken_names_are_told_apart_by_a_number(session, make, owner):
    for expected in ("Olga-2", "Olga-3"):
        name = identities.free_username(session, ["", "Olga@example.org", "other"])
        assert name == expected
        session.add(Account(username=name, username_key=name.lower()))
        session.flush()
    assert identities.free_username(session, ["x"]) == "person"

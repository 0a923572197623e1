"""The owner, invitations, signing in."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.exc import IntegrityError

from app.core.errors import Conflict, Invalid, NotFound, PairwrightError, TooMany
from app.core.vocabulary import Role
from app.store import accounts, claims, credentials, projects
from app.store.db import make_engine, session_factory
from app.store.models import Account, Invitation, Membership, Owner, SetupToken, SignIn, SignInThrottle, Slot

PASSWORD = "correct horse battery"


@pytest.fixture
def owner(session):
    return accounts.create_owner(session, accounts.issue_setup_token(session), "Olga", PASSWORD)


def expire(session, table):
    session.execute(
        update(table).values(expires_at=text("now() - interval '1 second'")),
        execution_options={"synchronize_session": False},
    )


def test_the_setup_token_makes_the_owner_and_then_there_is_none(session, make):
    project = make.project()
    token = accounts.issue_setup_token(session)
    made = accounts.create_owner(session, token, "Olga", PASSWORD)
    assert accounts.owner(session).id == made.id
    assert accounts.membership(session, project.id, made.id).role == Role.ADMIN
    assert accounts.issue_setup_token(session) is None
    with pytest.raises(Conflict, match="already has an owner"):
        accounts.create_owner(session, token, "Oscar", PASSWORD)


def test_a_setup_token_is_replaced_by_the_next_and_expires(session):
    first, second = accounts.issue_setup_token(session), accounts.issue_setup_token(session)
    with pytest.raises(NotFound):
        accounts.create_owner(session, first, "Olga", PASSWORD)
    expire(session, SetupToken)
    with pytest.raises(NotFound):
        accounts.create_owner(session, second, "Olga", PASSWORD)


def test_an_owner_made_while_a_project_is_being_written_is_let_in_afterwards(database_url):
    engine = make_engine(database_url)
    sessions = session_factory(engine)
    with sessions() as writing:
        project = projects.create_project(writing, "support", "Support")
        with sessions.begin() as s:
            owner = accounts.create_owner(s, accounts.issue_setup_token(s), "ada", "a quiet green page")
        writing.commit()
    with sessions.begin() as s:
        assert accounts.membership(s, project.id, owner.id) is None
        accounts.let_owner_in(s)
        accounts.let_owner_in(s)
        assert accounts.membership(s, project.id, owner.id).role is Role.ADMIN
    engine.dispose()


def test_of_fifty_who_follow_the_setup_link_at_once_one_becomes_owner(database_url):
    engine = make_engine(database_url, pool_size=50)
    sessions = session_factory(engine)
    with sessions.begin() as s:
        token = accounts.issue_setup_token(s)
    together = Barrier(50)

    def attempt(number):
        with sessions() as s:
            together.wait()
            try:
                accounts.create_owner(s, token, f"person{number}", PASSWORD)
                s.commit()
            except PairwrightError as error:
                return type(error)
            return None

    with ThreadPoolExecutor(50) as pool:
        outcomes = list(pool.map(attempt, range(50)))
    with sessions() as s:
        assert s.scalar(select(func.count()).select_from(Owner)) == 1
        assert s.scalar(select(func.count()).select_from(Account)) == 1
    engine.dispose()
    assert outcomes.count(None) == 1
    assert set(outcomes) == {None, Conflict}


def test_the_database_itself_refuses_a_second_owner(session, make, owner):
    session.add(Owner(account_id=make.person().id, singleton=True))
    with pytest.raises(IntegrityError, match="pk_owner"):
        session.flush()


def test_signing_in_takes_the_name_in_any_case_and_the_exact_password(session, owner):
    assert accounts.authenticate(session, "OLGA ", PASSWORD).id == owner.id
    assert accounts.authenticate(session, "Olga", PASSWORD.upper()) is None
    assert accounts.authenticate(session, "nobody", PASSWORD) is None


def test_an_unknown_name_costs_as_much_work_as_a_known_one(session, owner, monkeypatch):
    checked = []
    real = credentials._hasher

    class Counting:
        def verify(self, stored, password):
            checked.append(stored.split("$")[1:4])
            return real.verify(stored, password)

    monkeypatch.setattr(credentials, "_hasher", Counting())
    accounts.authenticate(session, "Olga", "a wrong password")
    accounts.authenticate(session, "nobody", "a wrong password")
    assert checked[0] == checked[1] == ["argon2id", "v=19", "m=19456,t=2,p=1"]


def test_the_eleventh_attempt_at_a_name_is_refused_until_the_window_has_passed(session, owner):
    for _ in range(10):
        assert accounts.authenticate(session, "olga", "a wrong password") is None
    with pytest.raises(TooMany, match="Too many attempts"):
        accounts.authenticate(session, "Olga", PASSWORD)
    session.execute(update(SignInThrottle).values(since=text("now() - interval '6 minutes'")))
    assert accounts.authenticate(session, "Olga", PASSWORD).id == owner.id


def test_a_strangers_wrong_guesses_do_not_lock_the_owner_out_until_there_are_a_hundred(session, owner, monkeypatch):
    monkeypatch.setattr(credentials, "password_matches", lambda stored, password: password == PASSWORD)
    for _ in range(10):
        assert accounts.authenticate(session, "olga", "a wrong password", "203.0.113.9") is None
    with pytest.raises(TooMany):
        accounts.authenticate(session, "olga", "a wrong password", "203.0.113.9")
    assert accounts.authenticate(session, "olga", PASSWORD, "192.0.2.1").id == owner.id
    for i in range(100):
        assert accounts.authenticate(session, "olga", "a wrong password", f"198.51.100.{i}") is None
    with pytest.raises(TooMany):
        accounts.authenticate(session, "olga", PASSWORD, "192.0.2.1")


def test_a_session_token_leads_to_its_account_until_it_is_closed_or_expires(session, owner):
    token, other = accounts.open_session(session, owner.id), accounts.open_session(session, owner.id)
    assert token != other
    assert accounts.account_of_session(session, token).id == owner.id
    accounts.close_session(session, token)
    assert accounts.account_of_session(session, token) is None
    assert accounts.account_of_session(session, other).id == owner.id
    expire(session, SignIn)
    assert accounts.account_of_session(session, other) is None


def test_no_token_and_no_password_is_stored_as_it_is(session, make, owner):
    project = make.project()
    secrets = [
        PASSWORD,
        accounts.open_session(session, owner.id),
        accounts.invite(session, project.id, Role.ANNOTATOR, owner.id),
    ]
    for table in (Account, SignIn, Invitation, SetupToken, SignInThrottle):
        dump = str(session.execute(select(table.__table__)).all())
        assert not any(secret in dump for secret in secrets)


def test_an_invitation_makes_one_account_with_its_role(session, make, owner):
    project = make.project()
    token = accounts.invite(session, project.id, Role.RESEARCHER, owner.id)
    offer = accounts.invitation(session, token)
    assert (offer.project_id, offer.project_slug, offer.role) == (project.id, project.slug, Role.RESEARCHER)
    made = accounts.accept_invitation(session, token, "Rosa", PASSWORD)
    assert accounts.membership(session, project.id, made.id).role == Role.RESEARCHER
    assert accounts.authenticate(session, "rosa", PASSWORD).id == made.id
    for use in (accounts.invitation, lambda s, t: accounts.accept_invitation(s, t, "Rita", PASSWORD)):
        with pytest.raises(Conflict, match="has been used"):
            use(session, token)


def test_an_expired_or_unknown_invitation_says_so(session, make, owner):
    token = accounts.invite(session, make.project().id, Role.ANNOTATOR, owner.id)
    expire(session, Invitation)
    with pytest.raises(Conflict, match="has expired"):
        accounts.invitation(session, token)
    with pytest.raises(NotFound):
        accounts.invitation(session, "no such token")


def test_somebody_signed_in_joins_with_the_account_they_have(session, make, owner):
    project, person = make.project(), make.person()
    token = accounts.invite(session, project.id, Role.ANNOTATOR, owner.id)
    assert accounts.accept_invitation(session, token, account_id=person.id).id == person.id
    again = accounts.invite(session, project.id, Role.ADMIN, owner.id)
    with pytest.raises(Conflict, match="already belong"):
        accounts.accept_invitation(session, again, account_id=person.id)
    assert accounts.invitation(session, again).role == Role.ADMIN


@pytest.mark.parametrize(
    ("username", "password", "error"),
    [
        ("olga", PASSWORD, Conflict),
        ("x", PASSWORD, Invalid),
        ("two words", PASSWORD, Invalid),
        ("line\nbreak", PASSWORD, Invalid),
        ("Rosa", "too short", Invalid),
        ("Rosa", "x" * 257, Invalid),
    ],
)
def test_names_and_passwords_that_will_not_do_are_refused(session, make, owner, username, password, error):
    token = accounts.invite(session, make.project().id, Role.ANNOTATOR, owner.id)
    with pytest.raises(error):
        accounts.accept_invitation(session, token, username, password)


def test_pseudonyms_differ_between_projects_and_say_nothing(session, make, owner):
    pseudonyms = {accounts.membership(session, make.project().id, owner.id).pseudonym for _ in range(3)}
    assert len(pseudonyms) == 3
    assert not any("olga" in one.lower() for one in pseudonyms)


def test_deactivating_closes_the_project_and_reopens_leases(session, make, owner):
    project = make.project()
    make.pair(project, make.policy(project))
    person = make.person(project)
    claims.claim(session, project.id, person.id)
    accounts.deactivate(session, project.id, person.id, owner.id)
    assert accounts.membership(session, project.id, person.id) is None
    assert list(session.scalars(select(Slot.state))) == ["free"]
    with pytest.raises(NotFound):
        claims.claim(session, project.id, person.id)
    [_, gone] = accounts.members(session, project.id)
    assert (gone.account_id, gone.deactivated_at is None) == (person.id, False)
    pseudonym = gone.pseudonym
    token = accounts.invite(session, project.id, Role.ANNOTATOR, owner.id)
    accounts.accept_invitation(session, token, account_id=person.id)
    assert session.get_one(Membership, (project.id, person.id)).pseudonym == pseudonym
    assert accounts.membership(session, project.id, person.id) is not None


def test_neither_the_owner_nor_oneself_can_be_deactivated(session, make, owner):
    project = make.project()
    admin = make.person(project, Role.ADMIN)
    for account in (owner, admin):
        with pytest.raises(Conflict):
            accounts.deactivate(session, project.id, account.id, admin.id)
    with pytest.raises(NotFound):
        accounts.deactivate(session, project.id, make.person().id, admin.id)

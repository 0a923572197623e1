"""New passwords by a link, and who may make one."""

import pytest
from sqlalchemy import select, text, update

from app.core.errors import Conflict, Forbidden, Invalid, NotFound, TooMany
from app.core.vocabulary import Role
from app.store import accounts, credentials, members, passwords
from app.store.models import AuditEvent, PasswordReset

OLD, NEW = "correct horse battery", "a quiet green page"


@pytest.fixture
def owner(session):
    return accounts.create_owner(session, accounts.issue_setup_token(session), "Olga", OLD)


@pytest.fixture
def rosa(session, make, owner):
    """An annotator with a password, in one project that `ada` administers too."""
    project = make.project()
    token = accounts.invite(session, project.id, Role.ANNOTATOR, owner.id)
    rosa = accounts.accept_invitation(session, token, "Rosa", OLD)
    rosa.project, rosa.admin = project, make.person(project, Role.ADMIN)
    return rosa


def test_a_link_sets_the_password_once_and_ends_every_sign_in(session, rosa):
    signed_in = accounts.open_session(session, rosa.id)
    token = passwords.make_reset(session, rosa.id, rosa.admin.id, rosa.project.id)
    assert passwords.reset_of(session, token).id == rosa.id
    assert passwords.use_reset(session, token, NEW).id == rosa.id
    assert accounts.account_of_session(session, signed_in) is None
    assert accounts.authenticate(session, "rosa", OLD) is None
    assert accounts.authenticate(session, "rosa", NEW).id == rosa.id
    assert passwords.reset_of(session, token) is None
    assert passwords.use_reset(session, token, OLD) is None
    session.flush()
    actions = session.scalars(select(AuditEvent.action).where(AuditEvent.action.startswith("password")))
    assert list(actions) == ["password.reset_link", "password.reset"]
    dump = str(session.execute(select(PasswordReset.__table__)).all())
    assert token not in dump
    assert NEW not in dump


def test_a_newer_link_voids_the_older_and_each_expires(session, rosa):
    older, newer = (passwords.make_reset(session, rosa.id, rosa.admin.id) for _ in range(2))
    assert passwords.use_reset(session, older, NEW) is None
    session.execute(
        update(PasswordReset).values(expires_at=text("now() - interval '1 second'")),
        execution_options={"synchronize_session": False},
    )
    assert passwords.use_reset(session, newer, NEW) is None
    assert accounts.authenticate(session, "rosa", OLD).id == rosa.id


def test_a_password_that_will_not_do_leaves_the_link_good(session, rosa):
    token = passwords.make_reset(session, rosa.id, None)
    with pytest.raises(Invalid, match="at least 10"):
        passwords.use_reset(session, token, "short")
    assert passwords.reset_of(session, token) is not None


def test_whoever_guessed_at_the_old_password_does_not_keep_the_new_one_out(session, rosa):
    for _ in range(101):
        accounts.attempts(session, credentials.token_hash("rosa"))
    passwords.use_reset(session, passwords.make_reset(session, rosa.id, None), NEW)
    assert accounts.authenticate(session, "rosa", NEW).id == rosa.id


def test_strangers_who_try_tokens_are_slowed_down(session, monkeypatch):
    monkeypatch.setattr(credentials, "hash_password", lambda password: "hashed")
    for _ in range(passwords.THROTTLE_RESETS):
        assert passwords.use_reset(session, "no such token", NEW, "203.0.113.9") is None
    with pytest.raises(TooMany):
        passwords.use_reset(session, "no such token", NEW, "203.0.113.9")
    assert passwords.use_reset(session, "no such token", NEW, "192.0.2.1") is None


def test_who_may_reset_whom(session, make, owner):
    mine, other = make.project(), make.project()
    admin, colleague = make.person(mine, Role.ADMIN), make.person(mine, Role.ADMIN)
    only_here, researcher = make.person(mine), make.person(mine, Role.RESEARCHER)
    elsewhere_too, elsewhere, admin_elsewhere = make.person(mine), make.person(other), make.person(mine)
    nowhere = make.person()
    accounts.join(session, other.id, elsewhere_too.id, Role.ANNOTATOR)
    accounts.join(session, other.id, admin_elsewhere.id, Role.ADMIN)
    may = {who: passwords.may_reset(session, admin.id, who.id) for who in (only_here, researcher)}
    may_not = {
        who: passwords.may_reset(session, admin.id, who.id)
        for who in (owner, admin, colleague, elsewhere_too, elsewhere, admin_elsewhere, nowhere)
    }
    assert set(may.values()) == {True}
    assert set(may_not.values()) == {False}
    assert not passwords.may_reset(session, only_here.id, researcher.id)
    everybody = (admin, only_here, elsewhere, nowhere, owner)
    assert all(passwords.may_reset(session, owner.id, who.id) for who in everybody)
    with pytest.raises(Forbidden):
        passwords.make_reset(session, elsewhere_too.id, admin.id)
    # A membership that is closed can be opened again: it still counts.
    accounts.deactivate(session, other.id, elsewhere_too.id, owner.id)
    assert not passwords.may_reset(session, admin.id, elsewhere_too.id)
    accounts.join(session, other.id, admin.id, Role.ADMIN)
    assert passwords.may_reset(session, admin.id, elsewhere_too.id)
    accounts.deactivate(session, other.id, admin.id, owner.id)
    assert not passwords.may_reset(session, admin.id, elsewhere_too.id)


@pytest.mark.parametrize("how", ["promoted", "joined elsewhere", "its maker left"])
def test_a_link_is_worth_nothing_once_its_maker_could_not_make_it_any_more(session, make, owner, rosa, how):
    token = passwords.make_reset(session, rosa.id, rosa.admin.id)
    if how == "promoted":
        members.set_role(session, rosa.project.id, rosa.id, Role.ADMIN, owner.id)
    elif how == "joined elsewhere":
        accounts.join(session, make.project().id, rosa.id, Role.ANNOTATOR)
    else:
        accounts.deactivate(session, rosa.project.id, rosa.admin.id, owner.id)
    assert passwords.use_reset(session, token, NEW) is None
    assert accounts.authenticate(session, "rosa", OLD).id == rosa.id


def test_no_link_for_somebody_deactivated_erased_or_unknown(session, owner, rosa):
    token = passwords.make_reset(session, rosa.id, None)
    members.close_account(session, rosa.id, owner.id)
    assert passwords.use_reset(session, token, NEW) is None
    with pytest.raises(Conflict):
        passwords.make_reset(session, rosa.id, None)
    members.erase(session, rosa.id, owner.id)
    with pytest.raises(NotFound):
        passwords.make_reset(session, rosa.id, None)


def test_ones_own_password_is_changed_with_the_current_one_only(session, rosa):
    signed_in = accounts.open_session(session, rosa.id)
    assert not passwords.change(session, rosa, "not it", NEW)
    assert accounts.account_of_session(session, signed_in) is not None
    link = passwords.make_reset(session, rosa.id, None)
    assert passwords.change(session, rosa, OLD, NEW)
    assert accounts.account_of_session(session, signed_in) is None
    assert passwords.reset_of(session, link) is None
    assert accounts.authenticate(session, "rosa", NEW).id == rosa.id

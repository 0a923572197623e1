"""Who somebody is: the owner, invitations, signing in, memberships."""

import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from secrets import token_hex

from sqlalchemy import DateTime, and_, bindparam, case, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.core.errors import Conflict, Forbidden, NotFound, TooMany
from app.core.vocabulary import Role, WritingState
from app.store import audit, credentials
from app.store.claims import reopen_leases
from app.store.models import (
    Account,
    AccountKind,
    Assignment,
    Identity,
    Invitation,
    Judgment,
    Membership,
    Owner,
    Project,
    SetupToken,
    SignIn,
    SignInThrottle,
    Writing,
    new_id,
)

SETUP_LASTS = timedelta(days=1)
INVITATION_LASTS = timedelta(days=7)
SESSION_LASTS = timedelta(days=14)
# From one address, and from all of them: a stranger who guesses at a name does not lock its owner out.
THROTTLE_BY_ADDRESS, THROTTLE_BY_NAME, THROTTLE_WINDOW = 10, 100, timedelta(minutes=5)


@dataclass(frozen=True)
class Member:
    """One person of a project, as admins see them.

    `deactivated_at` is when the project was closed to them, or their whole account (`account_closed`). `seen_at` is
    when they last signed in or judged here.
    """

    account_id: uuid.UUID
    username: str
    role: Role
    pseudonym: str
    joined_at: datetime
    deactivated_at: datetime | None
    is_owner: bool
    seen_at: datetime | None
    account_closed: bool
    erased: bool
    has_password: bool
    has_identity: bool


@dataclass(frozen=True)
class OpenInvitation:
    """An invitation that can still be accepted."""

    id: uuid.UUID
    project_id: uuid.UUID
    project_slug: str
    project_name: str
    role: Role
    expires_at: datetime


def now(s: Session) -> datetime:
    """The database's clock."""
    return s.scalars(select(func.clock_timestamp().cast(DateTime(timezone=True)))).one()


def _new_account(s: Session, username: str, password: str | None) -> Account:
    """Conflict for a taken name, which here is no secret: only people with a valid link get this far."""
    name = credentials.clean_username(username)
    hashed = None if password is None else credentials.hash_password(password)
    key = credentials.username_key(name)
    account = s.scalars(
        insert(Account)
        .values(id=new_id(), kind=AccountKind.PERSON, username=name, username_key=key, password_hash=hashed)
        .on_conflict_do_nothing(index_elements=[Account.username_key])
        .returning(Account)
    ).one_or_none()
    if account is None:
        raise Conflict("This username is taken.", "Choose another one.")
    return account


def join(s: Session, project_id: uuid.UUID, account_id: uuid.UUID, role: Role) -> None:
    """A membership with a fresh pseudonym; somebody who already belongs gets the new role and is let in again."""
    s.execute(
        insert(Membership)
        .values(project_id=project_id, account_id=account_id, role=role, pseudonym=new_pseudonym())
        .on_conflict_do_update(
            index_elements=[Membership.project_id, Membership.account_id],
            set_={"role": role, "deactivated_at": None},
        )
    )


def new_pseudonym() -> str:
    """What stands for an annotator outside: random, so that it says nothing about the account."""
    return f"annotator-{token_hex(6)}"


def owner(s: Session) -> Account | None:
    """The owner of the installation, once there is one."""
    return s.scalars(select(Account).join(Owner)).one_or_none()


def account_named(s: Session, username: str) -> Account:
    """The account of this name, in any case; NotFound where there is none."""
    key = credentials.username_key(username)
    account = s.scalars(select(Account).where(Account.username_key == key)).one_or_none()
    if account is None:
        raise NotFound("There is nobody called %(name)s.", "The People page lists everybody by name.", name=username)
    return account


def issue_setup_token(s: Session) -> str | None:
    """A fresh one-time token that makes the owner, replacing any earlier one; None once an owner exists."""
    if owner(s) is not None:
        return None
    token = credentials.new_token()
    row = {"token_hash": credentials.token_hash(token), "expires_at": func.now() + SETUP_LASTS}
    s.execute(insert(SetupToken).values(**row).on_conflict_do_update(index_elements=["singleton"], set_=row))
    return token


def create_owner(s: Session, token: str, username: str, password: str | None) -> Account:
    """Make the one owner, admin of every project there is. NotFound for a bad token, Conflict when made.

    Without a password (None) the caller links an identity in the same transaction.
    """
    if owner(s) is not None:
        raise Conflict("This installation already has an owner.", "Sign in, or ask the owner for an invitation.")
    # Taking the row is the gate: of many at once exactly one deletes it, the others find nothing.
    taken = s.execute(
        delete(SetupToken)
        .where(SetupToken.token_hash == credentials.token_hash(token), SetupToken.expires_at > func.now())
        .returning(SetupToken.singleton)
    ).one_or_none()
    if taken is None and owner(s) is not None:
        raise Conflict("This installation already has an owner.", "Sign in, or ask the owner for an invitation.")
    if taken is None:
        raise NotFound("This setup link is not valid.", "Restart `pairwright serve` for a fresh one.")
    account = _new_account(s, username, password)
    s.add(Owner(account_id=account.id))
    s.flush()
    let_owner_in(s)
    audit.record(s, None, account.id, "owner.create", str(account.id))
    return account


def let_owner_in(s: Session) -> None:
    """Make the owner, if there is one, admin of each project that misses them.

    Whoever commits a project calls it once more afterwards: an owner made meanwhile could not see that project. The
    lock lasts until the commit, so of two callers the later one sees what the earlier one did.
    """
    s.execute(select(func.pg_advisory_xact_lock(func.hashtextextended("owner joins", 0))))
    the_owner = owner(s)
    if the_owner is None:
        return
    theirs = select(Membership.project_id).where(Membership.account_id == the_owner.id)
    for project_id in s.scalars(select(Project.id).where(Project.id.not_in(theirs))):
        join(s, project_id, the_owner.id, Role.ADMIN)


def authenticate(s: Session, username: str, password: str, address: str = "") -> Account | None:
    """The account whose name and password these are, else None after the same work.

    Raises TooMany after ten attempts at one name from one client's address within five minutes, or a hundred from all.
    Commit even when it returns None: that is how attempts are counted.
    """
    key = credentials.username_key(username)
    # Always in this order: what holds the name's row never waits for another who holds it.
    by_name, by_address = credentials.token_hash(key), credentials.token_hash(f"{key}\0{address}")
    for name_hash, most in ((by_name, THROTTLE_BY_NAME), (by_address, THROTTLE_BY_ADDRESS)):
        if attempts(s, name_hash) > most:
            raise TooMany("Too many attempts to sign in with this name.", "Wait five minutes and try again.")
    account = s.scalars(select(Account).where(Account.username_key == key)).one_or_none()
    if not credentials.password_matches(account.password_hash if account else None, password):
        return None
    s.execute(delete(SignInThrottle).where(SignInThrottle.name_hash.in_([by_name, by_address])))
    return account if account is not None and account.deactivated_at is None else None


def attempts(s: Session, name_hash: bytes) -> int:
    """Count an attempt; how many there were in the window."""
    stale = SignInThrottle.since < func.now() - THROTTLE_WINDOW
    # The row lock makes parallel guesses at one name queue up, so that each is counted before it is tried.
    return s.execute(
        insert(SignInThrottle)
        .values(name_hash=name_hash, attempts=1)
        .on_conflict_do_update(
            index_elements=[SignInThrottle.name_hash],
            set_={
                "attempts": case((stale, 1), else_=SignInThrottle.attempts + 1),
                "since": case((stale, func.now()), else_=SignInThrottle.since),
            },
        )
        .returning(SignInThrottle.attempts)
    ).scalar_one()


def open_session(s: Session, account_id: uuid.UUID) -> str:
    """Sign a browser in: a new random token, of which only the hash is stored."""
    token = credentials.new_token()
    s.execute(delete(SignIn).where(SignIn.account_id == account_id, SignIn.expires_at <= func.now()))
    s.execute(delete(SignInThrottle).where(SignInThrottle.since < func.now() - THROTTLE_WINDOW))
    s.execute(
        insert(SignIn).values(
            token_hash=credentials.token_hash(token), account_id=account_id, expires_at=func.now() + SESSION_LASTS
        )
    )
    return token


def account_of_session(s: Session, token: str) -> Account | None:
    """The active account behind a session token that has not expired."""
    return s.scalars(
        select(Account)
        .join(SignIn)
        .where(
            SignIn.token_hash == credentials.token_hash(token),
            SignIn.expires_at > func.now(),
            Account.deactivated_at.is_(None),
        )
    ).one_or_none()


# Who asks, for what, and as what: one statement, made once.
_ENTERING = (
    select(Account, Project, Membership.role)
    .join(SignIn, SignIn.account_id == Account.id)
    .outerjoin(Project, Project.slug == bindparam("slug"))
    .outerjoin(
        Membership,
        and_(
            Membership.project_id == Project.id,
            Membership.account_id == Account.id,
            Membership.deactivated_at.is_(None),
        ),
    )
    .where(
        SignIn.token_hash == bindparam("token_hash"),
        SignIn.expires_at > func.now(),
        Account.deactivated_at.is_(None),
    )
)


def entering(s: Session, token: str, slug: str) -> tuple[Account, Project | None, Role | None] | None:
    """The active account behind a session token, the project of that name, and the account's role there.

    The project is None where there is none or the account does not belong to it.
    """
    values = {"token_hash": credentials.token_hash(token), "slug": slug}
    row = s.execute(_ENTERING, values, execution_options={"populate_existing": True}).one_or_none()
    if row is None:
        return None
    account, project, role = row
    return (account, project, role) if role is not None else (account, None, None)


def close_session(s: Session, token: str) -> None:
    """Sign a browser out."""
    s.execute(delete(SignIn).where(SignIn.token_hash == credentials.token_hash(token)))


def close_all_sessions(s: Session, account_id: uuid.UUID) -> None:
    """Sign every browser of an account out."""
    s.execute(delete(SignIn).where(SignIn.account_id == account_id))


def invite(
    s: Session,
    project_id: uuid.UUID,
    role: Role,
    by: uuid.UUID | None,
    lasts: timedelta = INVITATION_LASTS,
    note: str = "",
) -> str:
    """A one-time token that lets one person join with this role; `note` reminds admins whom it is for."""
    token = credentials.new_token()
    row = Invitation(
        project_id=project_id,
        role=role,
        token_hash=credentials.token_hash(token),
        note=note.strip(),
        created_by=by,
        expires_at=now(s) + lasts,
    )
    s.add(row)
    s.flush()
    audit.record(s, project_id, by, "invitation.create", str(row.id), {"role": role})
    return token


def invitation(s: Session, token: str) -> OpenInvitation:
    """What a token invites to. NotFound for an unknown one, Conflict for a used or an expired one."""
    return _open_invitation(s, token, lock=False)


def _open_invitation(s: Session, token: str, *, lock: bool) -> OpenInvitation:
    query = (
        select(Invitation, Project.slug, Project.name, Invitation.expires_at <= func.now())
        .join(Project)
        .where(Invitation.token_hash == credentials.token_hash(token))
    )
    found = s.execute(
        (query.with_for_update(of=Invitation) if lock else query).execution_options(populate_existing=True)
    ).one_or_none()
    if found is None:
        raise NotFound("This invitation does not exist.", "Check that the whole link was copied.")
    row, slug, name, expired = found
    if row.used_at is not None:
        raise Conflict("This invitation has been used.", "Sign in, or ask for a new link.")
    if expired:
        raise Conflict("This invitation has expired.", "Ask for a new link.")
    return OpenInvitation(row.id, row.project_id, slug, name, row.role, row.expires_at)


def accept_invitation(
    s: Session, token: str, username: str = "", password: str | None = "", account_id: uuid.UUID | None = None
) -> Account:
    """Join by a new account, or as the one that is signed in (`account_id`). Raises as `invitation`, and Invalid.

    Without a password (None) the caller links an identity in the same transaction.
    """
    offer = _open_invitation(s, token, lock=True)
    if account_id is None:
        account = _new_account(s, username, password)
    else:
        account = s.get_one(Account, account_id)
        if membership(s, offer.project_id, account_id) is not None:
            raise Conflict("You already belong to this project.", "The link stays good for somebody else.")
    join(s, offer.project_id, account.id, offer.role)
    s.execute(
        update(Invitation).where(Invitation.id == offer.id).values(used_at=func.clock_timestamp(), used_by=account.id)
    )
    audit.record(s, offer.project_id, account.id, "invitation.accept", str(offer.id), {"role": offer.role})
    return account


def members(s: Session, project_id: uuid.UUID) -> list[Member]:
    """The people of a project, by the time they joined; imported annotators are left out."""
    signed_in = select(func.max(SignIn.created_at)).where(SignIn.account_id == Account.id).scalar_subquery()
    judged = (
        select(func.max(Judgment.judged_at))
        .where(Judgment.project_id == project_id, Judgment.account_id == Account.id, ~Judgment.withdrawn)
        .scalar_subquery()
    )
    has_identity = select(Identity.account_id).where(Identity.account_id == Account.id).exists()
    rows = s.execute(
        select(Membership, Account, Owner.account_id, func.greatest(signed_in, judged), has_identity)
        .join(Account, Account.id == Membership.account_id)
        .outerjoin(Owner, Owner.account_id == Account.id)
        .where(Membership.project_id == project_id, Account.kind == AccountKind.PERSON)
        .order_by(Membership.joined_at, Account.id)
        .execution_options(populate_existing=True)
    )
    return [
        Member(
            account_id=account.id,
            username=account.username or "(erased)",
            role=member.role,
            pseudonym=member.pseudonym,
            joined_at=member.joined_at,
            deactivated_at=member.deactivated_at or account.deactivated_at,
            is_owner=owner_id is not None,
            seen_at=seen_at,
            account_closed=account.deactivated_at is not None,
            erased=account.erased_at is not None,
            has_password=account.password_hash is not None,
            has_identity=linked,
        )
        for member, account, owner_id, seen_at, linked in rows
    ]


def membership(s: Session, project_id: uuid.UUID, account_id: uuid.UUID) -> Membership | None:
    """What this account may do here right now; None for a stranger or somebody deactivated."""
    return s.scalars(
        select(Membership)
        .join(Account, Account.id == Membership.account_id)
        .where(
            Membership.project_id == project_id,
            Membership.account_id == account_id,
            Membership.deactivated_at.is_(None),
            Account.deactivated_at.is_(None),
        )
        .execution_options(populate_existing=True)
    ).one_or_none()


def deactivate(s: Session, project_id: uuid.UUID, account_id: uuid.UUID, by: uuid.UUID) -> None:
    """Close a project to one person and reopen their leased slots; their judgments stay. Conflict for the owner."""
    if is_owner(s, account_id):
        raise Conflict("The owner cannot be deactivated.")
    if account_id == by:
        raise Conflict("Nobody can deactivate themselves.", "Another admin can.")
    hold_admins(s, project_id, by)
    member = membership(s, project_id, account_id)
    if member is None:
        raise NotFound("This person does not belong to the project.")
    member.deactivated_at = now(s)
    s.flush()
    hand_back(s, account_id, project_id)
    audit.record(s, project_id, by, "member.deactivate", str(account_id))


def is_owner(s: Session, account_id: uuid.UUID | None) -> bool:
    """Whether this account owns the installation."""
    return account_id is not None and s.scalars(select(Owner.account_id)).one_or_none() == account_id


def hold_admins(s: Session, project_id: uuid.UUID, by: uuid.UUID) -> None:
    """Lock a project's admins, of whom `by` must still be one: two who demote each other leave one of them."""
    rows = s.scalars(
        select(Membership.account_id)
        .where(Membership.project_id == project_id, Membership.role == Role.ADMIN, Membership.deactivated_at.is_(None))
        .order_by(Membership.account_id)
        .with_for_update(key_share=True)
    )
    if by not in set(rows):
        raise Forbidden("You are no longer an admin of this project.", "Ask one who is.")


def hand_back(s: Session, account_id: uuid.UUID, project_id: uuid.UUID | None = None) -> None:
    """Reopen what this person holds, in one project or in all, so that others get it now and not when it runs out."""
    leases, writing = [Assignment.account_id == account_id], [Writing.account_id == account_id]
    if project_id is not None:
        leases.append(Assignment.project_id == project_id)
        writing.append(Writing.project_id == project_id)
    reopen_leases(s, *leases)
    s.execute(
        update(Writing)
        .where(Writing.state == WritingState.LEASED, *writing)
        .values(state=WritingState.EXPIRED, lease_expires_at=None),
        execution_options={"synchronize_session": False},
    )

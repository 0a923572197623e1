"""What admins and the owner do with people who are here: roles, closing and opening, erasing, open invitations."""

import uuid
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from app.core.errors import Conflict, Forbidden, NotFound
from app.core.vocabulary import Role
from app.store import accounts, audit
from app.store.models import Account, Draft, Identity, Invitation, Membership, PasswordReset, SignIn


@dataclass(frozen=True)
class SentInvitation:
    """An invitation that nobody has accepted yet, as admins see it."""

    id: uuid.UUID
    role: Role
    note: str
    invited_by: str | None
    created_at: datetime
    expires_at: datetime


@dataclass(frozen=True)
class Browser:
    """A browser that is signed in as somebody. `id` is the hash of its token: it lets nobody in."""

    id: str
    since: datetime
    until: datetime


def member(s: Session, project_id: uuid.UUID, account_id: uuid.UUID) -> accounts.Member:
    """One person of the project, closed to them or not; NotFound for anybody else."""
    found = next((one for one in accounts.members(s, project_id) if one.account_id == account_id), None)
    if found is None:
        raise NotFound("This person does not belong to the project.")
    return found


def set_role(s: Session, project_id: uuid.UUID, account_id: uuid.UUID, role: Role, by: uuid.UUID) -> None:
    """Give somebody another role in the project. The owner stays admin, and nobody changes their own."""
    now = member(s, project_id, account_id)
    if now.is_owner:
        raise Conflict("The owner is an admin of every project.")
    if account_id == by:
        raise Conflict("Nobody can change their own role.", "Another admin can.")
    accounts.hold_admins(s, project_id, by)
    s.execute(
        update(Membership)
        .where(Membership.project_id == project_id, Membership.account_id == account_id)
        .values(role=role)
    )
    if role is Role.RESEARCHER:
        # Researchers judge nothing: what this person held goes to others.
        accounts.hand_back(s, account_id, project_id)
    audit.record(s, project_id, by, "member.role", str(account_id), {"from": now.role, "to": role})


def reactivate(s: Session, project_id: uuid.UUID, account_id: uuid.UUID, by: uuid.UUID) -> None:
    """Open the project again to somebody it was closed to, in the role they had."""
    one = member(s, project_id, account_id)
    if one.erased or one.account_closed:
        raise Conflict("Their whole account is closed.", "Only the owner of the installation can open it again.")
    accounts.hold_admins(s, project_id, by)
    s.execute(
        update(Membership)
        .where(Membership.project_id == project_id, Membership.account_id == account_id)
        .values(deactivated_at=None)
    )
    audit.record(s, project_id, by, "member.reactivate", str(account_id))


def close_account(s: Session, account_id: uuid.UUID, by: uuid.UUID) -> None:
    """Close the whole installation to somebody: signed out everywhere, what they held reopened, judgments kept."""
    account = _for_owner(s, account_id, by)
    if account.deactivated_at is None:
        account.deactivated_at = accounts.now(s)
    s.flush()
    _shut_out(s, account_id)
    audit.record(s, None, by, "account.deactivate", str(account_id))


def open_account(s: Session, account_id: uuid.UUID, by: uuid.UUID) -> None:
    """Let somebody in again whose whole account was closed; projects that were closed to them stay so."""
    account = _for_owner(s, account_id, by)
    if account.erased_at is not None:
        raise Conflict("This account was erased.", "Invite the person anew.")
    account.deactivated_at = None
    s.flush()
    audit.record(s, None, by, "account.reactivate", str(account_id))


def erase(s: Session, account_id: uuid.UUID, by: uuid.UUID) -> None:
    """Clear who somebody is, for good: name, password, identities, sign-ins, drafts. Judgments stay, by pseudonym."""
    account = _for_owner(s, account_id, by)
    moment = accounts.now(s)
    account.deactivated_at = account.deactivated_at or moment
    account.erased_at = account.erased_at or moment
    account.username = account.username_key = account.password_hash = None
    s.flush()
    _shut_out(s, account_id)
    s.execute(delete(Identity).where(Identity.account_id == account_id))
    s.execute(delete(Draft).where(Draft.account_id == account_id))
    audit.record(s, None, by, "account.erase", str(account_id))


def _for_owner(s: Session, account_id: uuid.UUID, by: uuid.UUID) -> Account:
    account = s.scalars(select(Account).where(Account.id == account_id).with_for_update()).one_or_none()
    if account is None:
        raise NotFound("There is no such person.")
    if not accounts.is_owner(s, by):
        raise Forbidden("Only the owner of the installation may do this.", "An admin can close a project to somebody.")
    if account_id == by:
        raise Conflict("The owner's account cannot be closed.")
    return account


def _shut_out(s: Session, account_id: uuid.UUID) -> None:
    accounts.close_all_sessions(s, account_id)
    s.execute(delete(PasswordReset).where(PasswordReset.account_id == account_id, PasswordReset.used_at.is_(None)))
    accounts.hand_back(s, account_id)


def open_invitations(s: Session, project_id: uuid.UUID) -> list[SentInvitation]:
    """The invitations that can still be accepted, newest first."""
    rows = s.execute(
        select(Invitation, Account.username)
        .outerjoin(Account, Account.id == Invitation.created_by)
        .where(Invitation.project_id == project_id, Invitation.used_at.is_(None), Invitation.expires_at > func.now())
        .order_by(Invitation.created_at.desc())
    )
    return [SentInvitation(row.id, row.role, row.note, name, row.created_at, row.expires_at) for row, name in rows]


def revoke(s: Session, project_id: uuid.UUID, invitation_id: uuid.UUID, by: uuid.UUID) -> None:
    """Make an open invitation worthless; its link then reads like one that never was."""
    gone = s.execute(
        delete(Invitation)
        .where(Invitation.project_id == project_id, Invitation.id == invitation_id, Invitation.used_at.is_(None))
        .returning(Invitation.id)
    ).one_or_none()
    if gone is None:
        raise NotFound("This invitation is not open any more.")
    audit.record(s, project_id, by, "invitation.revoke", str(invitation_id))


def browsers(s: Session, account_id: uuid.UUID) -> list[Browser]:
    """Where somebody is signed in, newest first."""
    rows = s.scalars(
        select(SignIn)
        .where(SignIn.account_id == account_id, SignIn.expires_at > func.now())
        .order_by(SignIn.created_at.desc())
    )
    return [Browser(row.token_hash.hex(), row.created_at, row.expires_at) for row in rows]


def end_browsers(s: Session, account_id: uuid.UUID, keep: str, only: str = "") -> None:
    """Sign out one browser of this account, or all but the one to keep."""
    which = SignIn.token_hash == bytes.fromhex(only) if only else SignIn.token_hash != bytes.fromhex(keep)
    s.execute(delete(SignIn).where(SignIn.account_id == account_id, which))
    audit.record(s, None, account_id, "sign_in.end", str(account_id))

"""Who somebody is: the owner, invitations, signing in, memberships."""

import uuid
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.orm import Session

from app.core.vocabulary import Role
from app.store.models import Account, Membership


@dataclass(frozen=True)
class Member:
    """One person of a project, as admins see them."""

    account_id: uuid.UUID
    username: str
    role: Role
    pseudonym: str
    joined_at: datetime
    deactivated_at: datetime | None
    is_owner: bool


@dataclass(frozen=True)
class OpenInvitation:
    """An invitation that can still be accepted."""

    id: uuid.UUID
    project_id: uuid.UUID
    project_slug: str
    project_name: str
    role: Role
    expires_at: datetime


def owner(s: Session) -> Account | None:
    """The owner of the installation, once there is one."""
    raise NotImplementedError


def issue_setup_token(s: Session) -> str | None:
    """A fresh one-time token that makes the owner, replacing any earlier one; None once an owner exists."""
    raise NotImplementedError


def create_owner(s: Session, token: str, username: str, password: str) -> Account:
    """Make the one owner, admin of every project there is. NotFound for a bad token, Conflict when made."""
    raise NotImplementedError


def authenticate(s: Session, username: str, password: str) -> Account | None:
    """The account whose name and password these are, else None after the same work.

    Raises TooMany after ten attempts at one name within five minutes. Commit even when it returns None: that is how
    attempts are counted.
    """
    raise NotImplementedError


def open_session(s: Session, account_id: uuid.UUID) -> str:
    """Sign a browser in: a new random token, of which only the hash is stored."""
    raise NotImplementedError


def account_of_session(s: Session, token: str) -> Account | None:
    """The active account behind a session token that has not expired."""
    raise NotImplementedError


def close_session(s: Session, token: str) -> None:
    """Sign a browser out."""
    raise NotImplementedError


def invite(s: Session, project_id: uuid.UUID, role: Role, by: uuid.UUID | None) -> str:
    """A one-time token that lets one person join with this role; it expires after a week."""
    raise NotImplementedError


def invitation(s: Session, token: str) -> OpenInvitation:
    """What a token invites to. NotFound for an unknown one, Conflict for a used or an expired one."""
    raise NotImplementedError


def accept_invitation(
    s: Session, token: str, username: str = "", password: str = "", account_id: uuid.UUID | None = None
) -> Account:
    """Join by a new account, or as the one that is signed in (`account_id`). Raises as `invitation`, and Invalid."""
    raise NotImplementedError


def members(s: Session, project_id: uuid.UUID) -> list[Member]:
    """The people of a project, by the time they joined; imported annotators are left out."""
    raise NotImplementedError


def membership(s: Session, project_id: uuid.UUID, account_id: uuid.UUID) -> Membership | None:
    """What this account may do here right now; None for a stranger or somebody deactivated."""
    raise NotImplementedError


def deactivate(s: Session, project_id: uuid.UUID, account_id: uuid.UUID, by: uuid.UUID) -> None:
    """Close a project to one person and reopen their leased slots; their judgments stay. Conflict for the owner."""
    raise NotImplementedError

"""What annotators are asked to go by, version by version, and who has read which."""

import uuid
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.core.errors import NotFound
from app.store.models import Account, Guideline, Membership, Project


@dataclass(frozen=True)
class Version:
    """One version; `by` is the name of who saved it, None where nobody signed in did."""

    version: int
    body: str
    by: str | None
    at: datetime


def current(s: Session, project_id: uuid.UUID) -> Version:
    """The version that people go by now."""
    return version(s, project_id, s.scalars(select(Project.guideline_version).where(Project.id == project_id)).one())


def version(s: Session, project_id: uuid.UUID, number: int) -> Version:
    """One version, current or old; NotFound."""
    query = (
        select(Guideline.version, Guideline.body, Account.username, Guideline.created_at)
        .outerjoin(Account, Account.id == Guideline.created_by)
        .where(Guideline.project_id == project_id, Guideline.version == number)
    )
    # Beyond what the column holds there is nothing either.
    row = s.execute(query).one_or_none() if 0 < number < 2**31 else None
    if row is None:
        raise NotFound("There is no such version of the guidelines.")
    return Version(*row)


def versions(s: Session, project_id: uuid.UUID, at_most: int = 200) -> list[Version]:
    """All versions without their texts, newest first."""
    query = (
        select(Guideline.version, func.left(Guideline.body, 0), Account.username, Guideline.created_at)
        .outerjoin(Account, Account.id == Guideline.created_by)
        .where(Guideline.project_id == project_id)
        .order_by(Guideline.version.desc())
        .limit(at_most)
    )
    return [Version(*row) for row in s.execute(query)]


def read_by(s: Session, project_id: uuid.UUID, account_id: uuid.UUID) -> int:
    """The newest version that this person has read; 0: none yet."""
    query = select(Membership.guidelines_read).where(
        Membership.project_id == project_id, Membership.account_id == account_id
    )
    return s.scalars(query).one()


def mark_read(s: Session, project_id: uuid.UUID, account_id: uuid.UUID, number: int) -> None:
    """This person has read a version; an older one says nothing new. NotFound for one that does not exist."""
    version(s, project_id, number)
    s.execute(
        update(Membership)
        .where(Membership.project_id == project_id, Membership.account_id == account_id)
        .values(guidelines_read=func.greatest(Membership.guidelines_read, number)),
        execution_options={"synchronize_session": False},
    )

"""Handing out comparisons: slots, assignments, leases, all on the database's clock."""

import uuid
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.orm import Session

from app.core.records import Message


@dataclass(frozen=True)
class Task:
    """One comparison as one person is shown it.

    `answers` are in the order of serving; `order[i]` is the canonical position of `answers[i]`. `policies` names the
    policy of each answer, in the same order (None: not ours), for admins only.
    """

    comparison_id: uuid.UUID
    prompt: list[Message]
    answers: list[str]
    order: list[int]
    lease_expires_at: datetime
    policies: list[str | None]


def claim(s: Session, project_id: uuid.UUID, account_id: uuid.UUID, count: int = 2) -> list[Task]:
    """Up to `count` comparisons leased to this person: first those that already are (two tabs share), then new ones.

    An empty list means that nothing waits for this person. NotFound for somebody who is not, or no longer, a member.
    """
    raise NotImplementedError


def tasks(s: Session, project_id: uuid.UUID, account_id: uuid.UUID, comparison_ids: list[uuid.UUID]) -> list[Task]:
    """The texts of comparisons that this person holds a lease on, in the order given; others are left out."""
    raise NotImplementedError


def expire_leases(s: Session, project_id: uuid.UUID | None = None) -> int:
    """Reopen the slots of leases that have run out, in one project or in all; returns how many leases that were."""
    raise NotImplementedError

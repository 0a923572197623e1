"""Whether somebody may judge right now, and if not, why: what every page that hands out work asks first."""

import uuid
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import text
from sqlalchemy.orm import Session

from app.core.errors import NotFound

Why = Literal["paused", "failed", "cap", "admins"]


@dataclass(frozen=True)
class Standing:
    """One person in one project. `why` says what keeps them from new work; what they hold is still taken.

    `unread` is the version of the guidelines to read first; None: read, or there are none. `qualifying` is true until
    the round of gold comparisons is passed. `left` counts the judgments under the cap; None: no cap.
    """

    why: Why | None
    unread: int | None
    qualifying: bool
    left: int | None


_STANDING = text(
    """
    SELECT m.role, m.paused_at IS NOT NULL AS paused, m.failed_at IS NOT NULL AS failed,
        m.qualified_at IS NOT NULL AS qualified, m.guidelines_read, p.guideline_version, p.cap, p.admins_judge,
        p.qualify_on, g.body <> '' AS has_guidelines,
        CASE WHEN p.cap IS NULL THEN 0 ELSE (
            SELECT count(*) FROM judgment j
            WHERE j.project_id = m.project_id AND j.account_id = m.account_id AND NOT j.withdrawn
        ) + (
            SELECT count(*) FROM writing w
            WHERE w.project_id = m.project_id AND w.account_id = m.account_id AND w.state = 'written'
        ) END AS given
    FROM membership m
    JOIN project p ON p.id = m.project_id
    JOIN guideline g ON g.project_id = p.id AND g.version = p.guideline_version
    WHERE m.project_id = :project AND m.account_id = :account AND m.deactivated_at IS NULL
    """
)


def standing(s: Session, project_id: uuid.UUID, account_id: uuid.UUID) -> Standing:
    """How this person stands in this project; NotFound for somebody who is not, or no longer, a member."""
    row = s.execute(_STANDING, {"project": project_id, "account": account_id}).one_or_none()
    if row is None:
        raise NotFound("You are not a member of this project.")
    is_admin = row.role == "admin"
    left = None if row.cap is None else max(0, row.cap - row.given)
    why: Why | None = None
    if row.paused:
        why = "paused"
    elif is_admin and not row.admins_judge:
        why = "admins"
    elif row.qualify_on and row.failed:
        why = "failed"
    elif left == 0:
        why = "cap"
    return Standing(
        why=why,
        unread=row.guideline_version if row.has_guidelines and row.guidelines_read < row.guideline_version else None,
        # Admins wrote the gold; they need not pass it.
        qualifying=bool(row.qualify_on) and not row.qualified and not is_admin,
        left=left,
    )

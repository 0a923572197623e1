"""The audit log: who did what, in ids and counts."""

import uuid
from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.store.models import AuditEvent


def record(
    s: Session,
    project_id: uuid.UUID | None,
    account_id: uuid.UUID | None,
    action: str,
    subject: str,
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Append one event; `action` reads like "run.cancel", `subject` is an id."""
    s.add(
        AuditEvent(
            project_id=project_id, account_id=account_id, action=action, subject=subject, detail=dict(detail or {})
        )
    )


def events(s: Session, project_id: uuid.UUID, limit: int = 200) -> list[AuditEvent]:
    """A project's events, newest first."""
    query = select(AuditEvent).where(AuditEvent.project_id == project_id).order_by(AuditEvent.id.desc()).limit(limit)
    return list(s.scalars(query))

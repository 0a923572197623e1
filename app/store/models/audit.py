"""Who did what."""

import uuid
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Identity, Index, Text
from sqlalchemy.orm import Mapped, mapped_column

from app.store.models.base import Base, Created


class AuditEvent(Base):
    """Something that a person, or the installation itself, did; append-only. Ids and counts only, never texts."""

    __tablename__ = "audit_event"
    __table_args__ = (Index(None, "project_id", "id"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    project_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("project.id"))
    account_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("account.id"))
    action: Mapped[str] = mapped_column(Text)
    subject: Mapped[str] = mapped_column(Text)
    detail: Mapped[dict[str, Any]]
    created_at: Mapped[Created]

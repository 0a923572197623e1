"""Frozen sets of judgments."""

import uuid
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, ForeignKeyConstraint, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.store.models.base import Base, Created, Id


class Snapshot(Base):
    """The exact judgment revisions that a run or an export reads. Immutable.

    `sha256` is that of its canonical JSONL: one `PreferenceRecord` a line, ordered by judgment id.
    """

    __tablename__ = "snapshot"
    __table_args__ = (
        UniqueConstraint("project_id", "id"),
        CheckConstraint("sha256 ~ '^[0-9a-f]{64}$'", name="sha256"),
        CheckConstraint("train >= 0 AND heldout >= 0", name="counts"),
    )

    id: Mapped[Id]
    project_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("project.id"), index=True)
    schema_version: Mapped[int] = mapped_column(default=1)
    sha256: Mapped[str] = mapped_column(Text)
    query: Mapped[dict[str, Any]]
    train: Mapped[int]
    heldout: Mapped[int]
    created_by: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("account.id"))
    created_at: Mapped[Created]


class SnapshotJudgment(Base):
    """One revision that belongs to a snapshot."""

    __tablename__ = "snapshot_judgment"
    __table_args__ = (
        ForeignKeyConstraint(
            ["judgment_id", "revision"], ["judgment_revision.judgment_id", "judgment_revision.revision"]
        ),
    )

    snapshot_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("snapshot.id"), primary_key=True)
    judgment_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    revision: Mapped[int]

"""Trained models and the pointer that moves between them."""

import uuid
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, ForeignKeyConstraint, Identity, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.core.vocabulary import CheckpointKind
from app.store.models.base import Base, Created, Id, words


class Checkpoint(Base):
    """A finished model on disk: its folder, the SHA-256 of each file, its parent and the run that made it. Immutable.

    `name` is `v1`, `v2`, ... for policies and `r1`, `r2`, ... for reward models unless somebody chose another.
    """

    __tablename__ = "checkpoint"
    __table_args__ = (
        UniqueConstraint("project_id", "id"),
        UniqueConstraint("project_id", "id", "kind"),
        UniqueConstraint("project_id", "kind", "number"),
        UniqueConstraint("project_id", "name"),
        ForeignKeyConstraint(["project_id", "run_id"], ["run.project_id", "run.id"], use_alter=True),
        ForeignKeyConstraint(["project_id", "parent_id"], ["checkpoint.project_id", "checkpoint.id"]),
        CheckConstraint("number > 0", name="number"),
        CheckConstraint("folder_name !~ '/' AND folder_name NOT IN ('', '.', '..')", name="folder_is_a_name"),
    )

    id: Mapped[Id]
    project_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("project.id"))
    kind: Mapped[CheckpointKind] = mapped_column(words(CheckpointKind, "kind"))
    number: Mapped[int]
    name: Mapped[str] = mapped_column(Text)
    run_id: Mapped[uuid.UUID | None]
    parent_id: Mapped[uuid.UUID | None]
    folder_name: Mapped[str] = mapped_column(Text, unique=True)
    files: Mapped[dict[str, Any]]
    metrics: Mapped[dict[str, Any]]
    created_at: Mapped[Created]


class Promotion(Base):
    """One move of a project's pointer to its current policy; append-only. `rolled_back` moves to an earlier policy."""

    __tablename__ = "promotion"
    __table_args__ = (
        ForeignKeyConstraint(["project_id", "checkpoint_id"], ["checkpoint.project_id", "checkpoint.id"]),
        ForeignKeyConstraint(["project_id", "previous_id"], ["checkpoint.project_id", "checkpoint.id"]),
        CheckConstraint("retired >= 0", name="retired"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    project_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("project.id"), index=True)
    checkpoint_id: Mapped[uuid.UUID]
    previous_id: Mapped[uuid.UUID | None]
    rolled_back: Mapped[bool] = mapped_column(default=False)
    retired: Mapped[int] = mapped_column(default=0)
    by_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("account.id"))
    created_at: Mapped[Created]

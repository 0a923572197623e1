"""Projects, who belongs to them, and who was asked to."""

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, Computed, ForeignKey, ForeignKeyConstraint, LargeBinary, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.core.vocabulary import Role
from app.store.models.base import Base, Created, Id, words


class Project(Base):
    """Prompts and judgments with one current policy. Salt and held-out share never change: they make the split."""

    __tablename__ = "project"
    __table_args__ = (
        CheckConstraint("slug ~ '^[a-z0-9][a-z0-9-]{0,62}$'", name="slug_is_plain"),
        CheckConstraint("votes_wanted BETWEEN 1 AND 100", name="votes_wanted"),
        CheckConstraint("heldout_share > 0 AND heldout_share < 1", name="heldout_share"),
        CheckConstraint("lease_seconds > 0", name="lease_seconds"),
        CheckConstraint("pool_target >= 0", name="pool_target"),
        # The pointer names a policy of this very project, never a reward model.
        ForeignKeyConstraint(
            ["id", "current_policy_id", "current_policy_kind"],
            ["checkpoint.project_id", "checkpoint.id", "checkpoint.kind"],
            name="fk_project_current_policy",
            use_alter=True,
        ),
        ForeignKeyConstraint(
            ["id", "guideline_version"],
            ["guideline.project_id", "guideline.version"],
            name="fk_project_guideline",
            use_alter=True,
            deferrable=True,
            initially="DEFERRED",
        ),
    )

    id: Mapped[Id]
    slug: Mapped[str] = mapped_column(Text, unique=True)
    name: Mapped[str] = mapped_column(Text)
    salt: Mapped[str] = mapped_column(Text)
    heldout_share: Mapped[float]
    votes_wanted: Mapped[int] = mapped_column(default=1)
    sampling: Mapped[dict[str, Any]]
    current_policy_id: Mapped[uuid.UUID | None]
    current_policy_kind: Mapped[str] = mapped_column(Text, Computed("'policy'", persisted=True))
    pool_target: Mapped[int] = mapped_column(default=64)
    lease_seconds: Mapped[int] = mapped_column(default=600)
    guideline_version: Mapped[int] = mapped_column(default=1)
    allow_tie: Mapped[bool] = mapped_column(default=True)
    allow_both_bad: Mapped[bool] = mapped_column(default=True)
    ask_strength: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[Created]


class Guideline(Base):
    """One version of what annotators are asked to go by. Append-only: a judgment names its version."""

    __tablename__ = "guideline"

    project_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("project.id"), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[str] = mapped_column(Text)
    created_at: Mapped[Created]


class Membership(Base):
    """What one account may do in one project, and the random pseudonym that stands for it outside.

    `source` is the label of an imported annotator in the file that it came from.
    """

    __tablename__ = "membership"
    __table_args__ = (
        UniqueConstraint("project_id", "pseudonym"),
        UniqueConstraint("project_id", "source"),
    )

    project_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("project.id"), primary_key=True)
    account_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("account.id"), primary_key=True, index=True)
    role: Mapped[Role] = mapped_column(words(Role, "role"))
    pseudonym: Mapped[str] = mapped_column(Text)
    source: Mapped[str | None] = mapped_column(Text)
    joined_at: Mapped[Created]
    deactivated_at: Mapped[datetime | None]


class Invitation(Base):
    """A one-time link into a project with a role; only the hash of its token is kept."""

    __tablename__ = "invitation"
    __table_args__ = (CheckConstraint("(used_at IS NULL) = (used_by IS NULL)", name="used_by_somebody"),)

    id: Mapped[Id]
    project_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("project.id"), index=True)
    role: Mapped[Role] = mapped_column(words(Role, "role"))
    token_hash: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    created_by: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("account.id"))
    created_at: Mapped[Created]
    expires_at: Mapped[datetime]
    used_at: Mapped[datetime | None]
    used_by: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("account.id"))

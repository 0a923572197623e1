"""Projects, who belongs to them, and who was asked to."""

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import (
    CheckConstraint,
    Computed,
    ForeignKey,
    ForeignKeyConstraint,
    LargeBinary,
    SmallInteger,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from app.core.vocabulary import Mode, Role
from app.store.models.base import Base, Created, Id, words


class Project(Base):
    """Prompts and judgments with one current policy. Salt and held-out share never change: they make the split.

    `answers` are how many a comparison has. `chat_policy_id` answers beside the current policy in a chat; null: the
    current one answers twice. `gold_rate` and `repeat_rate` are the shares of tasks that check the annotator.
    `qualify_on` gold comparisons come first for everybody, of which `qualify_at` must be right; 0: nobody qualifies.
    `cap` is the most judgments that one person may give; null: no limit.
    """

    __tablename__ = "project"
    __table_args__ = (
        CheckConstraint("slug ~ '^[a-z0-9][a-z0-9-]{0,62}$'", name="slug_is_plain"),
        CheckConstraint("votes_wanted BETWEEN 1 AND 100", name="votes_wanted"),
        CheckConstraint("heldout_share > 0 AND heldout_share < 1", name="heldout_share"),
        CheckConstraint("lease_seconds > 0", name="lease_seconds"),
        CheckConstraint("pool_target >= 0", name="pool_target"),
        CheckConstraint("CASE WHEN mode = 'rank' THEN answers BETWEEN 3 AND 9 ELSE answers = 2 END", name="answers"),
        CheckConstraint("chat_turns BETWEEN 1 AND 50", name="chat_turns"),
        CheckConstraint("gold_rate BETWEEN 0 AND 0.5 AND repeat_rate BETWEEN 0 AND 0.5", name="check_rates"),
        CheckConstraint("qualify_on BETWEEN 0 AND 100 AND qualify_at BETWEEN 0.5 AND 1", name="qualification"),
        CheckConstraint("cap > 0", name="cap"),
        ForeignKeyConstraint(
            ["id", "chat_policy_id", "current_policy_kind"],
            ["checkpoint.project_id", "checkpoint.id", "checkpoint.kind"],
            name="fk_project_chat_policy",
            use_alter=True,
        ),
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
    mode: Mapped[Mode] = mapped_column(words(Mode, "mode"), default=Mode.PAIR, server_default="pair")
    answers: Mapped[int] = mapped_column(SmallInteger, default=2, server_default="2")
    ask_flags: Mapped[bool] = mapped_column(default=True, server_default=text("true"))
    ask_ratings: Mapped[bool] = mapped_column(default=False, server_default=text("false"))
    ask_rationale: Mapped[bool] = mapped_column(default=True, server_default=text("true"))
    ask_ideal: Mapped[bool] = mapped_column(default=True, server_default=text("true"))
    chat_turns: Mapped[int] = mapped_column(SmallInteger, default=6, server_default="6")
    chat_policy_id: Mapped[uuid.UUID | None]
    gold_rate: Mapped[float] = mapped_column(default=0.0, server_default="0")
    repeat_rate: Mapped[float] = mapped_column(default=0.0, server_default="0")
    qualify_on: Mapped[int] = mapped_column(SmallInteger, default=0, server_default="0")
    qualify_at: Mapped[float] = mapped_column(default=0.8, server_default="0.8")
    cap: Mapped[int | None]
    admins_judge: Mapped[bool] = mapped_column(default=True, server_default=text("true"))
    created_at: Mapped[Created]


class Guideline(Base):
    """One version of what annotators are asked to go by. Append-only: a judgment names its version."""

    __tablename__ = "guideline"

    project_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("project.id"), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[str] = mapped_column(Text)
    created_by: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("account.id"))
    created_at: Mapped[Created]


class Membership(Base):
    """What one account may do in one project, and the random pseudonym that stands for it outside.

    `source` is the label of an imported annotator in the file that it came from. `guidelines_read` is the newest
    version that this person has opened and closed. Somebody paused is handed nothing; `left_out` keeps their judgments
    out of new snapshots. Of `qualified_at` and `failed_at` at most one is set; a qualification round that was opened
    again counts from `retried_at`.
    """

    __tablename__ = "membership"
    __table_args__ = (
        UniqueConstraint("project_id", "pseudonym"),
        UniqueConstraint("project_id", "source"),
        CheckConstraint("num_nonnulls(qualified_at, failed_at) < 2", name="qualified_or_failed"),
    )

    project_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("project.id"), primary_key=True)
    account_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("account.id"), primary_key=True, index=True)
    role: Mapped[Role] = mapped_column(words(Role, "role"))
    pseudonym: Mapped[str] = mapped_column(Text)
    source: Mapped[str | None] = mapped_column(Text)
    joined_at: Mapped[Created]
    deactivated_at: Mapped[datetime | None]
    guidelines_read: Mapped[int] = mapped_column(default=0, server_default="0")
    paused_at: Mapped[datetime | None]
    left_out: Mapped[bool] = mapped_column(default=False, server_default=text("false"))
    qualified_at: Mapped[datetime | None]
    failed_at: Mapped[datetime | None]
    retried_at: Mapped[datetime | None]


class Invitation(Base):
    """A one-time link into a project with a role; only the hash of its token is kept. `note` is for admins alone."""

    __tablename__ = "invitation"
    __table_args__ = (CheckConstraint("(used_at IS NULL) = (used_by IS NULL)", name="used_by_somebody"),)

    id: Mapped[Id]
    project_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("project.id"), index=True)
    role: Mapped[Role] = mapped_column(words(Role, "role"))
    token_hash: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    note: Mapped[str] = mapped_column(Text, default="", server_default="")
    created_by: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("account.id"))
    created_at: Mapped[Created]
    expires_at: Mapped[datetime]
    used_at: Mapped[datetime | None]
    used_by: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("account.id"))

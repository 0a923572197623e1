"""What people answered, with everything they answered before."""

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    SmallInteger,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.core.vocabulary import Verdict
from app.store.models.base import Base, Id, words


class Judgment(Base):
    """The head of one annotator's judgment of one comparison: which revision stands, and whether it is withdrawn.

    It counts exactly while the annotator fills a slot of the comparison; else it is surplus, kept and never counted.
    """

    __tablename__ = "judgment"
    __table_args__ = (
        UniqueConstraint("comparison_id", "account_id", name="uq_judgment_comparison_account"),
        UniqueConstraint("id", "account_id"),
        ForeignKeyConstraint(["project_id", "comparison_id"], ["comparison.project_id", "comparison.id"]),
        ForeignKeyConstraint(["comparison_id", "account_id"], ["assignment.comparison_id", "assignment.account_id"]),
        CheckConstraint("revision > 0", name="revision"),
        Index("ix_judgment_latest", "project_id", "account_id", "judged_at", postgresql_where=text("NOT withdrawn")),
        Index("ix_judgment_withdrawn", "project_id", "account_id", "judged_at", postgresql_where=text("withdrawn")),
    )

    id: Mapped[Id]
    project_id: Mapped[uuid.UUID]
    comparison_id: Mapped[uuid.UUID]
    account_id: Mapped[uuid.UUID]
    revision: Mapped[int] = mapped_column(default=1)
    withdrawn: Mapped[bool] = mapped_column(default=False)
    judged_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())


class JudgmentRevision(Base):
    """One thing an annotator said about a comparison, as it was shown; never changed, never deleted.

    `tiers` sorts the canonical positions, best first; `shown_order` are the canonical positions from left to right.
    `counted` is what the answer to the submit said. A withdrawing revision says nothing but that. `verdict` is null for
    a ranking. `flags` and `ratings` (1 to 5) go by canonical position, as a string: {"0": ["unsafe"]}, {"1": 4}.
    `ideal_id` is the answer that the annotator wrote instead.
    """

    __tablename__ = "judgment_revision"
    __table_args__ = (
        ForeignKeyConstraint(["judgment_id", "account_id"], ["judgment.id", "judgment.account_id"]),
        UniqueConstraint("account_id", "key"),
        CheckConstraint("revision > 0", name="revision"),
        CheckConstraint(
            "CASE WHEN withdrawn THEN num_nonnulls(tiers, verdict, strength) = 0"
            " ELSE tiers IS NOT NULL AND jsonb_typeof(tiers) = 'array' END",
            name="says_or_withdraws",
        ),
        CheckConstraint("strength BETWEEN 1 AND 4", name="strength"),
        CheckConstraint("NOT both_bad OR jsonb_array_length(tiers) = 1", name="both_bad_is_a_tie"),
        CheckConstraint("flags IS NULL OR jsonb_typeof(flags) = 'object'", name="flags"),
        CheckConstraint("ratings IS NULL OR jsonb_typeof(ratings) = 'object'", name="ratings"),
        CheckConstraint("active_ms >= 0 AND first_key_ms >= 0", name="durations"),
    )

    judgment_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    revision: Mapped[int] = mapped_column(primary_key=True)
    account_id: Mapped[uuid.UUID]
    key: Mapped[uuid.UUID]
    withdrawn: Mapped[bool] = mapped_column(default=False)
    verdict: Mapped[Verdict | None] = mapped_column(words(Verdict, "verdict"))
    tiers: Mapped[list[Any] | None] = mapped_column(JSONB(none_as_null=True))
    both_bad: Mapped[bool] = mapped_column(default=False)
    strength: Mapped[int | None] = mapped_column(SmallInteger)
    shown_order: Mapped[list[Any] | None] = mapped_column(JSONB(none_as_null=True))
    flags: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    ratings: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    rationale: Mapped[str | None] = mapped_column(Text)
    ideal_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("completion.id"))
    guideline_version: Mapped[int | None]
    counted: Mapped[bool]
    served_at: Mapped[datetime | None]
    first_key_ms: Mapped[int | None] = mapped_column(BigInteger)
    active_ms: Mapped[int | None] = mapped_column(BigInteger)
    submitted_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())


class Draft(Base):
    """What somebody has typed or chosen for a task and not yet submitted. `task_id`: a comparison or a prompt."""

    __tablename__ = "draft"
    __table_args__ = (
        ForeignKeyConstraint(["project_id", "account_id"], ["membership.project_id", "membership.account_id"]),
        CheckConstraint("jsonb_typeof(body) = 'object'", name="body"),
    )

    account_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    task_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    project_id: Mapped[uuid.UUID]
    body: Mapped[dict[str, Any]]
    updated_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())


class Skill(Base):
    """How far one annotator's judgments can be trusted, as the newest fit says; the model is a robust one of votes.

    `skill` is the estimated share of right judgments, with an interval; `judgments` are those that it was fitted on.
    """

    __tablename__ = "skill"
    __table_args__ = (
        ForeignKeyConstraint(["project_id", "account_id"], ["membership.project_id", "membership.account_id"]),
        CheckConstraint("low <= skill AND skill <= high", name="interval"),
    )

    project_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    account_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(Text)
    skill: Mapped[float]
    low: Mapped[float]
    high: Mapped[float]
    judgments: Mapped[int]
    fitted_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())

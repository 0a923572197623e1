"""What people are asked to compare, and the votes that are wanted for it."""

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import (
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
from sqlalchemy.orm import Mapped, mapped_column

from app.core.vocabulary import AssignmentState, ComparisonState, DrawReason, DropCause
from app.store.models.base import Base, Created, Id, words


class Comparison(Base):
    """K completions of one prompt to be compared, why they were drawn and with which probability.

    `checkpoint_id` is the policy that wrote all of them, null where they come from elsewhere or from several.
    `votes_wanted` is the number of its slots that are not retired; gold and repeats, which check the annotator, have
    none. Of higher `priority` are handed out first.
    """

    __tablename__ = "comparison"
    __table_args__ = (
        UniqueConstraint("project_id", "id"),
        UniqueConstraint("project_id", "prompt_id", "id"),
        ForeignKeyConstraint(["project_id", "prompt_id"], ["prompt.project_id", "prompt.id"]),
        ForeignKeyConstraint(["project_id", "checkpoint_id"], ["checkpoint.project_id", "checkpoint.id"]),
        ForeignKeyConstraint(["project_id", "repeat_of"], ["comparison.project_id", "comparison.id"]),
        CheckConstraint("probability > 0 AND probability <= 1", name="probability"),
        CheckConstraint("(reason = 'repeat') = (repeat_of IS NOT NULL)", name="repeat_names_original"),
        CheckConstraint(
            "(reason IN ('gold', 'repeat')) = (votes_wanted = 0) AND votes_wanted >= 0", name="checks_have_no_slots"
        ),
        Index("ix_comparison_open", "project_id", "checkpoint_id", postgresql_where=text("state = 'open'")),
    )

    id: Mapped[Id]
    project_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("project.id"))
    prompt_id: Mapped[uuid.UUID]
    checkpoint_id: Mapped[uuid.UUID | None]
    reason: Mapped[DrawReason] = mapped_column(words(DrawReason, "reason"))
    probability: Mapped[float]
    state: Mapped[ComparisonState] = mapped_column(words(ComparisonState, "state"), default=ComparisonState.OPEN)
    votes_wanted: Mapped[int] = mapped_column(SmallInteger)
    priority: Mapped[int] = mapped_column(SmallInteger, default=0, server_default="0")
    repeat_of: Mapped[uuid.UUID | None]
    created_at: Mapped[Created]


class Candidate(Base):
    """One of the completions of a comparison, at its canonical position; how it was served stands with the judgment."""

    __tablename__ = "candidate"
    __table_args__ = (
        ForeignKeyConstraint(
            ["project_id", "prompt_id", "comparison_id"],
            ["comparison.project_id", "comparison.prompt_id", "comparison.id"],
        ),
        # Through the prompt as well: both answers answer the question that is asked.
        ForeignKeyConstraint(
            ["project_id", "prompt_id", "completion_id"],
            ["completion.project_id", "completion.prompt_id", "completion.id"],
        ),
        UniqueConstraint("comparison_id", "completion_id"),
        CheckConstraint("position >= 0", name="position"),
    )

    comparison_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    position: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    project_id: Mapped[uuid.UUID]
    prompt_id: Mapped[uuid.UUID]
    completion_id: Mapped[uuid.UUID]


class Assignment(Base):
    """The memory of one person's meeting with one comparison: there is never a second one."""

    __tablename__ = "assignment"
    __table_args__ = (
        ForeignKeyConstraint(["project_id", "comparison_id"], ["comparison.project_id", "comparison.id"]),
        ForeignKeyConstraint(["project_id", "account_id"], ["membership.project_id", "membership.account_id"]),
        CheckConstraint("(state = 'leased') = (lease_expires_at IS NOT NULL)", name="leased_until"),
        CheckConstraint("state = 'skipped' OR skip_reason IS NULL", name="skip_reason"),
        Index("ix_assignment_lease", "lease_expires_at", postgresql_where=text("state = 'leased'")),
        Index(
            "ix_assignment_unjudged",
            "project_id",
            "account_id",
            postgresql_where=text("state IN ('leased', 'expired')"),
        ),
    )

    comparison_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    account_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    project_id: Mapped[uuid.UUID]
    state: Mapped[AssignmentState] = mapped_column(words(AssignmentState, "state"), default=AssignmentState.LEASED)
    leased_at: Mapped[Created]
    lease_expires_at: Mapped[datetime | None]
    skip_reason: Mapped[str | None]


class SlotState:
    """Free, leased, filled by a counted judgment, or retired; plain text with a CHECK, for the hot index names it."""

    FREE = "free"
    LEASED = "leased"
    FILLED = "filled"
    RETIRED = "retired"


class Slot(Base):
    """One wanted vote of a comparison. A judgment counts exactly while its annotator fills a slot.

    `draw_key` is random: people start at random points of the free slots, so that they meet neither each other nor the
    same prompt twice in a row. `priority` is the comparison's, kept here for the hot index.
    """

    __tablename__ = "slot"
    __table_args__ = (
        ForeignKeyConstraint(["project_id", "comparison_id"], ["comparison.project_id", "comparison.id"]),
        ForeignKeyConstraint(
            ["comparison_id", "holder_id"],
            ["assignment.comparison_id", "assignment.account_id"],
        ),
        CheckConstraint("state IN ('free', 'leased', 'filled', 'retired')", name="state"),
        CheckConstraint("(state IN ('leased', 'filled')) = (holder_id IS NOT NULL)", name="held_by_somebody"),
        CheckConstraint("position >= 0", name="position"),
        Index(
            "uq_slot_holder", "comparison_id", "holder_id", unique=True, postgresql_where=text("holder_id IS NOT NULL")
        ),
        Index("ix_slot_free", "project_id", "priority", "draw_key", postgresql_where=text("state = 'free'")),
    )

    comparison_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    position: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    project_id: Mapped[uuid.UUID]
    state: Mapped[str] = mapped_column(default=SlotState.FREE)
    holder_id: Mapped[uuid.UUID | None]
    priority: Mapped[int] = mapped_column(SmallInteger, default=0, server_default="0")
    draw_key: Mapped[float] = mapped_column(server_default=func.random())


class Gold(Base):
    """The answer that is known for a gold comparison, and why, for whoever answers it otherwise.

    `tiers` sorts the canonical positions, best first. `qualification` is for the round before the first judgment, where
    the explanation is shown; the others are mixed in unmarked. Retired gold is handed out no more.
    """

    __tablename__ = "gold"
    __table_args__ = (
        ForeignKeyConstraint(["project_id", "comparison_id"], ["comparison.project_id", "comparison.id"]),
        CheckConstraint("jsonb_typeof(tiers) = 'array'", name="tiers"),
        Index("ix_gold_project_id", "project_id", postgresql_where=text("retired_at IS NULL")),
    )

    comparison_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    project_id: Mapped[uuid.UUID]
    tiers: Mapped[list[Any]]
    explanation: Mapped[str] = mapped_column(Text, default="")
    qualification: Mapped[bool] = mapped_column(default=False, server_default=text("false"))
    created_by: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("account.id"))
    created_at: Mapped[Created]
    retired_at: Mapped[datetime | None]


class DroppedPairs(Base):
    """How many sampled pairs of one policy were shown to nobody, for one cause."""

    __tablename__ = "dropped_pairs"
    __table_args__ = (
        ForeignKeyConstraint(["project_id", "checkpoint_id"], ["checkpoint.project_id", "checkpoint.id"]),
        CheckConstraint("count > 0", name="count"),
    )

    project_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    checkpoint_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    cause: Mapped[DropCause] = mapped_column(words(DropCause, "cause"), primary_key=True)
    count: Mapped[int]

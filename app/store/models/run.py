"""Training runs: the table is the queue."""

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.core.vocabulary import RunKind, RunStatus
from app.store.models.base import Base, Created, Id, words


class Run(Base):
    """One training, asked for by a person. Every write of a worker carries `attempt`: an older one changes nothing.

    `after_run_id` is a run that must finish first; a PPO run takes its reward model from there.
    """

    __tablename__ = "run"
    __table_args__ = (
        UniqueConstraint("project_id", "id"),
        UniqueConstraint("project_id", "number"),
        ForeignKeyConstraint(["project_id", "policy_id"], ["checkpoint.project_id", "checkpoint.id"]),
        ForeignKeyConstraint(["project_id", "reward_model_id"], ["checkpoint.project_id", "checkpoint.id"]),
        ForeignKeyConstraint(["project_id", "after_run_id"], ["run.project_id", "run.id"]),
        ForeignKeyConstraint(["project_id", "snapshot_id"], ["snapshot.project_id", "snapshot.id"]),
        CheckConstraint("attempt >= 0 AND number > 0", name="counters"),
        CheckConstraint(
            "(status = 'running') = (worker_id IS NOT NULL) AND (status = 'running') = (lease_expires_at IS NOT NULL)",
            name="running_has_a_worker",
        ),
        CheckConstraint("status <> 'failed' OR error IS NOT NULL", name="failed_says_why"),
        CheckConstraint("status NOT IN ('finished', 'cancelled', 'failed') OR ended_at IS NOT NULL", name="ended"),
        CheckConstraint("kind <> 'reward' OR snapshot_id IS NOT NULL", name="reward_reads_a_snapshot"),
        CheckConstraint("kind <> 'dpo' OR snapshot_id IS NOT NULL", name="dpo_reads_a_snapshot"),
        CheckConstraint("kind = 'sft' OR policy_id IS NOT NULL", name="starts_from_a_policy"),
        CheckConstraint(
            "kind <> 'ppo' OR reward_model_id IS NOT NULL OR after_run_id IS NOT NULL", name="ppo_has_a_reward_model"
        ),
        CheckConstraint("after_run_id <> id", name="not_after_itself"),
        Index("ix_run_queue", "created_at", postgresql_where=text("status = 'queued'")),
        Index("ix_run_lease", "lease_expires_at", postgresql_where=text("status = 'running'")),
        Index(None, "after_run_id"),
    )

    id: Mapped[Id]
    project_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("project.id"))
    number: Mapped[int]
    kind: Mapped[RunKind] = mapped_column(words(RunKind, "kind"))
    status: Mapped[RunStatus] = mapped_column(words(RunStatus, "status"), default=RunStatus.QUEUED)
    config: Mapped[dict[str, Any]]
    seed: Mapped[int] = mapped_column(BigInteger)
    policy_id: Mapped[uuid.UUID | None]
    reward_model_id: Mapped[uuid.UUID | None]
    after_run_id: Mapped[uuid.UUID | None]
    snapshot_id: Mapped[uuid.UUID | None]

    attempt: Mapped[int] = mapped_column(default=0)
    worker_id: Mapped[str | None] = mapped_column(Text)
    lease_expires_at: Mapped[datetime | None]
    cancel_requested_at: Mapped[datetime | None]

    step: Mapped[int] = mapped_column(default=0)
    total: Mapped[int] = mapped_column(default=0)
    phase: Mapped[str] = mapped_column(Text, default="")
    seconds_left: Mapped[float | None]
    metrics: Mapped[dict[str, Any]] = mapped_column(default=dict)
    error: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))

    created_by: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("account.id"))
    created_at: Mapped[Created]
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]


class RunMetric(Base):
    """The numbers of one logged step. A resumed run replaces what it logs again, so a step is there once."""

    __tablename__ = "run_metric"
    __table_args__ = (
        ForeignKeyConstraint(["project_id", "run_id"], ["run.project_id", "run.id"]),
        UniqueConstraint("run_id", "phase", "step"),
        Index("ix_run_metric_follow", "run_id", "id"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    project_id: Mapped[uuid.UUID]
    run_id: Mapped[uuid.UUID]
    attempt: Mapped[int]
    phase: Mapped[str] = mapped_column(Text)
    step: Mapped[int]
    values: Mapped[dict[str, Any]]
    logged_at: Mapped[Created]


class RunSample(Base):
    """What the policy in training answered to one prompt of a fixed set at one step."""

    __tablename__ = "run_sample"
    __table_args__ = (
        ForeignKeyConstraint(["project_id", "run_id"], ["run.project_id", "run.id"]),
        UniqueConstraint("run_id", "step", "prompt_id"),
        Index("ix_run_sample_follow", "run_id", "id"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    project_id: Mapped[uuid.UUID]
    run_id: Mapped[uuid.UUID]
    attempt: Mapped[int]
    step: Mapped[int]
    prompt_id: Mapped[str] = mapped_column(Text)
    completion: Mapped[str] = mapped_column(Text)
    reward: Mapped[float | None]
    logged_at: Mapped[Created]

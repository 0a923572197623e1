"""The run queue: the table itself, with a lease and an attempt number that fences off workers from the past."""

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.orm import Session

from app.core.records import Progress, RunError
from app.core.vocabulary import RunKind, RunStatus
from app.store.models import Run, RunMetric, RunSample

LEASE_SECONDS = 30
MIN_TRAIN, MIN_HELDOUT = 20, 1


def enqueue(
    s: Session,
    project_id: uuid.UUID,
    kind: RunKind,
    by: uuid.UUID | None,
    config: Mapping[str, Any] | None = None,
    seed: int = 0,
    policy_id: uuid.UUID | None = None,
    reward_model_id: uuid.UUID | None = None,
    after_run_id: uuid.UUID | None = None,
) -> Run:
    """Put a run into the queue after all checks, with its snapshot frozen.

    `policy_id` defaults to the project's current policy (for SFT to none: a starter model), a PPO run's reward model
    to the newest one. Invalid, with what mends it, for a bad config, too few judgments, a missing base; NotFound for
    ids of other projects.
    """
    raise NotImplementedError


def enqueue_reward_then_ppo(
    s: Session,
    project_id: uuid.UUID,
    by: uuid.UUID | None,
    reward_config: Mapping[str, Any] | None = None,
    ppo_config: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> tuple[Run, Run]:
    """A reward-model run and the PPO run that waits for it."""
    raise NotImplementedError


def claim_run(s: Session, worker_id: str) -> Run | None:
    """Take the oldest run that may start, with a fresh lease and the next attempt number; None when none may.

    Also takes back into the queue what a dead worker held.
    """
    raise NotImplementedError


def heartbeat(s: Session, run_id: uuid.UUID, attempt: int, progress: Progress | None = None) -> bool:
    """Renew the lease and store progress. False: this attempt no longer holds the run, stop at once."""
    raise NotImplementedError


def append_metrics(s: Session, run_id: uuid.UUID, attempt: int, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Store lines of metrics.jsonl ({"step", "phase", "time", name: number}); False when fenced off.

    What an earlier attempt logged from the first of these steps on is replaced, so no step is there twice.
    """
    raise NotImplementedError


def append_samples(s: Session, run_id: uuid.UUID, attempt: int, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Store lines of samples.jsonl ({"step", "prompt_id", "completion", "reward"?}); False when fenced off."""
    raise NotImplementedError


def finish(
    s: Session,
    run_id: uuid.UUID,
    attempt: int,
    status: RunStatus,
    metrics: Mapping[str, Any] | None = None,
    error: RunError | None = None,
) -> bool:
    """End an attempt as finished, cancelled, failed or paused; False when fenced off.

    A finished reward run hands its reward model to the runs that wait for it: register the checkpoint first. When it
    failed or was cancelled they are cancelled, and say why.
    """
    raise NotImplementedError


def request_cancel(s: Session, project_id: uuid.UUID, run_id: uuid.UUID, by: uuid.UUID | None) -> Run:
    """Cancel a waiting run at once, ask a running one to stop at a checkpoint. Conflict for one that has ended."""
    raise NotImplementedError


def cancel_requested(s: Session, run_id: uuid.UUID) -> bool:
    """Whether somebody asked this run to stop."""
    raise NotImplementedError


def resume(s: Session, project_id: uuid.UUID, run_id: uuid.UUID, by: uuid.UUID | None) -> Run:
    """Put a failed, cancelled or paused run back into the queue; it goes on from its newest checkpoint."""
    raise NotImplementedError


def metrics_after(s: Session, run_id: uuid.UUID, row_id: int = 0) -> list[RunMetric]:
    """The logged steps whose row id is above `row_id`, in order."""
    raise NotImplementedError


def samples(s: Session, run_id: uuid.UUID) -> list[RunSample]:
    """The logged answers by step and prompt."""
    raise NotImplementedError


def runs_of(s: Session, project_id: uuid.UUID, limit: int = 50) -> list[Run]:
    """A project's runs, newest first."""
    raise NotImplementedError


def run(s: Session, project_id: uuid.UUID, run_id: uuid.UUID) -> Run:
    """One run of this project; NotFound."""
    raise NotImplementedError

"""The run queue: the table itself, with a lease and an attempt number that fences off workers from the past."""

import json
import math
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from sqlalchemy import ColumnElement, func, or_, select, text, update
from sqlalchemy.orm import Session, aliased

from app.core.configs import CONFIGS
from app.core.errors import Conflict, Invalid, NotFound
from app.core.records import Progress, RunError
from app.core.vocabulary import LIVE_STATUSES, CheckpointKind, RunKind, RunStatus
from app.store import audit, checkpoints, prompts, snapshots
from app.store.models import Checkpoint, Project, Run, RunMetric, RunSample, Snapshot, new_id

LEASE_SECONDS = 30
MIN_TRAIN, MIN_HELDOUT = 20, 1

_QUIET = {"synchronize_session": False}


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
    to the newest one. A reward model and DPO learn from the judgments that count now. Invalid, with what mends it, for
    a bad config, too few judgments, a missing base; NotFound for ids of other projects.
    """
    # Held to the end, so that two runs of one project never get the same number.
    project = s.scalars(select(Project).where(Project.id == project_id).with_for_update(key_share=True)).one_or_none()
    if project is None:
        raise NotFound("There is no such project.")
    settings = _checked_config(kind, config or {})
    if not 0 <= seed < 2**63:
        raise Invalid("The seed is a whole number from 0.")
    snapshot_id = None
    if kind == RunKind.SFT:
        _check_demonstrations(s, project_id)
        reward_model_id = after_run_id = None
    else:
        policy_id = policy_id or project.current_policy_id
        if policy_id is None:
            raise Invalid("This project has no policy to start from yet.", "Wait for the first one, or promote one.")
    if policy_id is not None:
        _check_kind(checkpoints.checkpoint(s, project_id, policy_id), CheckpointKind.POLICY)
    if kind in (RunKind.REWARD, RunKind.DPO):
        snapshot_id = _checked_snapshot(s, project, by, "a reward model" if kind == RunKind.REWARD else "a policy").id
        reward_model_id = after_run_id = None
    if kind == RunKind.PPO:
        reward_model_id = _reward_model_of(s, project_id, reward_model_id, after_run_id)
        _check_train_prompts(s, project_id)
    newest = s.scalars(select(func.max(Run.number)).where(Run.project_id == project_id)).one()
    queued = Run(
        id=new_id(),
        project_id=project_id,
        number=(newest or 0) + 1,
        kind=kind,
        config=settings,
        seed=seed,
        policy_id=policy_id,
        reward_model_id=reward_model_id,
        after_run_id=after_run_id,
        snapshot_id=snapshot_id,
        created_by=by,
    )
    s.add(queued)
    s.flush()
    audit.record(s, project_id, by, "run.enqueue", str(queued.id), {"kind": kind})
    return queued


def enqueue_reward_then_ppo(
    s: Session,
    project_id: uuid.UUID,
    by: uuid.UUID | None,
    reward_config: Mapping[str, Any] | None = None,
    ppo_config: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> tuple[Run, Run]:
    """A reward-model run and the PPO run that waits for it."""
    reward = enqueue(s, project_id, RunKind.REWARD, by, reward_config, seed)
    return reward, enqueue(s, project_id, RunKind.PPO, by, ppo_config, seed, after_run_id=reward.id)


def _checked_config(kind: RunKind, config: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return CONFIGS[kind].model_validate(dict(config)).model_dump(mode="json")
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        what = f"The setting {where!r} of this run is not valid" if where else "These settings do not fit together"
        raise Invalid(f"{what}: {first['msg'].removeprefix('Value error, ')}.") from None


def _check_kind(found: Checkpoint, kind: CheckpointKind) -> None:
    if found.kind != kind:
        raise Invalid(f"{found.name} is not a {kind.value.replace('_', ' ')}.")


def _check_demonstrations(s: Session, project_id: uuid.UUID) -> None:
    if prompts.counts(s, project_id).demonstrations == 0:
        raise Invalid("There are no demonstrations to learn from.", "Import some first.")


def _check_train_prompts(s: Session, project_id: uuid.UUID) -> None:
    if prompts.counts(s, project_id).train == 0:
        raise Invalid("There are no prompts to practise on.", "Import some first.")


def _checked_snapshot(s: Session, project: Project, by: uuid.UUID | None, pupil: str) -> Snapshot:
    frozen = snapshots.freeze(s, project.id, by)
    if frozen.train < MIN_TRAIN:
        raise Invalid(
            f"{frozen.train} judged {'pair' if frozen.train == 1 else 'pairs'} cannot teach {pupil};"
            f" {MIN_TRAIN} can at the least.",
            f"Judge {MIN_TRAIN - frozen.train} more.",
        )
    if frozen.heldout < MIN_HELDOUT:
        raise Invalid(
            "No judged pair belongs to a held-out prompt, so nothing could be said about how good the model is.",
            f"Judge more pairs; about {100 * project.heldout_share:.3g} % are held out.",
        )
    return frozen


def _reward_model_of(
    s: Session, project_id: uuid.UUID, reward_model_id: uuid.UUID | None, after_run_id: uuid.UUID | None
) -> uuid.UUID | None:
    """The reward model to maximise, or None where a run that is still to finish will make it."""
    if after_run_id is not None:
        before = run(s, project_id, after_run_id)
        if before.kind != RunKind.REWARD:
            raise Invalid("PPO can only wait for a run that trains a reward model.")
        if before.status in LIVE_STATUSES:
            return None
        reward_model_id = _made_by(s, before.id)
        if reward_model_id is None:
            raise Invalid(f"Run {before.number} made no reward model.", "Train one first.")
    if reward_model_id is None:
        known = checkpoints.reward_models(s, project_id)
        if not known:
            raise Invalid("There is no reward model for PPO to follow.", "Train one first.")
        return known[0].id
    _check_kind(checkpoints.checkpoint(s, project_id, reward_model_id), CheckpointKind.REWARD_MODEL)
    return reward_model_id


def _made_by(s: Session, run_id: uuid.UUID) -> uuid.UUID | None:
    query = select(Checkpoint.id).where(Checkpoint.run_id == run_id, Checkpoint.kind == CheckpointKind.REWARD_MODEL)
    return s.scalars(query.order_by(Checkpoint.number.desc()).limit(1)).one_or_none()


# -- what workers do --------------------------------------------------------------------------------------------------


def _lease() -> ColumnElement[Any]:
    return func.clock_timestamp() + func.make_interval(0, 0, 0, 0, 0, 0, LEASE_SECONDS)


def _mine(run_id: uuid.UUID, attempt: int) -> tuple[ColumnElement[bool], ...]:
    """The fence: true of a run only for the attempt that holds it."""
    return Run.id == run_id, Run.attempt == attempt, Run.status == RunStatus.RUNNING


def claim_run(s: Session, worker_id: str) -> Run | None:
    """Take the oldest run that may start, with a fresh lease and the next attempt number; None when none may.

    Also takes back into the queue what a dead worker held.
    """
    lost = (
        select(Run.id)
        .where(Run.status == RunStatus.RUNNING, Run.lease_expires_at < func.clock_timestamp())
        .with_for_update(skip_locked=True)
    )
    # The next attempt of a run that was to be cancelled comes to that at once, at its newest checkpoint.
    s.execute(
        update(Run).where(Run.id.in_(lost)).values(status=RunStatus.QUEUED, worker_id=None, lease_expires_at=None),
        execution_options=_QUIET,
    )
    before = aliased(Run)
    next_run = (
        select(Run.id)
        .outerjoin(before, before.id == Run.after_run_id)
        .where(Run.status == RunStatus.QUEUED, or_(Run.after_run_id.is_(None), before.status == RunStatus.FINISHED))
        .order_by(Run.created_at, Run.id)
        .limit(1)
        .with_for_update(of=Run, skip_locked=True)
        .scalar_subquery()
    )
    taken = (
        update(Run)
        .where(Run.id == next_run)
        .values(
            status=RunStatus.RUNNING,
            attempt=Run.attempt + 1,
            worker_id=worker_id,
            lease_expires_at=_lease(),
            started_at=func.coalesce(Run.started_at, func.clock_timestamp()),
            ended_at=None,
            error=None,
        )
    )
    return s.scalars(taken.returning(Run), execution_options={"populate_existing": True} | _QUIET).one_or_none()


def heartbeat(s: Session, run_id: uuid.UUID, attempt: int, progress: Progress | None = None) -> bool:
    """Renew the lease and store progress. False: this attempt no longer holds the run, stop at once."""
    values: dict[str, Any] = {"lease_expires_at": _lease()}
    if progress is not None:
        values |= {
            "step": progress.step,
            "total": progress.total,
            "phase": progress.phase,
            "seconds_left": progress.seconds_left,
        }
    beat = update(Run).where(*_mine(run_id, attempt)).values(values).returning(Run.id)
    return s.execute(beat, execution_options=_QUIET).one_or_none() is not None


def _hold(s: Session, run_id: uuid.UUID, attempt: int) -> uuid.UUID | None:
    """The project of a run that this attempt holds, locked against being taken away meanwhile; None when fenced off."""
    query = select(Run.project_id).where(*_mine(run_id, attempt)).with_for_update(key_share=True)
    return s.scalars(query).one_or_none()


# One statement a line: a step of an earlier attempt goes when this attempt logs the same step or an earlier one.
_FORGET_METRICS = text(
    "DELETE FROM run_metric WHERE run_id = :run AND attempt < :attempt AND phase = :phase AND step >= :step"
)
_FORGET_SAMPLES = text("DELETE FROM run_sample WHERE run_id = :run AND attempt < :attempt AND step >= :step")

# A row that is logged again gets a new id as well, so that whoever follows the curve sees it again.
_LOG_METRIC = text(
    """
    INSERT INTO run_metric (project_id, run_id, attempt, phase, step, values)
    VALUES (:project, :run, :attempt, :phase, :step, CAST(:values AS jsonb))
    ON CONFLICT (run_id, phase, step) DO UPDATE
        SET id = excluded.id, attempt = excluded.attempt, values = excluded.values, logged_at = excluded.logged_at
    """
)
_LOG_SAMPLE = text(
    """
    INSERT INTO run_sample (project_id, run_id, attempt, step, prompt_id, completion, reward)
    VALUES (:project, :run, :attempt, :step, :prompt, :completion, :reward)
    ON CONFLICT (run_id, step, prompt_id) DO UPDATE
        SET id = excluded.id, attempt = excluded.attempt, completion = excluded.completion, reward = excluded.reward,
            logged_at = excluded.logged_at
    """
)


def append_metrics(s: Session, run_id: uuid.UUID, attempt: int, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Store lines of metrics.jsonl ({"step", "phase", "time", name: number}); False when fenced off.

    What an earlier attempt logged from the first of these steps on is replaced, so no step is there twice.
    """
    project_id = _hold(s, run_id, attempt)
    if project_id is None:
        return False
    where: dict[str, Any] = {"project": project_id, "run": run_id, "attempt": attempt}
    first: dict[str, int] = {}
    for row in rows:
        phase, step = str(row.get("phase", "")), int(row["step"])
        first[phase] = min(step, first.get(phase, step))
    for phase, step in first.items():
        s.execute(_FORGET_METRICS, where | {"phase": phase, "step": step})
    lines = [
        where
        | {
            "phase": str(row.get("phase", "")),
            "step": int(row["step"]),
            "values": canonical_numbers({k: v for k, v in row.items() if k not in ("step", "phase", "time")}),
        }
        for row in rows
    ]
    if lines:
        s.execute(_LOG_METRIC, lines)
    return True


def canonical_numbers(values: Mapping[str, Any]) -> str:
    """JSON as Postgres takes it: numbers that are none (a diverged loss) become null."""
    return json.dumps({k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()})


def append_samples(s: Session, run_id: uuid.UUID, attempt: int, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Store lines of samples.jsonl ({"step", "prompt_id", "completion", "reward"?}); False when fenced off."""
    project_id = _hold(s, run_id, attempt)
    if project_id is None:
        return False
    if not rows:
        return True
    where: dict[str, Any] = {"project": project_id, "run": run_id, "attempt": attempt}
    s.execute(_FORGET_SAMPLES, where | {"step": min(int(row["step"]) for row in rows)})
    lines = [
        where
        | {
            "step": int(row["step"]),
            "prompt": str(row["prompt_id"]),
            "completion": str(row["completion"]).replace("\x00", "\ufffd"),  # Postgres knows no NUL in a text
            "reward": row.get("reward"),
        }
        for row in rows
    ]
    s.execute(_LOG_SAMPLE, lines)
    return True


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
    if status in (RunStatus.QUEUED, RunStatus.RUNNING):
        raise Invalid("A run ends as finished, cancelled, failed or paused.")
    if status == RunStatus.FAILED and error is None:
        raise Invalid("A failed run says why.")
    ended = s.scalars(
        update(Run)
        .where(*_mine(run_id, attempt))
        .values(
            status=status,
            worker_id=None,
            lease_expires_at=None,
            cancel_requested_at=None,
            seconds_left=None,
            metrics=dict(metrics or {}),
            error=None if error is None else error.model_dump(mode="json"),
            ended_at=None if status == RunStatus.PAUSED else func.clock_timestamp(),
        )
        .returning(Run),
        execution_options={"populate_existing": True} | _QUIET,
    ).one_or_none()
    if ended is None:
        return False
    _tell_followers(s, ended)
    audit.record(s, ended.project_id, None, f"run.{status.value}", str(ended.id), {"attempt": attempt})
    return True


def release(s: Session, run_id: uuid.UUID, attempt: int) -> bool:
    """Put a run that this attempt holds back into the queue, for the next worker; False when fenced off."""
    back = (
        update(Run)
        .where(*_mine(run_id, attempt))
        .values(status=RunStatus.QUEUED, worker_id=None, lease_expires_at=None, seconds_left=None)
        .returning(Run.id)
    )
    return s.execute(back, execution_options=_QUIET).one_or_none() is not None


def _tell_followers(s: Session, ended: Run) -> None:
    """Give what this run made to the runs that waited for it, or cancel them; paused runs keep them waiting."""
    waiting = update(Run).where(Run.after_run_id == ended.id, Run.status.in_([RunStatus.QUEUED, RunStatus.PAUSED]))
    made = _made_by(s, ended.id) if ended.status == RunStatus.FINISHED else None
    if made is not None:
        s.execute(waiting.values(reward_model_id=made), execution_options=_QUIET)
    elif ended.status != RunStatus.PAUSED:
        how = {RunStatus.FAILED: "failed", RunStatus.CANCELLED: "was cancelled"}.get(ended.status, "made nothing")
        error = RunError(
            kind="data",
            message=f"This run waited for run {ended.number}, which {how}.",
            mend=f"Resume run {ended.number} or start it again, then start this one again.",
        )
        s.execute(
            waiting.values(
                status=RunStatus.CANCELLED, error=error.model_dump(mode="json"), ended_at=func.clock_timestamp()
            ),
            execution_options=_QUIET,
        )


# -- what people do ---------------------------------------------------------------------------------------------------


def _locked(s: Session, project_id: uuid.UUID, run_id: uuid.UUID) -> Run:
    found = s.scalars(
        select(Run).where(Run.project_id == project_id, Run.id == run_id).with_for_update(key_share=True),
        execution_options={"populate_existing": True},
    ).one_or_none()
    if found is None:
        raise NotFound("There is no such run in this project.")
    return found


def request_cancel(s: Session, project_id: uuid.UUID, run_id: uuid.UUID, by: uuid.UUID | None) -> Run:
    """Cancel a waiting run at once, ask a running one to stop at a checkpoint. Conflict for one that has ended."""
    asked = _locked(s, project_id, run_id)
    if asked.status not in LIVE_STATUSES:
        raise Conflict(f"Run {asked.number} has already ended.")
    now = s.scalars(select(func.clock_timestamp())).one()
    if asked.status == RunStatus.RUNNING:
        asked.cancel_requested_at = asked.cancel_requested_at or now
        s.flush()
    else:
        asked.status, asked.ended_at, asked.cancel_requested_at = RunStatus.CANCELLED, now, None
        s.flush()
        _tell_followers(s, asked)
    audit.record(s, project_id, by, "run.cancel", str(run_id))
    return asked


def cancel_requested(s: Session, run_id: uuid.UUID) -> bool:
    """Whether somebody asked this run to stop."""
    return s.scalars(select(Run.cancel_requested_at).where(Run.id == run_id)).one_or_none() is not None


def resume(s: Session, project_id: uuid.UUID, run_id: uuid.UUID, by: uuid.UUID | None) -> Run:
    """Put a failed, cancelled or paused run back into the queue; it goes on from its newest checkpoint."""
    asked = _locked(s, project_id, run_id)
    if asked.status not in (RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.PAUSED):
        raise Conflict(f"Run {asked.number} is {asked.status.value}.", "Only a stopped run can be resumed.")
    if asked.after_run_id is not None and asked.reward_model_id is None:
        before = run(s, project_id, asked.after_run_id)
        if before.status not in LIVE_STATUSES:
            asked.reward_model_id = _made_by(s, before.id)
            if asked.reward_model_id is None:
                raise Conflict(f"Run {before.number} has not made its reward model.", f"Resume run {before.number}.")
    asked.status, asked.error, asked.ended_at, asked.cancel_requested_at = RunStatus.QUEUED, None, None, None
    s.flush()
    audit.record(s, project_id, by, "run.resume", str(run_id))
    return asked


# -- what is shown ----------------------------------------------------------------------------------------------------


def metrics_after(s: Session, run_id: uuid.UUID, row_id: int = 0) -> list[RunMetric]:
    """The logged steps whose row id is above `row_id`, in order."""
    query = select(RunMetric).where(RunMetric.run_id == run_id, RunMetric.id > row_id).order_by(RunMetric.id)
    return list(s.scalars(query, execution_options={"populate_existing": True}))


def samples(s: Session, run_id: uuid.UUID) -> list[RunSample]:
    """The logged answers by step and prompt."""
    query = select(RunSample).where(RunSample.run_id == run_id).order_by(RunSample.step, RunSample.prompt_id)
    return list(s.scalars(query, execution_options={"populate_existing": True}))


def learnt_from(s: Session, project_id: uuid.UUID) -> int:
    """How many judgments on training prompts the newest model that learnt from any was given; 0 where there is none.

    Reward models learn from judgments, and so do policies by DPO. Ties and both-bad are counted.
    """
    query = (
        select(Snapshot.train).join(Run, Run.snapshot_id == Snapshot.id).join(Checkpoint, Checkpoint.run_id == Run.id)
    )
    newest = query.where(Run.project_id == project_id).order_by(Run.number.desc()).limit(1)
    return s.scalars(newest).one_or_none() or 0


def worker_is_busy(s: Session) -> bool:
    """Whether some worker holds a run, of any project, right now; an idle worker leaves no trace here."""
    held = select(Run.id).where(Run.status == RunStatus.RUNNING, Run.lease_expires_at > func.clock_timestamp())
    return s.scalars(held.limit(1)).one_or_none() is not None


def runs_of(s: Session, project_id: uuid.UUID, limit: int = 50) -> list[Run]:
    """A project's runs, newest first."""
    query = select(Run).where(Run.project_id == project_id).order_by(Run.number.desc()).limit(limit)
    return list(s.scalars(query, execution_options={"populate_existing": True}))


def run(s: Session, project_id: uuid.UUID, run_id: uuid.UUID) -> Run:
    """One run of this project; NotFound."""
    found = s.scalars(
        select(Run).where(Run.project_id == project_id, Run.id == run_id),
        execution_options={"populate_existing": True},
    ).one_or_none()
    if found is None:
        raise NotFound("There is no such run in this project.")
    return found

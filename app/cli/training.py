"""Commands that train and promote: train, runs, cancel, resume, policies, promote, rollback."""

import json
import time
import uuid
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sqlalchemy.orm import Session, sessionmaker

from app.cli.opening import ProjectOption, acting, project_named, store
from app.core.configs import CONFIGS
from app.core.errors import Invalid, NotFound, PairwrightError
from app.core.vocabulary import LIVE_STATUSES, RunKind, RunStatus
from app.store import checkpoints, runs
from app.store.models import Checkpoint, Project, Run


class Training(StrEnum):
    """What `train` starts; `loop` is a reward model and then PPO on it."""

    SFT = "sft"
    REWARD = "reward"
    PPO = "ppo"
    DPO = "dpo"
    LOOP = "loop"


RunName = Annotated[str, typer.Argument(metavar="RUN", help="The run's number, as `runs` shows it, or its id.")]
PolicyName = Annotated[str, typer.Argument(metavar="POLICY", help="The policy's name, as v2, or its id.")]
Values = Annotated[
    list[str] | None,
    typer.Option("--set", help="One field of the configuration, as learning_rate=0.001; for loop: ppo.beta=0.1."),
]


NO_WORKER_S = 15.0
NO_WORKER = (
    "No worker has taken run {run} up. Start `pairwright serve` or `pairwright worker` on this installation; "
    "the run waits in the queue meanwhile."
)


def add_to(cli: typer.Typer) -> None:
    """Hang the commands of this file into the command line."""
    for command in (train, cancel, resume, promote, rollback):
        cli.command()(command)
    cli.command("runs")(list_runs)
    cli.command("policies")(list_policies)


def train(
    kind: Annotated[Training, typer.Argument(help="What to train.")],
    project: ProjectOption = None,
    values: Values = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same run.")] = 0,
    policy: Annotated[str | None, typer.Option(help="The policy to start from; otherwise the current one.")] = None,
    reward_model: Annotated[str | None, typer.Option(help="For ppo: the reward model; otherwise the newest.")] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Stay until it has ended, with a bar and the time left.")
    ] = False,
) -> None:
    """Put a run into the queue; a worker takes it from there."""
    with store() as sessions:
        with sessions.begin() as session:
            found = project_named(session, project)
            by = acting(session)
            if kind is Training.LOOP:
                if policy or reward_model:
                    raise Invalid(
                        "The loop starts from the current policy and its own reward model.",
                        "Start reward and ppo one after the other to choose others.",
                    )
                configs = {part: config_of(part, values or [], prefix=True) for part in (RunKind.REWARD, RunKind.PPO)}
                queued: Sequence[Run] = runs.enqueue_reward_then_ppo(
                    session, found.id, by, configs[RunKind.REWARD], configs[RunKind.PPO], seed
                )
            else:
                part = RunKind(kind.value)
                named_policy = named(checkpoints.policies(session, found.id), policy) if policy else None
                named_reward = (
                    named(checkpoints.reward_models(session, found.id), reward_model) if reward_model else None
                )
                queued = [
                    runs.enqueue(
                        session,
                        found.id,
                        part,
                        by,
                        config=config_of(part, values or []),
                        seed=seed,
                        policy_id=named_policy.id if named_policy else None,
                        reward_model_id=named_reward.id if named_reward else None,
                    )
                ]
            waiting = [(found.id, run.id) for run in queued]
            for run in queued:
                typer.echo(f"Run {run.number} ({run.kind}) is in the queue.")
        if wait:
            for project_id, run_id in waiting:
                follow(sessions, project_id, run_id)


def list_runs(project: ProjectOption = None) -> None:
    """List the runs, newest first."""
    with store() as sessions, sessions.begin() as session:
        found = project_named(session, project)
        table = Table("run", "kind", "status", "step", "result", box=None, header_style="bold")
        for run in runs.runs_of(session, found.id):
            said = run.error["message"] if run.error else figures(run.metrics)
            table.add_row(str(run.number), run.kind, run.status, f"{run.step}/{run.total}", said)
        Console().print(table)


def cancel(run: RunName, project: ProjectOption = None) -> None:
    """Ask a run to leave a checkpoint and stop."""
    with store() as sessions, sessions.begin() as session:
        found = project_named(session, project)
        asked = runs.request_cancel(session, found.id, run_named(session, found, run).id, acting(session))
        ended = asked.status not in LIVE_STATUSES
        typer.echo(f"Run {asked.number} {'is cancelled' if ended else 'stops at its next checkpoint'}.")


def resume(run: RunName, project: ProjectOption = None) -> None:
    """Let a failed, cancelled or paused run go on from its newest checkpoint."""
    with store() as sessions, sessions.begin() as session:
        found = project_named(session, project)
        again = runs.resume(session, found.id, run_named(session, found, run).id, acting(session))
        typer.echo(f"Run {again.number} is in the queue again.")


def list_policies(project: ProjectOption = None) -> None:
    """List the policies, newest first; the star marks the one that writes the next pairs."""
    with store() as sessions, sessions.begin() as session:
        found = project_named(session, project)
        table = Table("", "policy", "made", "result", box=None, header_style="bold")
        for policy in checkpoints.policies(session, found.id):
            star = "*" if policy.id == found.current_policy_id else ""
            table.add_row(star, policy.name, f"{policy.created_at:%Y-%m-%d %H:%M}", figures(policy.metrics))
        Console().print(table)


def promote(policy: PolicyName, project: ProjectOption = None) -> None:
    """Let a policy write the next pairs; unjudged pairs of the others retire."""
    with store() as sessions, sessions.begin() as session:
        found = project_named(session, project)
        chosen = named(checkpoints.policies(session, found.id), policy)
        moved = checkpoints.promote(session, found.id, chosen.id, acting(session))
        typer.echo(f"{chosen.name} writes the next pairs; {moved.retired} unjudged pairs of the one before retired.")


def rollback(project: ProjectOption = None) -> None:
    """Go back to the policy that was current before the last promotion."""
    with store() as sessions, sessions.begin() as session:
        found = project_named(session, project)
        moved = checkpoints.roll_back(session, found.id, acting(session))
        back = checkpoints.checkpoint(session, found.id, moved.checkpoint_id)
        typer.echo(f"{back.name} writes the next pairs again; {moved.retired} unjudged pairs retired.")


def config_of(kind: RunKind, values: Sequence[str], prefix: bool = False) -> dict[str, Any]:
    """`name=value` words as a configuration; with `prefix` only those that begin with the kind's name and a dot.

    A value is read as JSON where it is JSON, else as the text it is. Unknown names are refused with the known ones.
    """
    config: dict[str, Any] = {}
    for word in values:
        name, equals, value = word.partition("=")
        if not equals:
            raise Invalid(f"--set {word} has no value.", "Write it as name=value.")
        if prefix:
            owner, dot, name = name.partition(".")
            if not dot or owner not in (RunKind.REWARD, RunKind.PPO):
                raise Invalid(
                    f"--set {word} does not say which run it is for.", "Write reward.name=value or ppo.name=value."
                )
            if owner != kind:
                continue
        known = CONFIGS[kind].model_fields
        if name not in known:
            raise Invalid(f"A {kind} run has no field {name}.", f"It has {', '.join(known)}.")
        try:
            config[name] = json.loads(value)
        except ValueError:
            config[name] = value
    return config


def run_named(session: Session, project: Project, name: str) -> Run:
    """A run of the project by number or id."""
    for run in runs.runs_of(session, project.id, limit=10_000):
        if name in (str(run.number), str(run.id)):
            return run
    raise NotFound(f"{project.name} has no run {name}.", "`pairwright runs` lists them.")


def named(models: Sequence[Checkpoint], name: str) -> Checkpoint:
    """A checkpoint among these by name or id."""
    for model in models:
        if name in (model.name, str(model.id)):
            return model
    raise NotFound(f"There is no {name} here.", f"There are {', '.join(model.name for model in models) or 'none yet'}.")


def figures(metrics: dict[str, Any]) -> str:
    """A result in one line, its first figures only."""
    numbers = [(name, value) for name, value in metrics.items() if isinstance(value, int | float)]
    return ", ".join(f"{name} {value:.3g}" for name, value in numbers[:4])


def follow(sessions: sessionmaker[Session], project_id: uuid.UUID, run_id: uuid.UUID) -> None:
    """Stay with a run until it has ended, showing its progress; raises what it failed with.

    Where nobody takes the run up, and no worker is at work on another, that is said aloud: it may wait for ever.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        shown = bar.add_task("waiting", total=None, left="")
        waiting_since = time.monotonic()
        while True:
            with sessions.begin() as session:
                run = runs.run(session, project_id, run_id)
                if run.status != RunStatus.QUEUED or runs.worker_is_busy(session):
                    waiting_since = time.monotonic()
            if time.monotonic() - waiting_since > NO_WORKER_S:
                bar.console.print(NO_WORKER.format(run=run.number))
                waiting_since = float("inf")
            left = f"{run.seconds_left:.0f} s left" if run.seconds_left is not None else ""
            words = f"run {run.number} ({run.kind}) {run.phase or run.status}"
            bar.update(shown, description=words, completed=run.step, total=run.total or None, left=left)
            if run.status not in LIVE_STATUSES or run.status == RunStatus.PAUSED:
                break
            time.sleep(0.5)
    if run.status != RunStatus.FINISHED:
        error = run.error or {}
        raise PairwrightError(
            f"Run {run.number} ({run.kind}) is {run.status}. {error.get('message', '')}".strip(), error.get("mend", "")
        )
    typer.echo(f"Run {run.number} ({run.kind}) has finished: {figures(run.metrics) or 'no figures'}.")

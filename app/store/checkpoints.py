"""Trained models, and the pointer to the one that writes the next pairs."""

import uuid
from collections.abc import Mapping
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.core.errors import Conflict, Invalid, NotFound
from app.core.vocabulary import CheckpointKind
from app.store import audit
from app.store.comparisons import retire
from app.store.models import Checkpoint, Comparison, Project, Promotion, new_id

_LETTER = {CheckpointKind.POLICY: "v", CheckpointKind.REWARD_MODEL: "r"}


def register(
    s: Session,
    project_id: uuid.UUID,
    kind: CheckpointKind,
    run_id: uuid.UUID | None,
    parent_id: uuid.UUID | None,
    folder_name: str,
    files: Mapping[str, str],
    metrics: Mapping[str, Any],
    name: str | None = None,
    checkpoint_id: uuid.UUID | None = None,
) -> Checkpoint:
    """Record a finished model as `v1`, `v2`, ... or `r1`, `r2`, ...; `files` maps paths in its folder to SHA-256.

    Registering the same folder again gives the same checkpoint, so a worker that died in between may repeat it.
    """
    _lock(s, project_id)
    known = s.scalars(select(Checkpoint).where(Checkpoint.folder_name == folder_name)).one_or_none()
    if known is not None:
        if (known.project_id, known.kind, known.files) != (project_id, kind, dict(files)):
            raise Conflict("This folder was registered before with other files.")
        return known
    newest = s.scalars(
        select(func.max(Checkpoint.number)).where(Checkpoint.project_id == project_id, Checkpoint.kind == kind)
    ).one()
    number = (newest or 0) + 1
    made = Checkpoint(
        id=checkpoint_id or new_id(),
        project_id=project_id,
        kind=kind,
        number=number,
        name=name or f"{_LETTER[kind]}{number}",
        run_id=run_id,
        parent_id=parent_id,
        folder_name=folder_name,
        files=dict(files),
        metrics=dict(metrics),
    )
    s.add(made)
    s.flush()
    return made


def _lock(s: Session, project_id: uuid.UUID) -> Project:
    """The project, held so that its numbers and its pointer change one after the other."""
    found = s.scalars(
        select(Project).where(Project.id == project_id).with_for_update(key_share=True),
        execution_options={"populate_existing": True},
    ).one_or_none()
    if found is None:
        raise NotFound("There is no such project.")
    return found


def checkpoint(s: Session, project_id: uuid.UUID, checkpoint_id: uuid.UUID) -> Checkpoint:
    """One checkpoint of this project; NotFound."""
    found = s.scalars(
        select(Checkpoint).where(Checkpoint.project_id == project_id, Checkpoint.id == checkpoint_id)
    ).one_or_none()
    if found is None:
        raise NotFound("There is no such model in this project.")
    return found


def policies(s: Session, project_id: uuid.UUID) -> list[Checkpoint]:
    """The policies of a project, newest first."""
    return _of_kind(s, project_id, CheckpointKind.POLICY)


def reward_models(s: Session, project_id: uuid.UUID) -> list[Checkpoint]:
    """The reward models of a project, newest first."""
    return _of_kind(s, project_id, CheckpointKind.REWARD_MODEL)


def _of_kind(s: Session, project_id: uuid.UUID, kind: CheckpointKind) -> list[Checkpoint]:
    query = select(Checkpoint).where(Checkpoint.project_id == project_id, Checkpoint.kind == kind)
    return list(s.scalars(query.order_by(Checkpoint.number.desc())))


def promote(s: Session, project_id: uuid.UUID, checkpoint_id: uuid.UUID, by: uuid.UUID | None) -> Promotion:
    """Make a policy the current one and retire what other policies wrote that is neither judged nor leased.

    NotFound for another project's, Invalid for a reward model, Conflict when it already is current.
    """
    project = _lock(s, project_id)
    policy = checkpoint(s, project_id, checkpoint_id)
    if policy.kind != CheckpointKind.POLICY:
        raise Invalid(f"{policy.name} is a reward model; only a policy can write answers.")
    if project.current_policy_id == policy.id:
        raise Conflict(f"{policy.name} already is the current policy.")
    return _move(s, project, policy.id, by, rolled_back=False)


def roll_back(s: Session, project_id: uuid.UUID, by: uuid.UUID | None) -> Promotion:
    """Make the policy current that was so before the last promotion. Conflict when there is none."""
    project = _lock(s, project_id)
    to = previous(s, project_id)
    if to is None:
        raise Conflict("There is no earlier policy to go back to.")
    return _move(s, project, to, by, rolled_back=True)


def previous(s: Session, project_id: uuid.UUID) -> uuid.UUID | None:
    """The policy that a roll-back would make current; None when there is no earlier one."""
    # A promotion lays a policy on the pile, a roll-back takes the top one off.
    pile: list[uuid.UUID] = []
    for move in reversed(history(s, project_id)):
        if move.rolled_back:
            pile.pop()
        else:
            pile.append(move.checkpoint_id)
    return pile[-2] if len(pile) > 1 else None


def _move(s: Session, project: Project, to: uuid.UUID, by: uuid.UUID | None, *, rolled_back: bool) -> Promotion:
    previous, project.current_policy_id = project.current_policy_id, to
    s.flush()
    # Comparisons without a policy of their own were imported, or belong to several: promotion is not about them.
    retired = retire(s, project.id, Comparison.checkpoint_id != to)
    move = Promotion(
        project_id=project.id,
        checkpoint_id=to,
        previous_id=previous,
        rolled_back=rolled_back,
        retired=retired,
        by_id=by,
    )
    s.add(move)
    s.flush()
    action = "policy.roll_back" if rolled_back else "policy.promote"
    audit.record(s, project.id, by, action, str(to), {"retired": retired})
    return move


def ever_promoted(s: Session, project_id: uuid.UUID) -> frozenset[uuid.UUID]:
    """The policies that were current at some time."""
    return frozenset(s.scalars(select(Promotion.checkpoint_id).where(Promotion.project_id == project_id)))


def history(s: Session, project_id: uuid.UUID) -> list[Promotion]:
    """The moves of the pointer, newest first."""
    return list(s.scalars(select(Promotion).where(Promotion.project_id == project_id).order_by(Promotion.id.desc())))

"""Trained models, and the pointer to the one that writes the next pairs."""

import uuid
from collections.abc import Mapping
from typing import Any

from sqlalchemy.orm import Session

from app.core.vocabulary import CheckpointKind
from app.store.models import Checkpoint, Promotion


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
    raise NotImplementedError


def checkpoint(s: Session, project_id: uuid.UUID, checkpoint_id: uuid.UUID) -> Checkpoint:
    """One checkpoint of this project; NotFound."""
    raise NotImplementedError


def policies(s: Session, project_id: uuid.UUID) -> list[Checkpoint]:
    """The policies of a project, newest first."""
    raise NotImplementedError


def reward_models(s: Session, project_id: uuid.UUID) -> list[Checkpoint]:
    """The reward models of a project, newest first."""
    raise NotImplementedError


def promote(s: Session, project_id: uuid.UUID, checkpoint_id: uuid.UUID, by: uuid.UUID | None) -> Promotion:
    """Make a policy the current one and retire what other policies wrote that is neither judged nor leased.

    NotFound for another project's, Invalid for a reward model, Conflict when it already is current.
    """
    raise NotImplementedError


def roll_back(s: Session, project_id: uuid.UUID, by: uuid.UUID | None) -> Promotion:
    """Make the policy current that was so before the last promotion. Conflict when there is none."""
    raise NotImplementedError


def history(s: Session, project_id: uuid.UUID) -> list[Promotion]:
    """The moves of the pointer, newest first."""
    raise NotImplementedError

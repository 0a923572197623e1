"""Freezing judgments, and writing what training reads."""

import uuid
from pathlib import Path

from sqlalchemy.orm import Session

from app.store.models import Snapshot


def freeze(s: Session, project_id: uuid.UUID, by: uuid.UUID | None = None) -> Snapshot:
    """Freeze the counted judgments of a project: neither withdrawn nor surplus, without gold, repeats and contests.

    Ties and both-bad are in it. The same judgments give the same hash.
    """
    raise NotImplementedError


def write_preferences(s: Session, snapshot_id: uuid.UUID, path: Path) -> str:
    """Write a snapshot as canonical JSONL of PreferenceRecord; returns its SHA-256, which is the snapshot's."""
    raise NotImplementedError


def write_prompts(s: Session, project_id: uuid.UUID, path: Path) -> str:
    """Write the project's prompts, both splits, as JSONL of PromptRecord by id; returns the SHA-256."""
    raise NotImplementedError


def write_demonstrations(s: Session, project_id: uuid.UUID, path: Path) -> str:
    """Write the demonstrations, both splits, as JSONL of DemonstrationRecord by id; returns the SHA-256."""
    raise NotImplementedError

"""Projects and their settings."""

import uuid

from sqlalchemy.orm import Session

from app.core.configs import SamplingSettings
from app.store.models import Project


def create_project(
    s: Session,
    slug: str,
    name: str,
    *,
    guidelines: str = "",
    votes_wanted: int = 1,
    sampling: SamplingSettings | None = None,
    heldout_share: float = 0.1,
    pool_target: int = 64,
    lease_seconds: int = 600,
    allow_tie: bool = True,
    allow_both_bad: bool = True,
    ask_strength: bool = False,
    by: uuid.UUID | None = None,
) -> Project:
    """A new project with a random salt; the owner and `by` are its admins. Conflict for a taken slug."""
    raise NotImplementedError


def project_by_slug(s: Session, slug: str) -> Project:
    """The project of this name; NotFound."""
    raise NotImplementedError


def projects_of(s: Session, account_id: uuid.UUID) -> list[Project]:
    """The projects that this account may enter, by name."""
    raise NotImplementedError


def all_projects(s: Session) -> list[Project]:
    """Every project, by age: for the worker, never for a page."""
    raise NotImplementedError


def guidelines(s: Session, project_id: uuid.UUID) -> str:
    """The text of the current guidelines."""
    raise NotImplementedError


def revise_guidelines(s: Session, project_id: uuid.UUID, body: str) -> int:
    """Make a new version current; returns its number."""
    raise NotImplementedError

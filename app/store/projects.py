"""Projects and their settings."""

import re
import uuid
from secrets import token_hex

from sqlalchemy import select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.core.configs import SamplingSettings
from app.core.errors import Conflict, Invalid, NotFound
from app.core.vocabulary import Role
from app.store import audit
from app.store.accounts import join, owner
from app.store.models import Account, Guideline, Membership, Project, new_id

LONGEST_GUIDELINES = 100_000


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
    if re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", slug) is None:
        raise Invalid("A project's address has small letters, digits and hyphens only.")
    project = s.scalars(
        insert(Project)
        .values(
            id=new_id(),
            slug=slug,
            name=name,
            salt=token_hex(16),
            heldout_share=heldout_share,
            votes_wanted=votes_wanted,
            sampling=(sampling or SamplingSettings()).model_dump(),
            pool_target=pool_target,
            lease_seconds=lease_seconds,
            allow_tie=allow_tie,
            allow_both_bad=allow_both_bad,
            ask_strength=ask_strength,
        )
        .on_conflict_do_nothing(index_elements=[Project.slug])
        .returning(Project)
    ).one_or_none()
    if project is None:
        raise Conflict(f"A project named {slug} already exists.", "Choose another address.")
    s.add(Guideline(project_id=project.id, version=1, body=guidelines, created_by=by))
    s.flush()
    the_owner = owner(s)
    admins = {by} if by else set()
    for account_id in admins | ({the_owner.id} if the_owner else set()):
        join(s, project.id, account_id, Role.ADMIN)
    audit.record(s, project.id, by, "project.create", str(project.id))
    return project


def project_by_slug(s: Session, slug: str) -> Project:
    """The project of this name; NotFound."""
    project = s.scalars(select(Project).where(Project.slug == slug)).one_or_none()
    if project is None:
        raise NotFound("There is no such project.")
    return project


def projects_of(s: Session, account_id: uuid.UUID) -> list[Project]:
    """The projects that this account may enter, by name."""
    query = (
        select(Project)
        .join(Membership)
        .join(Account, Account.id == Membership.account_id)
        .where(Account.id == account_id, Membership.deactivated_at.is_(None), Account.deactivated_at.is_(None))
        .order_by(Project.name, Project.id)
    )
    return list(s.scalars(query))


def all_projects(s: Session) -> list[Project]:
    """Every project, by age: for the worker, never for a page."""
    return list(s.scalars(select(Project).order_by(Project.created_at, Project.id)))


def guidelines(s: Session, project_id: uuid.UUID) -> str:
    """The text of the current guidelines."""
    query = select(Guideline.body).join(Project, Project.id == Guideline.project_id).where(Project.id == project_id)
    return s.scalars(query.where(Guideline.version == Project.guideline_version)).one()


def revise_guidelines(
    s: Session, project_id: uuid.UUID, body: str, created_by: uuid.UUID | None = None, base: int | None = None
) -> int:
    """Make a new version current; returns its number. The same text again changes nothing.

    `base` is the version that the text was edited from: a Conflict where somebody else has saved since. Invalid for a
    text that is too long or cannot be stored.
    """
    body = body.replace("\r\n", "\n").strip()
    if len(body) > LONGEST_GUIDELINES:
        raise Invalid(
            f"Guidelines have at most {LONGEST_GUIDELINES:,} characters.", "Shorten them; the text is still there."
        )
    if "\0" in body or any("\ud800" <= one <= "\udfff" for one in body):
        raise Invalid("The text holds a character that cannot be stored.", "Take it out; the text is still there.")
    # Held until the end, so that of two who save at once the second sees the first.
    newest = s.scalars(
        select(Project.guideline_version).where(Project.id == project_id).with_for_update(key_share=True)
    ).one()
    if base is not None and base != newest:
        raise Conflict(
            "Somebody else saved the guidelines while you were writing.",
            "Nothing was stored. Both texts are below: bring them together, then save.",
        )
    if guidelines(s, project_id) == body:
        return newest
    number = newest + 1
    s.add(Guideline(project_id=project_id, version=number, body=body, created_by=created_by))
    s.flush()
    s.execute(update(Project).where(Project.id == project_id).values(guideline_version=number))
    audit.record(s, project_id, created_by, "guidelines.revise", str(project_id), {"version": number})
    return number

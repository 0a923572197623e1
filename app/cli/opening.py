"""What commands share: the database, the project, and who is acting."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from sqlalchemy.orm import Session, sessionmaker

from app.core.errors import Invalid, NotFound
from app.jobs import database
from app.settings import Settings, get_settings
from app.store import accounts, migrate, projects
from app.store.db import make_engine, session_factory
from app.store.models import Project

ProjectOption = Annotated[
    str | None, typer.Option("--project", "-p", help="The project's short name; may be left out where there is one.")
]


@contextmanager
def store(settings: Settings | None = None) -> Iterator[sessionmaker[Session]]:
    """Sessions on the installation's database, with the schema of this version."""
    with database.opened(settings or get_settings()) as url:
        if migrate.state(url) != "current":
            database.migrated(url)
        engine = make_engine(url, pool_size=2)
        try:
            yield session_factory(engine)
        finally:
            engine.dispose()


def project_named(session: Session, slug: str | None) -> Project:
    """The project of that name, or the only one."""
    if slug is not None:
        return projects.project_by_slug(session, slug)
    every = projects.all_projects(session)
    if not every:
        raise NotFound("There is no project yet.", "The first `pairwright serve` makes one.")
    if len(every) > 1:
        names = ", ".join(project.slug for project in every)
        raise Invalid(f"There are several projects: {names}.", "Say which with --project.")
    return every[0]


def acting(session: Session) -> uuid.UUID | None:
    """In whose name the command line acts: the owner's. Whoever reads the data folder could do as much without us."""
    owner = accounts.owner(session)
    return owner.id if owner else None

"""Opening the installation's database: the configured one, or the embedded one, started by whoever comes first."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError

from app.core.errors import Unavailable
from app.settings import Settings
from app.store import embedded, migrate
from app.store.db import make_engine

logger = logging.getLogger("pairwright.supervisor")


class NoAnswer(Unavailable):
    """The database did not answer this time: it may be starting, restarting, or gone for a moment."""


@contextmanager
def opened(settings: Settings) -> Iterator[str]:
    """The URL of a database that answers. An embedded one is stopped by the last of its users."""
    if settings.database_url is not None:
        url = settings.database_url.get_secret_value()
        check(url)
        yield url
        return
    settings.make_home()
    url = embedded.start(settings.home)
    try:
        yield url
    finally:
        embedded.stop(settings.home)


def revive(settings: Settings, url: str) -> None:
    """Start the embedded database again where it has died; a database of somebody else's is theirs to start."""
    if settings.database_url is not None:
        return
    try:
        check(url)
    except Unavailable:
        logger.error("the embedded database does not answer; starting it again")
        try:
            embedded.start(settings.home)
        except Unavailable as error:
            logger.error("%s %s Trying again.", error.message, error.mend)


def check(url: str) -> None:
    """Raise one clear line where the database does not answer (NoAnswer), or not to us (Unavailable)."""
    engine = make_engine(url, pool_size=1)
    try:
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
    except OperationalError as error:
        raise _explained(url, str(error.orig)) from None
    finally:
        engine.dispose()


def migrated(url: str) -> None:
    """Bring the schema to this version's; refuse a schema that a newer version made."""
    if migrate.state(url) == "ahead":
        raise Unavailable(
            "The database was made by a newer version of Pairwright.",
            "Install that version, or restore a backup made by this one. Nothing was changed.",
        )
    migrate.upgrade(url)


def _explained(url: str, reason: str) -> Unavailable:
    """What a refused connection means and what mends it; the password stays unsaid."""
    where = make_url(url)
    place = f"{where.host or 'the local socket'}:{where.port or 5432}"
    mend = "Correct PAIRWRIGHT_DATABASE_URL, or leave it unset for the embedded database."
    if "password" in reason or "authentication" in reason or ("role" in reason and "does not exist" in reason):
        user = where.username or "without a name"
        return Unavailable(f"The database at {place} refuses the user {user} or its password.", mend)
    if "database" in reason and "does not exist" in reason:
        message = f"The database at {place} holds no database named {where.database}."
        return Unavailable(message, f"Make it with createdb. {mend}")
    if "resolve" in reason or "translate host" in reason:
        return Unavailable(f"The database's host {where.host} is not known.", mend)
    return NoAnswer(f"The database at {place} does not answer.", f"Start it, or open the way to it. {mend}")

"""The engine and its sessions."""

import time
from collections.abc import Mapping
from functools import cache
from typing import Any

from sqlalchemy import CursorResult, Engine, TextClause, create_engine, event
from sqlalchemy.dialects.postgresql import psycopg
from sqlalchemy.exc import ArgumentError, InvalidatePoolError
from sqlalchemy.orm import Session, sessionmaker

from app.core.errors import Invalid

TRUSTED_S = 1.0
_DIALECT = psycopg.PGDialect_psycopg()  # type: ignore[no-untyped-call]


def make_engine(url: str, pool_size: int = 10, *, busy: bool = False) -> Engine:
    """An engine for Postgres by psycopg 3. Any `postgres://` or `postgresql://` address will do; others are refused.

    Connections are tested before use, so that a restarted database costs a reconnect and not an error. Where requests
    come thick and fast (`busy`) one that answered within the last second is trusted: the error is then a 503.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in ("postgres", "postgresql", "postgresql+psycopg"):
        raise Invalid(
            "The database address is not one of Postgres.",
            "Set PAIRWRIGHT_DATABASE_URL to postgresql://user:password@host:port/name, or leave it unset.",
        )
    try:
        engine = create_engine(
            f"postgresql+psycopg://{rest}",
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_timeout=10,
            pool_pre_ping=not busy,
            connect_args={"connect_timeout": 5, "application_name": "pairwright"},
        )
    except (ArgumentError, ValueError) as error:
        raise Invalid(
            "The database address cannot be read.", "It looks like postgresql://user:password@host:port/name."
        ) from error
    if busy:
        _test_what_has_rested(engine)
    return engine


def _test_what_has_rested(engine: Engine) -> None:
    dialect = engine.dialect

    @event.listens_for(engine, "checkin")
    def note(connection: Any, record: Any) -> None:
        record.info["answered"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def test(connection: Any, record: Any, proxy: Any) -> None:
        if time.monotonic() - record.info.get("answered", time.monotonic()) <= TRUSTED_S:
            return
        try:
            dialect.do_ping(connection)
        except dialect.loaded_dbapi.Error as error:
            # It and all of its age are made anew.
            raise InvalidatePoolError from error


@cache
def _for_the_driver(statement: TextClause) -> str:
    return str(statement.compile(dialect=_DIALECT))


def quickly(s: Session, statement: TextClause, parameters: Mapping[str, Any]) -> CursorResult[Any]:
    """`s.execute` for the statements of every judgment: without what SQLAlchemy adds to a text, half of its time."""
    return s.connection().exec_driver_sql(_for_the_driver(statement), dict(parameters))


def session_factory(engine: Engine) -> sessionmaker[Session]:
    """Sessions whose objects stay readable after a commit. Who opens one commits it; nothing in the store does."""
    return sessionmaker(engine, expire_on_commit=False)

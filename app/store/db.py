"""The engine and its sessions."""

from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import ArgumentError
from sqlalchemy.orm import Session, sessionmaker

from app.core.errors import Invalid


def make_engine(url: str, pool_size: int = 10) -> Engine:
    """An engine for Postgres by psycopg 3. Any `postgres://` or `postgresql://` address will do; others are refused.

    Connections are tested before use, so that a restarted database costs a reconnect and not an error.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in ("postgres", "postgresql", "postgresql+psycopg"):
        raise Invalid(
            "The database address is not one of Postgres.",
            "Set PAIRWRIGHT_DATABASE_URL to postgresql://user:password@host:port/name, or leave it unset.",
        )
    try:
        return create_engine(
            f"postgresql+psycopg://{rest}",
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_timeout=10,
            pool_pre_ping=True,
            connect_args={"connect_timeout": 5, "application_name": "pairwright"},
        )
    except (ArgumentError, ValueError) as error:
        raise Invalid(
            "The database address cannot be read.", "It looks like postgresql://user:password@host:port/name."
        ) from error


def session_factory(engine: Engine) -> sessionmaker[Session]:
    """Sessions whose objects stay readable after a commit. Who opens one commits it; nothing in the store does."""
    return sessionmaker(engine, expire_on_commit=False)

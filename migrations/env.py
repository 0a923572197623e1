"""Alembic's entry: one transaction for all steps, under an advisory lock, on the connection that is handed in."""

import os

from alembic import context
from sqlalchemy import Connection, text

from app.store.db import make_engine
from app.store.models import Base

LOCK = 0x5061697277  # one migration at a time, whoever starts it


def run(connection: Connection) -> None:
    """Run the asked-for migration in one transaction: it happens whole, or the old schema still stands."""
    context.configure(
        connection=connection, target_metadata=Base.metadata, compare_type=True, transaction_per_migration=False
    )
    with context.begin_transaction():
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
        context.run_migrations()


if context.is_offline_mode():
    raise SystemExit("Migrations run against a database only.")

handed_in = context.config.attributes.get("connection")
if handed_in is not None:
    run(handed_in)
else:
    with make_engine(os.environ["PAIRWRIGHT_DATABASE_URL"]).connect() as connection:
        run(connection)

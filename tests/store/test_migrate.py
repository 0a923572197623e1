"""Bringing a database to the schema of this code."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import CheckConstraint, inspect, text

from app.core.errors import Conflict, Invalid, Unavailable
from app.store import migrate
from app.store.db import make_engine
from app.store.models import Base


def tables(url):
    engine = make_engine(url)
    found = set(inspect(engine).get_table_names()) - {"alembic_version"}
    engine.dispose()
    return found


def execute(url, statement):
    engine = make_engine(url)
    with engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()


def test_up_from_empty_down_to_nothing_and_up_again(empty_database_url):
    url = empty_database_url
    assert migrate.state(url) == "empty"
    migrate.upgrade(url)
    assert migrate.state(url) == "current"
    assert tables(url) == set(Base.metadata.tables)
    migrate.downgrade(url)
    assert tables(url) == set()
    engine = make_engine(url)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM pg_proc WHERE pronamespace = 'public'::regnamespace")) == 0
    engine.dispose()
    migrate.upgrade(url)
    assert migrate.state(url) == "current"


def test_the_migrated_schema_is_the_declared_one(database_url):
    migrate.differences(database_url)


def test_every_declared_constraint_and_index_is_in_the_database(database_url):
    """What `alembic check` does not compare: CHECK constraints."""
    engine = make_engine(database_url)
    with engine.connect() as connection:
        found = set(
            connection.scalars(
                text("SELECT conname FROM pg_constraint WHERE contype = 'c' AND connamespace = 'public'::regnamespace")
            )
        )
    engine.dispose()
    declared = {
        str(constraint.name)
        for table in Base.metadata.tables.values()
        for constraint in table.constraints
        if isinstance(constraint, CheckConstraint)
    }
    assert found == declared


def test_a_database_in_between_is_behind_and_one_from_the_future_is_ahead(database_url):
    migrate.downgrade(database_url, "0003")
    assert migrate.state(database_url) == "behind"
    execute(database_url, "UPDATE alembic_version SET version_num = '9999'")
    assert migrate.state(database_url) == "ahead"
    with pytest.raises(Conflict, match="newer version"):
        migrate.upgrade(database_url)


def test_the_kinds_of_run_grow_by_dpo_and_shrink_again_while_nobody_used_it(empty_database_url):
    url, kinds = empty_database_url, "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'ck_run_kind'"

    def said():
        engine = make_engine(url)
        with engine.connect() as connection:
            found = connection.scalar(text(kinds))
        engine.dispose()
        return found

    migrate.upgrade(url)
    assert "'dpo'" in said()
    migrate.downgrade(url, "0004")
    assert "'dpo'" not in said()
    assert "'ppo'" in said()
    migrate.upgrade(url)
    assert "'dpo'" in said()


def test_a_migration_that_fails_half_way_leaves_nothing(empty_database_url):
    execute(empty_database_url, "CREATE TABLE snapshot (in_the_way int)")
    with pytest.raises(Exception, match="already exists"):
        migrate.upgrade(empty_database_url)
    assert tables(empty_database_url) == {"snapshot"}
    assert migrate.state(empty_database_url) == "empty"


def test_many_may_migrate_at_once(empty_database_url):
    script = "import sys; from app.store import migrate; migrate.upgrade(sys.argv[1])"
    command = [sys.executable, "-c", script, empty_database_url]
    processes = [subprocess.Popen(command, cwd=Path(__file__).parents[2]) for _ in range(2)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(migrate.upgrade, [empty_database_url] * 3))
    assert [process.wait(60) for process in processes] == [0, 0]
    assert migrate.state(empty_database_url) == "current"


def test_what_is_no_postgres_and_what_does_not_answer_say_so_in_one_line():
    for url in ("sqlite:///x.db", "nonsense", "postgresql://host:notaport/x"):
        with pytest.raises(Invalid, match="database address"):
            migrate.state(url)
    with pytest.raises(Unavailable, match="does not answer"):
        migrate.state("postgresql://nobody:x@127.0.0.1:9/none")

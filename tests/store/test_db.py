"""Connections that die under us, and statements that go past SQLAlchemy's compiling."""

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from app.store import db


@pytest.fixture
def busy(database_url):
    engine = db.make_engine(database_url, pool_size=2, busy=True)
    yield db.session_factory(engine)
    engine.dispose()


def end_all_others(database_url):
    engine = db.make_engine(database_url)
    query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
    with engine.connect() as connection:
        connection.execute(text(f"{query} AND pid <> pg_backend_pid()"))
    engine.dispose()


def answer(sessions):
    with sessions() as s:
        return s.execute(text("SELECT 7")).scalar_one()


def test_a_connection_that_has_rested_is_tested_before_use(busy, database_url, monkeypatch):
    monkeypatch.setattr(db, "TRUSTED_S", -1.0)
    assert answer(busy) == 7
    end_all_others(database_url)
    assert answer(busy) == 7


def test_one_that_died_just_now_costs_one_error_and_all_are_made_anew(busy, database_url):
    with busy() as one, busy() as other:
        for s in (one, other):
            s.execute(text("SELECT 1"))
    end_all_others(database_url)
    with pytest.raises(OperationalError):
        answer(busy)
    assert [answer(busy), answer(busy)] == [7, 7]


def test_a_quick_statement_sees_what_the_session_did_and_takes_percent_signs_and_casts(session):
    session.execute(text("CREATE TEMP TABLE seen (n int)"))
    session.execute(text("INSERT INTO seen VALUES (5)"))
    statement = text("SELECT n % :by AS rest, '100 %'::text AS share, CAST(:ids AS int[]) AS ids FROM seen")
    row = db.quickly(session, statement, {"by": 3, "ids": [1, 2]}).one()
    assert (row.rest, row.share, row.ids) == (2, "100 %", [1, 2])

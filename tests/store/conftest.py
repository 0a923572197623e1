"""Help that only the store's tests need."""

from contextlib import contextmanager

import pytest
from sqlalchemy import event


@pytest.fixture
def project(make):
    return make.project()


@pytest.fixture
def policy(make, project):
    return make.policy(project, promote=True)


@pytest.fixture
def person(make, project):
    return make.person(project)


@pytest.fixture
def count_statements(session):
    """A block in which the statements that reach the database are collected."""

    @contextmanager
    def collecting():
        session.flush()
        statements = []

        def note(connection, cursor, statement, parameters, context, executemany):
            statements.append(statement)

        engine = session.get_bind().engine
        event.listen(engine, "before_cursor_execute", note)
        try:
            yield statements
        finally:
            event.remove(engine, "before_cursor_execute", note)

    return collecting

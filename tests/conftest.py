"""One embedded Postgres a test session, one migrated template, and what tests take from it."""

import fcntl
import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Engine, make_url
from sqlalchemy.orm import Session

from app.core.vocabulary import CheckpointKind, FinishReason, Role, Verdict
from app.store import accounts, checkpoints, claims, comparisons, embedded, judgments, migrate, projects, prompts
from app.store.db import make_engine
from app.store.models import Account, AccountKind, Checkpoint, Comparison, Project, Prompt, new_id

TEMPLATE = "pairwright_template"


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with an empty migrated template; workers of one session share it."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    home = shared / "database"
    url = embedded.start(home, durable=False)
    with (home / "template.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "template.made").exists():
            _admin(url, f"CREATE DATABASE {TEMPLATE}")
            migrate.upgrade(_named(url, TEMPLATE))
            (home / "template.made").touch()
    yield url
    embedded.stop(home)


def _named(url: str, database: str) -> str:
    return make_url(url).set(database=database).render_as_string(hide_password=False)


def _admin(url: str, statement: str) -> None:
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(statement)


def _drop(url: str, name: str) -> None:
    """Drop a database and whoever is connected; an autovacuum there is the superuser's, and is waited for."""
    for pause in (0.2, 0.5, 1, 2, 4, None):
        try:
            _admin(url, f"DROP DATABASE {name} WITH (FORCE)")
        except psycopg.errors.InsufficientPrivilege:
            if pause is None:
                raise
            time.sleep(pause)
        else:
            return


def _clone(url: str) -> Iterator[str]:
    name = f"test_{uuid.uuid4().hex}"
    _admin(url, f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
    yield _named(url, name)
    _drop(url, name)


@pytest.fixture
def database_url(server_url: str) -> Iterator[str]:
    """A fresh migrated database of its own, for tests that commit or need several connections."""
    yield from _clone(server_url)


@pytest.fixture
def empty_database_url(server_url: str) -> Iterator[str]:
    """A database without any table."""
    name = f"empty_{uuid.uuid4().hex}"
    _admin(server_url, f"CREATE DATABASE {name} TEMPLATE template0")
    yield _named(server_url, name)
    _drop(server_url, name)


@pytest.fixture(scope="session")
def shared_database_url(server_url: str) -> Iterator[str]:
    """The database behind `session`, one a worker."""
    yield from _clone(server_url)


@pytest.fixture(scope="session")
def shared_engine(shared_database_url: str) -> Iterator[Engine]:
    """The engine behind `session`."""
    engine = make_engine(shared_database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def session(shared_engine: Engine) -> Iterator[Session]:
    """A session whose commits are savepoints: all of it is rolled back after the test."""
    with shared_engine.connect() as connection:
        outer = connection.begin()
        with Session(connection, join_transaction_mode="create_savepoint", expire_on_commit=False) as opened:
            yield opened
        outer.rollback()


class Make:
    """Makes what a test needs, with defaults for what it does not care about. Everything is flushed."""

    def __init__(self, s: Session) -> None:
        self.s = s
        self._made = 0

    def _name(self, word: str) -> str:
        self._made += 1
        return f"{word}-{self._made}-{uuid.uuid4().hex[:6]}"

    def project(self, **settings: object) -> Project:
        return projects.create_project(self.s, self._name("project"), "A project", **settings)  # type: ignore[arg-type]

    def person(self, project: Project | None = None, role: Role = Role.ANNOTATOR) -> Account:
        """An account that cannot sign in quickly: its password hash is no hash, for hashing takes time."""
        name = self._name("person")
        account = Account(id=new_id(), kind=AccountKind.PERSON, username=name, username_key=name, password_hash="none")
        self.s.add(account)
        self.s.flush()
        if project is not None:
            accounts.join(self.s, project.id, account.id, role)
        return account

    def policy(self, project: Project, promote: bool = False, **fields: object) -> Checkpoint:
        made = checkpoints.register(
            self.s, project.id, CheckpointKind.POLICY, None, None, self._name("folder"), {"w": "00"}, {}, **fields
        )  # type: ignore[arg-type]
        if promote:
            checkpoints.promote(self.s, project.id, made.id, None)
        return made

    def reward_model(self, project: Project) -> Checkpoint:
        return checkpoints.register(
            self.s, project.id, CheckpointKind.REWARD_MODEL, None, None, self._name("folder"), {"w": "00"}, {}
        )

    def prompt(self, project: Project, text: str | None = None) -> Prompt:
        messages = [{"role": "user", "content": text or self._name("question")}]
        prompts.add_prompts(self.s, project, [messages], "test")  # type: ignore[list-item]
        return self.s.query(Prompt).filter_by(project_id=project.id).order_by(Prompt.id.desc()).limit(1).one()

    def pair(self, project: Project, policy: Checkpoint, prompt: Prompt | None = None, **fields: object) -> Comparison:
        answers = [
            comparisons.SampledCompletion(
                text=self._name("answer"),
                checkpoint_id=policy.id,
                seed=seed,
                temperature=1.0,
                top_p=1.0,
                max_tokens=96,
                chat_template_hash="ab" * 32,
                finish_reason=FinishReason.STOP,
            )
            for seed in (1, 2)
        ]
        prompt = prompt or self.prompt(project)
        return comparisons.add_sampled_pair(self.s, project, prompt.id, answers, **fields)  # type: ignore[arg-type]

    def submission(self, task: claims.Task, verdict: Verdict = Verdict.LEFT, **fields: object) -> judgments.Submission:
        values = {"comparison_id": task.comparison_id, "key": uuid.uuid4(), "verdict": verdict, "order": task.order}
        return judgments.Submission(**(values | fields))  # type: ignore[arg-type]

    def judged(
        self, project: Project, account: Account, verdict: Verdict = Verdict.LEFT, **fields: object
    ) -> judgments.Receipt:
        """Claim the next comparison and judge it."""
        [task] = claims.claim(self.s, project.id, account.id, count=1)
        return judgments.submit(self.s, project.id, account.id, self.submission(task, verdict, **fields))


@pytest.fixture
def make(session: Session) -> Make:
    """Factories on `session`."""
    return Make(session)


@pytest.fixture
def make_with() -> Callable[[Session], Make]:
    """Factories on a session of the test's own."""
    return Make


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The public data sets; the tests that read them are skipped without."""
    folder = os.environ.get("PAIRWRIGHT_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("PAIRWRIGHT_TEST_DATA does not name the folder of the public data sets")
    return Path(folder)

"""A whole application over a cloned database, and a steady cast of people to visit it."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import SecretStr
from sqlalchemy.orm import Session, sessionmaker

from app.core.vocabulary import Role
from app.settings import Settings
from app.store import accounts
from app.store.models import Account, Checkpoint, Project
from app.web.main import create_app
from app.web.security import signed

HERE = "http://127.0.0.1"
GOING = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Site": "same-origin", "Accept": "text/html,application/xhtml+xml"}
FETCHING = {"Sec-Fetch-Mode": "cors", "Sec-Fetch-Site": "same-origin"}


@dataclass
class Cast:
    """Two projects; in the first one person of each role, in the second somebody with the same roles elsewhere."""

    project: Project
    policy: Checkpoint
    people: dict[str, Account]
    other: Project
    stranger: Account


class House:
    """One application: its sessions to look behind the pages with, and browsers for its people."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.app: FastAPI = create_app(settings)
        self.sessions: sessionmaker[Session] = self.app.state.sessions

    @contextmanager
    def store(self) -> Iterator[Session]:
        """A session that commits at the end."""
        with self.sessions() as s:
            yield s
            s.commit()

    def browser(self, account: Account | None = None, base: str = HERE) -> TestClient:
        """A browser, signed in where an account is given."""
        browser = TestClient(self.app, base_url=base, follow_redirects=False, headers=GOING)
        if account is not None:
            with self.store() as s:
                browser.cookies.set("pairwright", signed(self.app.state.key, accounts.open_session(s, account.id)))
        return browser


@pytest.fixture
def open_house(database_url: str, tmp_path: Path) -> Iterator[Callable[..., House]]:
    """Builds applications with settings of the test's choice over one database."""
    opened = []

    def build(**settings: object) -> House:
        given = {"home": tmp_path, "database_url": SecretStr(database_url)} | settings
        opened.append(House(Settings(**given)))  # type: ignore[arg-type]
        return opened[-1]

    yield build
    for house in opened:
        house.app.state.engine.dispose()


@pytest.fixture
def house(open_house: Callable[..., House]) -> House:
    """An application on plain http and loopback."""
    return open_house()


@pytest.fixture
def cast(house: House, make_with: Callable[[Session], object]) -> Cast:
    """The people, and six pairs to judge."""
    with house.store() as s:
        make = make_with(s)
        project, other = make.project(), make.project()  # type: ignore[attr-defined]
        people = {role.value: make.person(project, role) for role in Role}  # type: ignore[attr-defined]
        stranger = make.person(other, Role.ADMIN)  # type: ignore[attr-defined]
        policy = make.policy(project, promote=True)  # type: ignore[attr-defined]
        for _ in range(6):
            make.pair(project, policy)  # type: ignore[attr-defined]
        return Cast(project, policy, people, other, stranger)


@pytest.fixture
def annotator(house: House, cast: Cast) -> TestClient:
    """The annotator's browser."""
    return house.browser(cast.people["annotator"])


@pytest.fixture
def admin(house: House, cast: Cast) -> TestClient:
    """The admin's browser."""
    return house.browser(cast.people["admin"])


def judgment(task: "dict[str, str]", **fields: object) -> dict[str, object]:
    """The form that the judge page sends for a task."""
    return {
        "comparison_id": task["comparison"],
        "key": str(uuid.uuid4()),
        "verdict": "left",
        "order": task["order"],
    } | fields

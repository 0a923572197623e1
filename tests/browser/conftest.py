"""One web process and one Chromium for the browser tests; each test has its own project, people and fresh profile."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, sync_playwright
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from app.core.vocabulary import Role
from app.store import accounts, checkpoints, judgments, projects
from app.store.db import make_engine, session_factory
from app.store.models import Account, Checkpoint, JudgmentRevision, Membership, Project
from app.web.security import signed
from tests.browser import server, stage
from tests.conftest import _clone


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here drives a browser."""
    for item in items:
        if Path(item.path).is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def site_database(server_url: str) -> Iterator[str]:
    """A database that the web process and the tests share."""
    yield from _clone(server_url)


@pytest.fixture(scope="session")
def site(site_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the web process."""
    with server.serve(site_database, tmp_path_factory.mktemp("home")) as address:
        yield address


@pytest.fixture(scope="session")
def sessions(site_database: str) -> Iterator[sessionmaker[Session]]:
    """Sessions on the same database, to furnish it and to look behind the pages."""
    engine = make_engine(site_database)
    yield session_factory(engine)
    engine.dispose()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """The browser. Where it is missing the suite is skipped in plain sight, and fails in CI."""
    if server.chromium_path() is None:
        reason = "no Chromium: set PAIRWRIGHT_CHROMIUM to its path"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = server.launch(playwright)
        yield browser
        browser.close()


class Watch:
    """Opens pages that must not complain: a console error, a refused script or style, a dialog fails the test."""

    def __init__(self, browser: Browser, site: str) -> None:
        self.browser, self.site = browser, site
        self.contexts: list[BrowserContext] = []
        self.complaints: list[str] = []
        self.off_origin: list[str] = []
        # Failed requests that a test causes itself are reported by the browser as console errors.
        self.expect_failed_requests = False

    def context(self, token: str | None = None, **settings: object) -> BrowserContext:
        """A fresh profile, signed in where a token is given."""
        context = self.browser.new_context(**settings)  # type: ignore[arg-type]
        context.set_default_timeout(8000)
        if token:
            context.add_cookies([{"name": "pairwright", "value": token, "url": self.site}])
        self.contexts.append(context)
        return context

    def page(self, context: BrowserContext) -> Page:
        """A page under watch."""
        page = context.new_page()
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.complaints.append(f"script error: {error}"))
        page.on("request", lambda request: self._asked(request.url))
        return page

    def _heard(self, message: ConsoleMessage) -> None:
        own_doing = self.expect_failed_requests and message.text.startswith("Failed to load resource")
        if message.type in ("error", "warning") and not own_doing:
            self.complaints.append(message.text)

    def _asked(self, url: str) -> None:
        if not url.startswith((self.site, "data:", "about:")):
            self.off_origin.append(url)


@pytest.fixture
def watch(chromium: Browser, site: str) -> Iterator[Watch]:
    """Pages under watch."""
    made = Watch(chromium, site)
    yield made
    for context in made.contexts:
        context.close()
    assert made.complaints == []
    assert made.off_origin == []


class Desk:
    """One project with pairs, or with `answers` each, and one person at the judge page who has read the guidelines.

    `guidelines` and any column of the project can be given.
    """

    def __init__(
        self, watch: Watch, sessions: sessionmaker[Session], pairs: int, guidelines: str = "", **settings: object
    ) -> None:
        self.watch, self.sessions, self.site = watch, sessions, watch.site
        with sessions() as s:
            slug = f"project-{time.time_ns()}"
            self.project: Project = projects.create_project(s, slug, "Support replies", guidelines=guidelines)
            for name, value in settings.items():
                setattr(self.project, name, value)
            s.flush()
            self.policy: Checkpoint = stage.register(s, self.project, stage.CheckpointKind.POLICY, None, None, {})
            checkpoints.promote(s, self.project.id, self.policy.id, None)
            stage.fill(s, self.project, self.policy, pairs)
            s.commit()
        self.person = self.member(Role.ANNOTATOR)
        self.base = f"/p/{slug}"

    def member(self, role: Role) -> Account:
        """Somebody new in the project."""
        with self.sessions() as s:
            account = stage.person(s, f"{role.value} {time.time_ns()}", self.project, role)
            s.get_one(Membership, (self.project.id, account.id)).guidelines_read = 1
            s.commit()
            return account

    def token(self, account: Account | None = None) -> str:
        """A session, as the cookie carries it."""
        with self.sessions() as s:
            token = accounts.open_session(s, (account or self.person).id)
            s.commit()
            return signed(server.KEY, token)

    def open(self, context: BrowserContext | None = None, path: str = "/judge", **settings: object) -> Page:
        """The judge page, open and ready, or another page of the project."""
        page = self.watch.page(context or self.watch.context(self.token(), **settings))
        page.goto(self.site + self.base + path)
        if path == "/judge" and settings.get("java_script_enabled", True):
            settle(page)
        return page

    def said(self) -> list[JudgmentRevision]:
        """What the person has said, in order."""
        with self.sessions() as s:
            query = select(JudgmentRevision).where(JudgmentRevision.account_id == self.person.id)
            return list(s.scalars(query.order_by(JudgmentRevision.submitted_at)))

    def total(self) -> int:
        """How many judgments of the person stand."""
        with self.sessions() as s:
            return judgments.tally(s, self.project.id, self.person.id).total


@pytest.fixture
def desk_of(watch: Watch, sessions: sessionmaker[Session]) -> Callable[..., Desk]:
    """Makes a project with so many pairs."""
    return lambda pairs=6, **project: Desk(watch, sessions, pairs, **project)


@pytest.fixture
def desk(desk_of: Callable[..., Desk]) -> Desk:
    """A project with six pairs."""
    return desk_of(6)


def shown(page: Page) -> str:
    """The comparison on show."""
    return page.locator("[data-task]:not([hidden])").get_attribute("data-comparison") or ""


def settle(page: Page) -> None:
    """Waits until everything is saved, and until a key would be meant for the pair on show."""
    page.wait_for_selector('#state[data-state="saved"]')
    page.wait_for_timeout(170)

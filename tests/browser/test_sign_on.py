"""Single sign-on in a real browser, by a real provider on loopback; the pages around it; a lost password."""

import os
import uuid
from collections.abc import Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from app.core.vocabulary import Role
from app.store import accounts, passwords
from app.web.security import signed
from tests.browser import server, stage
from tests.browser.conftest import Watch
from tests.web import provider as oidc
from tests.web.provider import Running

PASSWORD = "a quiet green page"


@pytest.fixture(scope="module")
def provider() -> Iterator[Running]:
    """The provider."""
    with oidc.running() as running:
        yield running


@pytest.fixture(scope="module")
def site_with_provider(site_database: str, provider: Running, tmp_path_factory) -> Iterator[str]:
    """A web process that knows it."""
    given = {"ISSUER": provider.address, "CLIENT_ID": oidc.CLIENT, "CLIENT_SECRET": oidc.SECRET, "NAME": "Example"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in given.items():
            patch.setenv(f"PAIRWRIGHT_OIDC_{name}", value)
        with server.serve(site_database, tmp_path_factory.mktemp("home")) as address:
            yield address
    assert "PAIRWRIGHT_OIDC_ISSUER" not in os.environ


@pytest.fixture
def watch(chromium: Browser, site_with_provider: str, provider: Running) -> Iterator[Watch]:
    """Pages under watch, which may lead to the provider and nowhere else."""
    made = Watch(chromium, site_with_provider)
    yield made
    for context in made.contexts:
        context.close()
    assert made.complaints == []
    assert [url for url in made.off_origin if not url.startswith(provider.address)] == []


@pytest.fixture
def set_(sessions) -> stage.Project:
    """A project."""
    with sessions() as s:
        made = stage.projects.create_project(s, f"project-{uuid.uuid4().hex[:8]}", "Support replies")
        s.commit()
        return made


def invited(sessions, project: stage.Project) -> str:
    with sessions() as s:
        token = accounts.invite(s, project.id, Role.RESEARCHER, None)
        s.commit()
        return f"/join/{token}"


def allow(page: Page, login: str) -> None:
    """What a person does at the provider."""
    expect(page.get_by_label("Login")).to_be_visible()
    page.get_by_label("Login").fill(login)
    page.get_by_role("button", name="Allow").click()


def clean(page: Page) -> None:
    """No violation of WCAG that axe can find."""
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_from_an_invitation_by_the_provider_into_the_product_and_back_again(watch: Watch, sessions, set_):
    watch.expect_failed_requests = True
    page = watch.page(watch.context())
    page.goto(watch.site + invited(sessions, set_))
    clean(page)
    page.get_by_role("link", name="Continue with Example").click()
    allow(page, "grace")
    page.wait_for_url(f"**/p/{set_.slug}")
    page.get_by_role("link", name="grace").click()
    expect(page.get_by_text("Linked: you can sign in by it.")).to_be_visible()
    clean(page)
    page.get_by_role("button", name="Sign out").click()
    page.goto(f"{watch.site}/p/{set_.slug}/runs")
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    clean(page)
    page.get_by_role("link", name="Continue with Example").click()
    allow(page, "grace")
    page.wait_for_url(f"**/p/{set_.slug}/runs")
    stranger = watch.page(watch.context())
    stranger.goto(f"{watch.site}/sign-in")
    stranger.get_by_role("link", name="Continue with Example").click()
    allow(stranger, "alan")
    expect(stranger.get_by_text("Ask an admin for an invitation")).to_be_visible()


@pytest.mark.parametrize("scripts", [True, False])
def test_an_account_is_linked_from_its_page(watch: Watch, sessions, set_, scripts):
    with sessions() as s:
        account = stage.person(s, f"barbara-{uuid.uuid4().hex[:6]}", set_, Role.RESEARCHER)
        token = signed(server.KEY, accounts.open_session(s, account.id))
        s.commit()
    page = watch.page(watch.context(token, java_script_enabled=scripts))
    page.goto(f"{watch.site}/account")
    page.get_by_role("button", name="Link Example").click()
    if not scripts:  # a form may not lead to another site, so a page with a link comes between
        page.get_by_role("link", name="Continue").last.click()
    allow(page, "bare")
    page.wait_for_url("**/account")
    expect(page.get_by_text("Linked: you can sign in by it.")).to_be_visible()
    page.get_by_role("button", name="Unlink").click()
    expect(page.get_by_text("Not linked.")).to_be_visible()


def test_a_lost_password_from_the_admins_page_to_signing_in(watch: Watch, sessions, set_):
    name = f"grace-{uuid.uuid4().hex[:6]}"
    with sessions() as s:
        stage.person(s, name, set_)
        admin = stage.person(s, f"ada-{name}", set_, Role.ADMIN)
        token = signed(server.KEY, accounts.open_session(s, admin.id))
        s.commit()
    page = watch.page(watch.context(token))
    page.goto(f"{watch.site}/p/{set_.slug}/people")
    clean(page)
    page.get_by_role("link", name=name, exact=True).click()
    page.get_by_role("button", name="Make a password link").click()
    link = page.get_by_label("Password link").input_value()
    clean(page)
    guest = watch.page(watch.context())
    guest.goto(link)
    clean(guest)
    guest.get_by_label("New password").fill(PASSWORD)
    guest.get_by_role("button", name="Set the password").click()
    expect(guest.get_by_text("The new password is set")).to_be_visible()
    guest.get_by_label("Name").fill(name)
    guest.get_by_label("Password", exact=True).fill(PASSWORD)
    guest.get_by_role("button", name="Sign in").click()
    guest.wait_for_url(lambda url: "sign-in" not in url)
    with sessions() as s:
        assert passwords.reset_of(s, link.rsplit("/", 1)[1]) is None

"""Becoming the owner, joining, signing in and out."""

import re

import pytest

from app.core.vocabulary import Role
from app.store import accounts
from tests.web.conftest import FETCHING, Cast, House
from tests.web.reading import words_of

PASSWORD = "a quiet green page"


@pytest.fixture
def link(house: House) -> str:
    """The path of the console's one-time link."""
    with house.store() as s:
        return f"/setup/{accounts.issue_setup_token(s)}"


def test_the_consoles_link_makes_the_owner_once_and_signs_in(house: House, link):
    browser = house.browser()
    assert "Make your account" in browser.get(link).text
    made = browser.post(link, data={"username": "ada", "password": PASSWORD})
    assert (made.status_code, made.headers["location"]) == (303, "/")
    assert "Preparing the first policy" in browser.get("/").text
    again = house.browser().post(link, data={"username": "eve", "password": PASSWORD})
    assert again.status_code == 409
    assert house.browser().get(link).status_code == 409


def test_a_bad_link_or_password_is_told_where_the_person_is_looking(house: House, link):
    browser = house.browser()
    wrong = browser.post("/setup/not-the-token", data={"username": "ada", "password": PASSWORD})
    assert wrong.status_code == 404
    assert "setup link is not valid" in words_of(wrong.text)
    short = browser.post(link, data={"username": "ada", "password": "short"}, headers=FETCHING)
    assert short.status_code == 422
    assert short.text.startswith('<div id="notice"')
    assert "at least 10 characters" in short.text
    assert browser.post(link, data={"username": "ada", "password": PASSWORD}).status_code == 303


def sign_in(house: House, username: str, password: str, **kwargs: object):
    return house.browser().post("/sign-in", data={"username": username, "password": password}, **kwargs)


def test_a_wrong_password_and_an_unknown_name_look_alike(house: House, link):
    house.browser().post(link, data={"username": "ada", "password": PASSWORD})
    wrong, unknown = sign_in(house, "ada", "not the password"), sign_in(house, "nobody", "not the password")
    assert (wrong.status_code, wrong.text) == (unknown.status_code, unknown.text)
    assert wrong.status_code == 401
    assert "do not belong together" in wrong.text
    assert 'name="password"' in wrong.text


def test_guessing_is_counted_although_it_fails(house: House, link):
    house.browser().post(link, data={"username": "ada", "password": PASSWORD})
    answers = [sign_in(house, "ada", f"guess number {i}", headers=FETCHING) for i in range(11)]
    assert [answer.status_code for answer in answers[:10]] == [401] * 10
    assert "Too many attempts" in answers[10].text
    assert "Too many attempts" in sign_in(house, "ada", PASSWORD, headers=FETCHING).text


def test_signing_in_leads_back_to_where_one_was_going_and_nowhere_else(house: House, link):
    house.browser().post(link, data={"username": "ada", "password": PASSWORD})
    stranger = house.browser()
    sent = stranger.get("/p/some-project/judge")
    assert sent.headers["location"] == "/sign-in?next=/p/some-project/judge"
    for given, led in [
        ("/p/some-project/judge", "/p/some-project/judge"),
        ("//evil.example", "/"),
        ("https://e.x", "/"),
    ]:
        answer = stranger.post("/sign-in", data={"username": "ada", "password": PASSWORD, "next": given})
        assert answer.headers["location"] == led


def test_each_sign_in_is_a_fresh_session_and_signing_out_ends_it(house: House, link):
    browser = house.browser()
    browser.post(link, data={"username": "ada", "password": PASSWORD})
    first = browser.cookies["pairwright"]
    browser.post("/sign-in", data={"username": "ada", "password": PASSWORD})
    second = browser.cookies["pairwright"]
    assert first != second
    planted = house.browser()
    planted.cookies.set("pairwright", first)
    assert planted.get("/").headers["location"].startswith("/sign-in")
    browser.post("/sign-out")
    kept = house.browser()
    kept.cookies.set("pairwright", second)
    assert kept.get("/").headers["location"].startswith("/sign-in")


def invited(admin, cast: Cast, role: str) -> str:
    page = admin.post(f"/p/{cast.project.slug}/people/invite", data={"role": role})
    return re.search(r"http://127\.0\.0\.1(/join/[^\"]+)", page.text).group(1)


def test_an_invitation_is_shown_once_and_works_once(house: House, cast: Cast, admin):
    link = invited(admin, cast, "annotator")
    assert link not in admin.get(f"/p/{cast.project.slug}/people").text
    guest = house.browser()
    assert "You are invited to judge" in guest.get(link).text
    joined = guest.post(link, data={"username": "grace", "password": PASSWORD})
    assert joined.headers["location"] == "/"
    assert guest.get("/").headers["location"] == f"/p/{cast.project.slug}/judge"
    late = house.browser().get(link)
    assert late.status_code == 409
    assert "has been used" in late.text


def test_an_invited_researcher_starts_at_the_loop_without_run_buttons(house: House, cast: Cast, admin):
    guest = house.browser()
    guest.post(invited(admin, cast, "researcher"), data={"username": "barbara", "password": PASSWORD})
    base = f"/p/{cast.project.slug}"
    assert guest.get("/").headers["location"] == base
    for path in ("", "/runs", "/policies", "/data"):
        page = guest.get(base + path)
        assert page.status_code == 200
        assert [form for form in re.findall(r'action="([^"]+)"', page.text) if form != "/sign-out"] == [], path


def test_somebody_with_an_account_joins_as_who_they_are(house: House, cast: Cast, admin):
    link = invited(admin, cast, "annotator")
    guest = house.browser(cast.stranger)
    assert f"Join as {cast.stranger.username}" in guest.get(link).text
    assert guest.post(link, data={}).status_code == 303
    with house.store() as s:
        membership = accounts.membership(s, cast.project.id, cast.stranger.id)
        assert membership is not None
        assert membership.role is Role.ANNOTATOR


def test_an_unknown_invitation_says_so(house: House):
    answer = house.browser().get("/join/nothing-of-the-kind")
    assert answer.status_code == 404
    assert "invitation does not exist" in answer.text


@pytest.mark.parametrize("extra", ["role", "project_id", "account_id", "is_owner", "annotator"])
def test_fields_that_are_not_in_the_form_are_refused_everywhere(house: House, cast: Cast, admin, link, extra):
    base = f"/p/{cast.project.slug}"
    forms = {
        "/sign-in": {"username": "a", "password": "b"},
        link: {"username": "a", "password": PASSWORD},
        "/sign-out": {},
        f"{base}/people/{cast.people['annotator'].id}/deactivate": {},
        f"{base}/policies/rollback": {},
        f"{base}/train": {"seed": "0"},
        f"{base}/next": {},
        f"{base}/undo": {},
    }
    for path, form in forms.items():
        answer = admin.post(path, data=form | {extra: "admin"}, headers=FETCHING)
        assert answer.status_code == 422, path
        assert "is not part of this form" in answer.text

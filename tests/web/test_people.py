"""The people of a project and one's own account, as pages."""

import re

import pytest

from app.core.vocabulary import Role
from app.store import accounts, members
from app.store.models import Account
from tests.web.conftest import FETCHING, Cast, House
from tests.web.reading import words_of

OLD, NEW = "correct horse battery", "a quiet green page"


@pytest.fixture
def owner(house: House, cast: Cast) -> Account:
    with house.store() as s:
        return accounts.create_owner(s, accounts.issue_setup_token(s) or "", "olga", OLD)


@pytest.fixture
def rosa(house: House, cast: Cast) -> Account:
    """An annotator with a password."""
    with house.store() as s:
        token = accounts.invite(s, cast.project.id, Role.ANNOTATOR, None)
        return accounts.accept_invitation(s, token, "rosa", OLD)


def of(cast: Cast, account: Account) -> str:
    return f"/p/{cast.project.slug}/people/{account.id}"


def reset_link(browser, cast: Cast, account: Account) -> str:
    page = browser.post(f"{of(cast, account)}/reset")
    return re.search(r"http://127\.0\.0\.1(/reset/[^\"]+)", page.text).group(1)


def sign_in(house: House, name: str, password: str) -> int:
    return house.browser().post("/sign-in", data={"username": name, "password": password}).status_code


def test_a_lost_password_is_set_anew_by_an_admins_link(house: House, cast: Cast, admin, rosa):
    signed_in = house.browser(rosa)
    link = reset_link(admin, cast, rosa)
    assert link not in admin.get(of(cast, rosa)).text
    guest = house.browser()
    assert "For rosa ." in words_of(guest.get(link).text)
    short = guest.post(link, data={"password": "short"}, headers=FETCHING)
    assert (short.status_code, "at least 10" in short.text) == (422, True)
    done = guest.post(link, data={"password": NEW, "username": "rosa"})
    assert done.headers["location"] == "/sign-in?said=password"
    assert "set-cookie" not in done.headers  # it signs nobody in
    assert "The new password is set" in guest.get("/sign-in?said=password").text
    assert signed_in.get("/").headers["location"].startswith("/sign-in")
    assert (sign_in(house, "rosa", OLD), sign_in(house, "rosa", NEW)) == (401, 303)


def test_links_that_set_nothing_are_answered_alike(house: House, cast: Cast, admin, rosa):
    used, void = reset_link(admin, cast, rosa), None
    house.browser().post(used, data={"password": NEW})
    void, _ = reset_link(admin, cast, rosa), reset_link(admin, cast, rosa)
    for ask in (
        lambda path: house.browser().get(path),
        lambda path: house.browser().post(path, data={"password": NEW}),
    ):
        answers = [ask(path) for path in (used, void, "/reset/never-was")]
        assert {(answer.status_code, answer.text) for answer in answers} == {(404, answers[0].text)}


def test_attempts_at_links_are_counted_although_they_fail(house: House, cast: Cast, monkeypatch):
    monkeypatch.setattr("app.store.passwords.THROTTLE_RESETS", 3)
    browser = house.browser()
    answers = [browser.post("/reset/guess", data={"password": NEW}).status_code for _ in range(4)]
    assert answers == [404, 404, 404, 429]


def test_an_admin_has_no_button_and_no_way_for_other_admins_and_the_owner(house: House, cast: Cast, admin, owner):
    with house.store() as s:
        other = accounts.accept_invitation(s, accounts.invite(s, cast.project.id, Role.ADMIN, None), "otto", OLD)
    for person in (owner, other, cast.people["admin"]):
        assert "Make a password link" not in admin.get(of(cast, person)).text
        assert admin.post(f"{of(cast, person)}/reset").status_code == 403
    assert admin.post(f"{of(cast, cast.stranger)}/reset").status_code == 404
    assert "Make a password link" in house.browser(owner).get(of(cast, other)).text


def test_what_is_the_owners_alone_is_not_an_admins(house: House, cast: Cast, admin, owner, rosa):
    assert "The whole account" not in admin.get(of(cast, rosa)).text
    for act, form in (("close", {}), ("open", {}), ("erase", {"name": "rosa"})):
        assert admin.post(f"{of(cast, rosa)}/{act}", data=form).status_code == 403
    mine = house.browser(owner)
    theirs = house.browser(rosa)
    assert mine.post(f"{of(cast, rosa)}/close").status_code == 303
    assert theirs.get("/").headers["location"].startswith("/sign-in")
    assert sign_in(house, "rosa", OLD) == 401
    assert mine.post(f"{of(cast, rosa)}/open").status_code == 303
    assert sign_in(house, "rosa", OLD) == 303
    assert mine.post(f"{of(cast, rosa)}/erase", data={"name": "rose"}).status_code == 422
    assert mine.post(f"{of(cast, rosa)}/erase", data={"name": "rosa"}).status_code == 303
    assert "(erased)" in mine.get(of(cast, rosa)).text
    assert "rosa" not in mine.get(f"/p/{cast.project.slug}/people").text


def test_a_role_counts_from_the_next_request(house: House, cast: Cast, admin, annotator):
    person = cast.people["annotator"]
    assert annotator.get(f"/p/{cast.project.slug}/judge").status_code == 200
    assert admin.post(f"{of(cast, person)}/role", data={"role": "researcher"}).status_code == 303
    assert annotator.get(f"/p/{cast.project.slug}/judge").status_code == 403
    assert annotator.get(f"/p/{cast.project.slug}/runs").status_code == 200
    admin.post(f"{of(cast, person)}/deactivate")
    assert annotator.get(f"/p/{cast.project.slug}/runs").status_code == 404
    admin.post(f"{of(cast, person)}/reactivate")
    assert annotator.get(f"/p/{cast.project.slug}/runs").status_code == 200


def test_an_invitation_is_noted_listed_and_revoked(house: House, cast: Cast, admin):
    base = f"/p/{cast.project.slug}/people"
    made = admin.post(f"{base}/invite", data={"role": "annotator", "days": "30", "note": "for <Rosa>"})
    link = re.search(r"http://127\.0\.0\.1(/join/[^\"]+)", made.text).group(1)
    page = admin.get(base).text
    assert "for &lt;Rosa&gt;" in page
    assert "30 days" in words_of(page)
    revoke = re.search(r'action="([^"]+/revoke)"', page).group(1)
    assert admin.post(revoke).status_code == 303
    assert house.browser().get(link).status_code == 404
    assert admin.post(revoke).status_code == 404
    assert admin.post(f"{base}/invite", data={"role": "annotator", "days": "365"}).status_code == 422


def test_ones_own_password_is_changed_and_other_browsers_are_signed_out(house: House, cast: Cast, rosa):
    here = house.browser()
    here.post("/sign-in", data={"username": "rosa", "password": OLD})
    other = house.browser(rosa)
    before = here.cookies["pairwright"]
    wrong = here.post("/account/password", data={"current": "not it", "password": NEW}, headers=FETCHING)
    assert (wrong.status_code, "current password is not right" in wrong.text) == (422, True)
    changed = here.post("/account/password", data={"current": OLD, "password": NEW})
    assert changed.headers["location"] == "/account"
    assert here.cookies["pairwright"] != before
    assert here.get("/account").status_code == 200
    assert other.get("/account").headers["location"].startswith("/sign-in")
    assert (sign_in(house, "rosa", OLD), sign_in(house, "rosa", NEW)) == (401, 303)


def test_guessing_at_the_current_password_is_counted(house: House, cast: Cast, rosa, monkeypatch):
    monkeypatch.setattr("app.store.credentials.password_matches", lambda stored, password: False)
    browser = house.browser(rosa)
    form = {"current": "guess", "password": NEW}
    answers = [browser.post("/account/password", data=form, headers=FETCHING).status_code for _ in range(11)]
    assert answers == [422] * 10 + [429]


def test_other_browsers_are_signed_out_one_by_one_or_all(house: House, cast: Cast, rosa):
    here, one, two = (house.browser(rosa) for _ in range(3))
    assert here.get("/account").text.count('name="browser"') == 2
    with house.store() as s:
        of_one = members.browsers(s, rosa.id)[1]  # newest first: two, one, here
    assert here.post("/account/browsers/end", data={"browser": of_one.id}).status_code == 303
    alive = [browser.get("/account").status_code for browser in (here, one, two)]
    assert alive == [200, 303, 200]
    here.post("/account/browsers/end")
    assert [browser.get("/account").status_code for browser in (here, two)] == [200, 303]
    assert here.post("/account/browsers/end", data={"browser": "xyz"}).status_code == 422

"""Signing in by a real provider on loopback, and every way in which an answer can lie."""

import re
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

import pytest
from pydantic import SecretStr
from sqlalchemy import func, select

from app.core.vocabulary import Role
from app.store import accounts, identities, members
from app.store.identities import Known
from app.store.models import Account, Identity
from app.web import oidc
from tests.web.conftest import Cast, House
from tests.web.provider import CLIENT, SECRET, Running, running
from tests.web.reading import words_of

PASSWORD = "a quiet green page"


@pytest.fixture(scope="module")
def process() -> Iterator[Running]:
    """The provider, one for this file."""
    with running() as provider:
        yield provider


@pytest.fixture
def provider(process: Running) -> Running:
    """The provider, honest."""
    process.lie()
    return process


@pytest.fixture
def settings(provider: Running) -> dict[str, object]:
    return {
        "oidc_issuer": provider.address,
        "oidc_client_id": CLIENT,
        "oidc_client_secret": SecretStr(SECRET),
        "oidc_name": "Example",
    }


@pytest.fixture
def house(open_house, settings) -> House:
    """An application that knows the provider."""
    return open_house(**settings)


@pytest.fixture
def invitation(house: House, cast: Cast) -> str:
    with house.store() as s:
        return accounts.invite(s, cast.project.id, Role.ANNOTATOR, cast.people["admin"].id)


def away(browser, provider: Running, login: str = "grace", way: str = "/oidc/start", **changed: str) -> str:
    """To the provider and allowed there; the path that leads back."""
    there = browser.get(way)
    assert there.status_code == 303, there.text
    back = urlsplit(provider.sign_in(there.headers["location"], login, **changed))
    return f"{back.path}?{back.query}"


def signed_in_as(browser) -> str | None:
    page = browser.get("/account")
    found = re.search(r"You are <strong><bdi>(.+?)</bdi>", page.text)
    return found.group(1) if found else None


def people(house: House) -> int:
    with house.store() as s:
        return s.scalar(select(func.count()).select_from(Account)) or 0


def test_an_invitation_and_the_provider_make_an_account_that_signs_in_again(house: House, cast, provider, invitation):
    browser = house.browser()
    joined = browser.get(away(browser, provider, way=f"/oidc/start?join={invitation}"))
    assert (joined.status_code, joined.headers["location"]) == (303, "/")
    assert browser.get("/").headers["location"] == f"/p/{cast.project.slug}/judge"
    again = house.browser()
    back = again.get(away(again, provider, way=f"/oidc/start?next=/p/{cast.project.slug}/judge"))
    assert back.headers["location"] == f"/p/{cast.project.slug}/judge"
    assert signed_in_as(again) == signed_in_as(browser) == "grace"
    assert house.browser().get(f"/join/{invitation}").status_code == 409
    # Nobody signs in as them by a password, for they have none.
    assert house.browser().post("/sign-in", data={"username": "grace", "password": "none"}).status_code == 401


def test_who_was_not_invited_is_refused_kindly_and_no_account_is_made(house: House, cast, provider):
    before = people(house)
    browser = house.browser()
    refused = browser.get(away(browser, provider))
    assert refused.status_code == 403
    assert "Ask an admin for an invitation" in words_of(refused.text)
    assert (people(house), signed_in_as(browser)) == (before, None)


def test_an_account_is_never_found_by_a_name_or_an_address_that_agrees(house: House, cast, provider, invitation):
    with house.store() as s:
        for name in ("grace", "grace@example.org"):
            token = accounts.invite(s, cast.project.id, Role.ADMIN, cast.people["admin"].id)
            accounts.accept_invitation(s, token, name, PASSWORD)
    browser = house.browser()
    assert browser.get(away(browser, provider)).status_code == 403
    browser.get(away(browser, provider, way=f"/oidc/start?join={invitation}"))
    assert signed_in_as(browser) == "grace-2"


def test_names_come_from_userinfo_where_the_token_has_none(house: House, cast, provider, invitation):
    browser = house.browser()
    browser.get(away(browser, provider, "bare", f"/oidc/start?join={invitation}"))
    assert signed_in_as(browser) == "Bare.Name"


def test_userinfo_about_somebody_else_is_not_heard(house: House, cast, provider, invitation):
    provider.lie(userinfo={"sub": "sub-alan", "name": "Alan"})
    browser = house.browser()
    browser.get(away(browser, provider, "bare", f"/oidc/start?join={invitation}"))
    assert signed_in_as(browser) == "person"


def test_the_consoles_link_may_be_used_with_the_provider(house: House, provider):
    with house.store() as s:
        token = accounts.issue_setup_token(s)
    browser = house.browser()
    assert "Continue with Example" in browser.get(f"/setup/{token}").text
    browser.get(away(browser, provider, way=f"/oidc/start?setup={token}"))
    with house.store() as s:
        assert accounts.owner(s).username == "grace"
    late = house.browser()
    assert late.get(away(late, provider, "alan", f"/oidc/start?setup={token}")).status_code == 409


def test_a_known_person_accepts_a_second_invitation_as_who_they_are(house: House, cast, provider, invitation):
    with house.store() as s:
        identities.link(s, cast.stranger.id, Known(provider.address, "sub-grace"))
    browser = house.browser()
    for _ in range(2):  # the second time they belong already, and are simply signed in
        assert browser.get(away(browser, provider, way=f"/oidc/start?join={invitation}")).status_code in (303, 409)
    with house.store() as s:
        assert accounts.membership(s, cast.project.id, cast.stranger.id).role is Role.ANNOTATOR


def linking(browser, provider: Running, login: str = "grace") -> str:
    there = browser.post("/account/link", headers={"HX-Request": "true"}).headers["hx-redirect"]
    back = urlsplit(provider.sign_in(there, login))
    return f"{back.path}?{back.query}"


def test_an_account_is_linked_and_unlinked_by_its_own_person(house: House, cast, provider):
    browser = house.browser(cast.people["annotator"])
    assert browser.get(linking(browser, provider)).headers["location"] == "/account"
    other = house.browser()
    other.get(away(other, provider))
    assert signed_in_as(other) == cast.people["annotator"].username
    assert browser.post("/account/unlink").status_code == 303
    assert house.browser().get(away(house.browser(), provider)).status_code == 422  # the browser is another one
    stranger = house.browser()
    assert stranger.get(away(stranger, provider)).status_code == 403


def test_an_identity_that_is_somebody_elses_cannot_be_linked(house: House, cast, provider):
    mine, other = house.browser(cast.people["annotator"]), house.browser(cast.people["researcher"])
    mine.get(linking(mine, provider))
    assert other.get(linking(other, provider)).status_code == 409
    assert mine.get(linking(mine, provider, "alan")).status_code == 409
    with house.store() as s:
        assert [row.account_id for row in s.scalars(select(Identity))] == [cast.people["annotator"].id]


def test_linking_needs_the_person_who_began_it(house: House, cast, provider):
    browser = house.browser(cast.people["annotator"])
    back = linking(browser, provider)
    swapped = house.browser(cast.people["researcher"])
    swapped.cookies.set("pairwright-oidc", browser.cookies["pairwright-oidc"])
    assert swapped.get(back).status_code == 409
    # Another site cannot begin it, and by GET nobody can.
    assert browser.post("/account/link", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert browser.get("/account/link").status_code == 405


def test_without_scripts_linking_goes_by_a_page_with_a_link(house: House, cast, provider):
    page = house.browser(cast.people["annotator"]).post("/account/link")
    assert page.status_code == 200
    assert f'href="{provider.address}/authorize?' in page.text


def test_the_only_way_in_cannot_be_unlinked(house: House, cast, provider, invitation):
    browser = house.browser()
    browser.get(away(browser, provider, way=f"/oidc/start?join={invitation}"))
    assert browser.post("/account/unlink").status_code == 422
    assert browser.post("/account/password", data={"current": "", "password": PASSWORD}).status_code == 422


def test_somebody_deactivated_stays_out(house: House, cast, provider):
    with house.store() as s:
        owner = accounts.create_owner(s, accounts.issue_setup_token(s), "ada", PASSWORD)
        who = cast.people["annotator"].id
        identities.link(s, who, Known(provider.address, "sub-grace"))
        members.close_account(s, who, owner.id)
    browser = house.browser()
    refused = browser.get(away(browser, provider))
    assert (refused.status_code, signed_in_as(browser)) == (403, None)


LIES = {
    "another audience": {"claims": {"aud": "somebody-else"}},
    "another audience, but for us to use": {"claims": {"aud": "somebody-else", "azp": CLIENT}},
    "among audiences, but for another party": {"claims": {"aud": [CLIENT, "other"], "azp": "other"}},
    "another issuer": {"claims": {"iss": "https://evil.example"}},
    "another nonce": {"claims": {"nonce": "swapped"}},
    "no nonce": {"claims": {"nonce": None}},
    "expired": {"claims": {"exp": 1_700_000_000}},
    "never expires": {"claims": {"exp": None}},
    "from the future": {"claims": {"iat": 4_000_000_000, "exp": 4_000_000_300}},
    "no subject": {"claims": {"sub": None}},
    "a subject that is no name": {"claims": {"sub": ["sub-grace"]}},
    "an empty subject": {"claims": {"sub": ""}},
    "unsigned": {"sign": "none"},
    "the public key as a shared secret": {"sign": "HS256"},
    "a stranger's key under the right id": {"sign": "stranger"},
    "another access token": {"claims": {"at_hash": "AAAAAAAAAAAAAAAAAAAAAA"}},
    "no token": {"token": {"id_token": None}},
    "rubbish": {"token": {"id_token": "a.b.c"}},
    "a number": {"token": {"id_token": 7}},
    "unsigned is said to be fine": {"sign": "none", "metadata": {"id_token_signing_alg_values_supported": ["none"]}},
}


def test_an_answer_that_lies_signs_nobody_in(house: House, cast, provider, caplog):
    with house.store() as s:
        identities.link(s, cast.people["admin"].id, Known(provider.address, "sub-grace"))
    for name, lie in LIES.items():
        provider.lie(**lie)
        # What the provider says of itself is read anew.
        house.app.state.provider = oidc.Provider(house.settings)
        browser = house.browser()
        refused = browser.get(away(browser, provider))
        assert refused.status_code == 403, name
        assert "could not be verified" in refused.text, name
        assert signed_in_as(browser) is None, name
    assert "sub-grace" not in caplog.text
    provider.lie()
    browser = house.browser()
    assert browser.get(away(browser, provider)).status_code == 303


def test_the_answer_must_come_to_the_browser_that_asked_once_and_with_its_state(house: House, cast, provider):
    with house.store() as s:
        identities.link(s, cast.people["admin"].id, Known(provider.address, "sub-grace"))
    browser = house.browser()
    back = away(browser, provider)
    assert (
        house.browser().get(back).status_code == 422
    )  # a link that an attacker passes on: their sign-in, your browser
    state = parse_qs(urlsplit(back).query)["state"][0]
    kept = browser.cookies["pairwright-oidc"]
    assert browser.get(back.replace(state, "x" + state[1:])).status_code == 422
    assert browser.get(back).status_code == 422  # the trip ended at the first answer
    browser.cookies.set("pairwright-oidc", kept)
    assert browser.get(back).status_code == 303
    assert signed_in_as(browser) == cast.people["admin"].username
    replayed = house.browser()
    replayed.cookies.set("pairwright-oidc", kept)
    assert replayed.get(back).status_code == 403  # the provider takes a code once
    assert signed_in_as(replayed) is None


def test_a_code_of_another_browsers_trip_is_worth_nothing(house: House, cast, provider):
    with house.store() as s:
        identities.link(s, cast.people["admin"].id, Known(provider.address, "sub-grace"))
    victim, thief = house.browser(), house.browser()
    stolen = parse_qs(urlsplit(away(victim, provider)).query)["code"][0]
    own = away(thief, provider, "alan")
    code = parse_qs(urlsplit(own).query)["code"][0]
    # Another verifier: PKCE at the provider refuses.
    assert thief.get(own.replace(code, stolen)).status_code == 403
    assert signed_in_as(thief) is None


def test_an_answer_in_another_providers_name_is_refused(house: House, cast, provider):
    for lie in ("https://evil.example", ""):
        provider.lie(answer_iss=lie)
        browser = house.browser()
        refused = browser.get(away(browser, provider))
        assert (refused.status_code, "another provider" in refused.text) == (403, True)


def test_a_no_at_the_provider_is_a_no(house: House, cast, provider):
    browser = house.browser()
    refused = browser.get(away(browser, provider, deny="1"))
    assert refused.status_code == 403
    assert "were not signed in by Example" in refused.text


def test_new_keys_are_fetched_when_the_old_ones_do_not_fit(house: House, cast, provider):
    with house.store() as s:
        identities.link(s, cast.people["admin"].id, Known(provider.address, "sub-grace"))
    for twist in ({}, {"rotate": True}):
        provider.lie(**twist)
        browser = house.browser()
        assert browser.get(away(browser, provider)).status_code == 303


def test_next_leads_nowhere_else(house: House, cast, provider):
    with house.store() as s:
        identities.link(s, cast.people["admin"].id, Known(provider.address, "sub-grace"))
    for evil in ("https://evil.example", "//evil.example", "/\\evil.example", "/\t/evil.example"):
        browser = house.browser()
        there = browser.get("/oidc/start", params={"next": evil}).headers["location"]
        back = urlsplit(provider.sign_in(there, "grace"))
        led = browser.get(f"{back.path}?{back.query}").headers["location"]
        assert led.startswith("/"), evil
        assert not led.startswith(("//", "/\\", "/\t")), evil


def test_a_cookie_that_was_tampered_with_or_is_too_old_is_none(house: House, cast, provider, monkeypatch):
    browser = house.browser()
    back = away(browser, provider)
    good = browser.cookies["pairwright-oidc"]
    for forged in (good[:-1] + ("0" if good[-1] != "0" else "1"), "a" + good, good.partition(".")[0], "."):
        other = house.browser()
        other.cookies.set("pairwright-oidc", forged)
        assert other.get(back).status_code == 422
    real = oidc.time.time
    monkeypatch.setattr(oidc.time, "time", lambda: real() + oidc.TRIP_LASTS_S + 1)
    assert browser.get(back).status_code == 422


def test_each_sign_in_is_a_fresh_session(house: House, cast, provider):
    with house.store() as s:
        identities.link(s, cast.people["admin"].id, Known(provider.address, "sub-grace"))
    browser = house.browser()
    browser.get(away(browser, provider))
    planted = browser.cookies["pairwright"]
    browser.get(away(browser, provider))
    assert browser.cookies["pairwright"] != planted
    old = house.browser()
    old.cookies.set("pairwright", planted)
    assert signed_in_as(old) is None


def test_on_https_the_trips_cookie_is_bound_to_host_and_line(open_house, settings, provider):
    browser = open_house(public_url="https://judge.example.org", **settings).browser(base="https://judge.example.org")
    answer = browser.get("/oidc/start")
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("__Host-pairwright-oidc=")
    for word in ("HttpOnly", "SameSite=lax", "Secure", "Path=/", "Max-Age=600"):
        assert word in cookie
    asked = parse_qs(urlsplit(answer.headers["location"]).query)
    assert asked["redirect_uri"] == ["https://judge.example.org/oidc/callback"]
    assert asked["code_challenge_method"] == ["S256"]


def test_a_provider_that_is_down_says_so_and_passwords_go_on(open_house, settings):
    house = open_house(**(settings | {"oidc_issuer": "http://127.0.0.1:9"}))
    with house.store() as s:
        accounts.create_owner(s, accounts.issue_setup_token(s), "ada", PASSWORD)
    browser = house.browser()
    assert "Continue with Example" in browser.get("/sign-in").text
    away_ = browser.get("/oidc/start")
    assert away_.status_code == 503
    assert "Example does not answer" in away_.text
    assert browser.post("/sign-in", data={"username": "ada", "password": PASSWORD}).status_code == 303


def test_a_provider_that_points_elsewhere_is_not_followed(house: House, provider):
    for lie in (
        {"moved": "http://127.0.0.1:9/elsewhere"},
        {"metadata": {"issuer": "https://evil.example"}},
        {"metadata": {"token_endpoint": "http://evil.example/token"}},
        {"metadata": {"jwks_uri": "file:///etc/passwd"}},
        {"metadata": {"authorization_endpoint": None}},
    ):
        provider.lie(**lie)
        assert house.browser().get("/oidc/start").status_code == 503, lie


def test_with_passwords_off_only_the_owner_has_one(open_house, settings, cast, make_with, provider):
    house = open_house(oidc_passwords=False, **settings)
    with house.store() as s:
        accounts.create_owner(s, accounts.issue_setup_token(s), "ada", PASSWORD)
        token = accounts.invite(s, cast.project.id, Role.ANNOTATOR, None)
        accounts.accept_invitation(s, token, "grace", PASSWORD)
        token = accounts.invite(s, cast.project.id, Role.ANNOTATOR, None)
    known, wrong = (
        house.browser().post("/sign-in", data={"username": "grace", "password": word}) for word in (PASSWORD, "wrong")
    )
    assert (known.status_code, known.text) == (wrong.status_code, wrong.text)
    assert known.status_code == 401
    assert house.browser().post("/sign-in", data={"username": "ada", "password": PASSWORD}).status_code == 303
    guest = house.browser()
    assert 'name="password"' not in guest.get(f"/join/{token}").text
    assert guest.post(f"/join/{token}", data={"username": "rosa", "password": PASSWORD}).status_code == 422
    guest.get(away(guest, provider, "alan", f"/oidc/start?join={token}"))
    assert signed_in_as(guest) == "Alan.Turing"


def test_without_a_provider_none_of_it_exists(open_house):
    browser = open_house().browser()
    assert browser.get("/oidc/start").status_code == 404
    assert browser.get("/oidc/callback?code=x&state=y").status_code == 404
    assert "Continue with" not in browser.get("/sign-in").text

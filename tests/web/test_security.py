"""What stands around every request: headers, other sites, the cookie, the log, failures."""

import errno
import logging
import uuid

import psycopg
import pytest
from pydantic import SecretStr
from sqlalchemy.exc import OperationalError
from starlette.requests import Request

from app.store import accounts, judgments
from app.web.access import declared
from app.web.routes import ROUTERS
from app.web.security import HEADERS, client_of, session_token, signed
from tests.web.conftest import FETCHING, GOING, Cast, House, judgment
from tests.web.reading import tasks_of, words_of
from tests.web.test_access import address, counts

PASSWORD = "a quiet green page"


@pytest.fixture
def broken(house: House) -> House:
    """An application with a route that breaks."""

    @house.app.get("/broken")
    def broken() -> None:
        raise RuntimeError("the secret of the broken route")

    return house


def test_every_kind_of_answer_carries_the_safe_headers(broken: House, cast: Cast):
    browser = broken.browser(cast.people["admin"])
    paths = [f"/p/{cast.project.slug}", "/sign-in", "/nothing", "/broken", "/static/app.css", "/livez"]
    answers = [browser.get(path) for path in paths] + [
        broken.browser().get("/"),
        browser.post("/sign-in", data={"a": "b"}),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 404, 500, 200, 200, 303, 422]
    for answer in answers:
        for name, value in HEADERS.items():
            assert answer.headers[name] == value
        assert len(answer.headers["x-request-id"]) == 32


def test_the_policy_for_content_allows_nothing_inline_and_no_other_place():
    policy = HEADERS["content-security-policy"]
    assert "unsafe" not in policy
    assert "http" not in policy
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy


def test_pages_are_stored_nowhere_and_hashed_files_for_good(house: House, cast: Cast, admin):
    page = admin.get(f"/p/{cast.project.slug}/judge")
    assert page.headers["cache-control"] == "no-store"
    hashed = next(part for part in page.text.split('"') if part.startswith("/static/app.css?v="))
    assert admin.get(hashed).headers["cache-control"] == "public, max-age=31536000, immutable"
    assert admin.get("/static/app.css").headers["cache-control"] == "no-cache"


OTHER_SITES = [
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Origin": "https://elsewhere.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:9999"},
]


def test_every_unsafe_route_refuses_other_sites(house: House, cast: Cast):
    browser = house.browser(cast.people["admin"])
    del browser.headers["sec-fetch-site"]
    before = counts(house)
    for method, path, _ in declared(ROUTERS):
        if method == "GET":
            continue
        for headers in OTHER_SITES:
            answer = browser.request(method, address(path, cast, cast.project.slug), headers=headers)
            assert answer.status_code == 403, f"{method} {path} {headers}"
            assert "another site" in answer.text
    assert counts(house) == before


def test_our_own_forms_and_plain_programs_are_let_through(house: House, cast: Cast, admin):
    base = f"/p/{cast.project.slug}"
    for headers in ({"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}):
        assert admin.post(f"{base}/next", headers=headers).status_code == 303
    del admin.headers["sec-fetch-site"]
    assert admin.post(f"{base}/next", headers={"Origin": "http://127.0.0.1"}).status_code == 303
    assert admin.post(f"{base}/next").status_code == 303


def test_behind_a_proxy_the_public_address_is_our_own(open_house, cast: Cast):
    house = open_house(public_url="https://judge.example.org")
    browser = house.browser(base="http://10.0.0.5:8000")
    del browser.headers["sec-fetch-site"]
    form = {"username": "nobody", "password": "nothing"}
    assert browser.post("/sign-in", data=form, headers={"Origin": "https://judge.example.org"}).status_code == 401
    assert browser.post("/sign-in", data=form, headers={"Origin": "https://other.example.org"}).status_code == 403


def test_get_changes_nothing_but_the_readers_own_leases(house: House, cast: Cast):
    browser = house.browser(cast.people["admin"])
    before = counts(house)
    for method, path, _ in declared(ROUTERS):
        if method == "GET":
            browser.get(address(path, cast, cast.project.slug))
    after = counts(house)
    assert {table for table in after if after[table] != before[table]} == {"assignment"}


def owner(house: House) -> None:
    with house.store() as s:
        accounts.create_owner(s, accounts.issue_setup_token(s) or "", "ada", PASSWORD)


def test_on_plain_http_here_the_cookie_is_http_only_and_lax(house: House):
    owner(house)
    answer = house.browser().post("/sign-in", data={"username": "ada", "password": PASSWORD})
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("pairwright=")
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert "Secure" not in cookie


def test_on_https_the_cookie_is_bound_to_host_and_line(open_house):
    house = open_house(public_url="https://judge.example.org")
    owner(house)
    browser = house.browser(base="https://judge.example.org")
    answer = browser.post("/sign-in", data={"username": "ada", "password": PASSWORD})
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("__Host-pairwright=")
    for word in ("HttpOnly", "SameSite=lax", "Secure", "Path=/"):
        assert word in cookie
    assert "Domain" not in cookie
    assert answer.headers["strict-transport-security"] == "max-age=31536000"
    assert browser.get("/").status_code == 200


@pytest.mark.parametrize("forged", ["", ".", "a token", "a token.", "a token." + "0" * 64, "\u00e4.\u00e4"])
def test_a_cookie_that_this_installation_did_not_sign_is_no_cookie(house: House, forged: str):
    def token_of(cookie: str) -> str | None:
        header = (b"cookie", f"pairwright={cookie}".encode("latin-1"))
        return session_token(Request({"type": "http", "headers": [header], "app": house.app}))

    assert token_of(forged) is None
    assert token_of(signed(house.app.state.key, "a token")) == "a token"
    assert token_of(signed("another key", "a token")) is None


def test_a_sign_in_that_cannot_keep_its_cookie_says_why(open_house):
    house = open_house()
    owner(house)
    form = {"username": "ada", "password": PASSWORD}
    far = house.browser(base="http://192.168.1.20:8000")
    assert "PAIRWRIGHT_PUBLIC_URL" in words_of(far.get("/sign-in").text)
    answer = far.post("/sign-in", data=form)
    assert answer.status_code == 422
    assert "could be read on the way" in words_of(answer.text)
    assert "set-cookie" not in answer.headers
    allowed = open_house(allow_plain_http=True).browser(base="http://192.168.1.20:8000")
    assert allowed.post("/sign-in", data=form).status_code == 303
    behind = open_house(public_url="https://judge.example.org").browser(base="http://judge.example.org")
    refused = behind.post("/sign-in", data=form, headers=GOING | {"Origin": "http://judge.example.org"})
    assert refused.status_code == 422
    assert "https://judge.example.org/sign-in" in words_of(refused.text)


def test_nothing_that_people_write_reaches_the_log(broken: House, cast: Cast, caplog):
    caplog.set_level(logging.DEBUG)
    browser = broken.browser(cast.people["annotator"])
    base = f"/p/{cast.project.slug}"
    task = tasks_of(browser.get(f"{base}/judge").text)[0]
    browser.post(f"{base}/judgments", data=judgment(task))
    browser.post("/sign-in", data={"username": "canary-name", "password": "canary-password"})
    browser.get("/join/canary-token")
    browser.get(f"{base}/judge?canary=query")
    browser.get("/broken")
    said = "\n".join(record.getMessage() for record in caplog.records if not record.name.startswith("http"))
    assert "RuntimeError" in said
    assert "'route': '/p/{slug}/judgments'" in said
    for canary in ("canary", "the secret of the broken route", "answer-", "question-"):
        assert canary not in said


def test_an_unforeseen_error_has_a_page_with_the_requests_id(broken: House, cast: Cast):
    answer = broken.browser(cast.people["admin"]).get("/broken")
    assert "Something broke on our side" in answer.text
    assert answer.headers["x-request-id"] in answer.text
    assert "secret of the broken" not in answer.text
    assert 'id="notice"' in broken.browser().get("/broken", headers=FETCHING).text


def test_a_database_that_is_down_is_a_pause_and_says_so(open_house):
    nowhere = SecretStr("postgresql://nobody:x@127.0.0.1:9/nothing")
    house = open_house(database_url=nowhere)
    browser = house.browser()
    browser.cookies.set("pairwright", signed(house.app.state.key, "a token"))
    page = browser.get("/p/a-project/judge")
    assert (page.status_code, page.headers["retry-after"]) == (503, "5")
    assert "does not answer right now" in page.text
    assert browser.get("/readyz").status_code == 503
    assert browser.get("/livez").status_code == 200


def test_ready_means_database_schema_and_disk(house: House, empty_database_url, open_house):
    assert house.browser().get("/readyz").json() == {"status": "ready"}
    empty = open_house(database_url=SecretStr(empty_database_url)).browser()
    assert empty.get("/readyz").status_code == 503


def test_an_answer_of_200_means_that_the_commit_happened(house: House, cast: Cast, annotator, monkeypatch):
    base = f"/p/{cast.project.slug}"
    task = tasks_of(annotator.get(f"{base}/judge").text)[0]

    def refuse_to_commit(_: object) -> None:
        raise OperationalError("COMMIT", {}, Exception("the line is gone"))

    with monkeypatch.context() as patch:
        patch.setattr("sqlalchemy.orm.Session.commit", refuse_to_commit)
        assert annotator.post(f"{base}/judgments", data=judgment(task), headers=FETCHING).status_code == 503
    with house.store() as s:
        assert judgments.tally(s, cast.project.id, cast.people["annotator"].id).total == 0


def test_a_form_that_is_too_large_is_refused_in_words(house: House):
    answer = house.browser().post("/sign-in", data={"username": "a" * (2 << 20), "password": "b"})
    assert answer.status_code == 413


def test_what_a_database_cannot_hold_is_refused_and_never_our_fault(house: House, cast: Cast, annotator, admin):
    name = {"username": "a\0b", "password": "a long enough password"}
    assert house.browser().post("/sign-in", data=name).status_code == 422
    assert admin.get("/p/%00").status_code == 404
    base = f"/p/{cast.project.slug}"
    task = tasks_of(annotator.get(f"{base}/judge").text)[0]
    skip = {"comparison_id": task["comparison"], "reason": "a\0b"}
    assert annotator.post(f"{base}/skip", data=skip, headers=FETCHING).status_code == 422
    assert admin.get(f"{base}/runs/{uuid.uuid4()}/metrics?after={10**30}").status_code == 422


def test_a_full_disk_is_named_whether_the_database_or_the_upload_meets_it(
    house: House, cast: Cast, annotator, admin, monkeypatch
):
    base = f"/p/{cast.project.slug}"
    task = tasks_of(annotator.get(f"{base}/judge").text)[0]

    def no_room(*_: object, **__: object) -> None:
        raise OperationalError("INSERT", {}, psycopg.errors.DiskFull("could not extend file"))

    def no_room_here(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("app.store.judgments.submit", no_room)
        answer = annotator.post(f"{base}/judgments", data=judgment(task), headers=FETCHING)
    assert answer.status_code == 503
    assert "The disk is full; nothing was stored." in answer.text
    for where in ("app.store.imports.import_jsonl", "starlette.datastructures.UploadFile.write"):
        with monkeypatch.context() as patch:
            patch.setattr(where, no_room_here)
            answer = admin.post(f"{base}/data/import", data={"kind": "prompts"}, files={"file": ("a.jsonl", b"{}")})
        assert (where, answer.status_code) == (where, 503)
        assert "The disk is full; nothing was stored." in answer.text


def test_too_many_attempts_answer_429_and_say_when_to_come_back(house: House, cast: Cast, monkeypatch):
    monkeypatch.setattr("app.store.credentials.password_matches", lambda stored, password: False)
    browser = house.browser()
    answers = [browser.post("/sign-in", data={"username": "olga", "password": "wrong"}) for _ in range(11)]
    assert [answer.status_code for answer in answers] == [401] * 10 + [429]
    assert answers[-1].headers["retry-after"] == "300"


@pytest.mark.parametrize(
    ("host", "client"),
    [("192.0.2.1", "192.0.2.1"), ("2001:db8::1:2", "2001:db8::/64"), ("testclient", "testclient")],
)
def test_attempts_count_together_by_address_or_network(host, client):
    assert client_of(Request({"type": "http", "client": (host, 1)})) == client

"""Simulated annotators against a page of a few lines: what they read, what they send, and how they fail."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs
from uuid import UUID, uuid4

import pytest

from app.rehearsal.annotators import Person, judge_all, simulate
from app.rehearsal.browser import Browser, RehearsalError, read_tasks

PROMPT = "My kettle arrived broken. My order number is 4821."
GOOD = "Hello! I have found order 4821 for your kettle. We will send you a new kettle free of charge."
BAD = "Please stop wasting our time. Do not write again. I am tired of messages about order 1111."


def task(comparison: str, left: str, right: str, order: str = "1,0") -> str:
    return f"""<article data-task data-comparison="{comparison}" data-order="{order}"><h2>Q</h2>
      <div class="text" data-turn="user">{PROMPT}</div>
      <div><section><div data-answer="left">{left}</div></section></div>
      <div><section><div data-answer="right">{right}</div></section></div>
    </article>"""


class Fake(ThreadingHTTPServer):
    """Serves endless comparisons, the good answer left and right in turn, and remembers what was sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[dict[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.served: dict[str, str] = {}
        self.empty = False
        self.lock = threading.Lock()

    def fresh(self) -> str:
        with self.lock:
            comparison, good_left = str(uuid4()), len(self.served) % 2 == 0
            self.served[comparison] = "left" if good_left else "right"
        return task(comparison, *((GOOD, BAD) if good_left else (BAD, GOOD)))


class Handler(BaseHTTPRequestHandler):
    server: Fake

    def answer(self, text: str, status: int = 200, **headers: str) -> None:
        body = text.encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.path == "/p/support/judge":
            self.answer(
                "<main>No pair is ready</main>" if self.server.empty else self.server.fresh() + self.server.fresh()
            )
        else:
            self.answer("<h1>home</h1>")

    def do_POST(self) -> None:
        form = {k: v[0] for k, v in parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode()).items()}
        if self.path == "/sign-in":
            wrong = form["password"] == "wrong"
            self.answer(
                "wrong name or password" if wrong else "", 401 if wrong else 303, Location="/", Set_Cookie="s=1"
            )
        elif self.path == "/p/support/people/invite":
            self.answer('<input value="http://elsewhere/join/a-token">')
        elif self.path.startswith("/join/"):
            self.answer("", 303, Location="/")
        else:
            with self.server.lock:
                self.server.seen.append(form)
                self.server.headers.append(dict(self.headers.items()))
            self.answer(self.server.fresh())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def fake() -> Iterator[Fake]:
    server = Fake()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def address(fake: Fake) -> str:
    return f"http://127.0.0.1:{fake.server_address[1]}"


def test_tasks_are_read_as_a_person_reads_them() -> None:
    page = task("c1", "It&#39;s <b>bold</b> &amp; fine.<br>Yes", "no") + task("c2", "x", "y", order="0,1")
    first, second = read_tasks(f"<main>{page}</main>")
    assert first.answers == {"left": "It's bold & fine.\nYes", "right": "no"}
    assert (first.prompt, first.order, second.comparison) == (PROMPT, "1,0", "c2")


def test_an_article_without_two_answers_is_no_task() -> None:
    assert read_tasks('<article data-task data-comparison="c"><div data-turn="user">Hi</div></article>') == []


def test_people_judge_by_the_taste_and_share_the_work(fake: Fake) -> None:
    people = [Person(f"p{i}", "right") for i in range(3)]
    reports = judge_all(address(fake), "support", people, 20, seed=1)
    assert [r.judgments for r in reports] == [7, 7, 6]
    assert len(fake.seen) == 20
    chosen = [form["verdict"] == fake.served[form["comparison_id"]] for form in fake.seen]
    assert sum(chosen) >= 19  # their utilities are far apart
    assert all(UUID(form["key"]) for form in fake.seen)
    assert len({form["comparison_id"] for form in fake.seen}) == 20
    assert {form["order"] for form in fake.seen} == {"1,0"}


def test_a_judgment_says_which_pairs_the_page_has_already(fake: Fake) -> None:
    judge_all(address(fake), "support", [Person("p", "right")], 2, seed=0)
    assert fake.seen[0]["held"] == fake.seen[1]["comparison_id"]


def test_requests_carry_what_a_browser_sends(fake: Fake) -> None:
    judge_all(address(fake), "support", [Person("p", "right")], 1, seed=0)
    sent = fake.headers[0]
    assert (sent["Origin"], sent["Sec-Fetch-Site"], sent["HX-Request"]) == (address(fake), "same-origin", "true")
    assert sent["Cookie"] == "s=1"


def test_simulate_invites_people_and_reports(fake: Fake) -> None:
    reports = simulate(address(fake), "support", Person("owner", "right"), people=2, judgments=4, seed=0)
    assert [r.judgments for r in reports] == [2, 2]


def test_a_wrong_password_is_said(fake: Fake) -> None:
    with pytest.raises(RehearsalError, match="401: wrong name or password"):
        judge_all(address(fake), "support", [Person("p", "wrong")], 1, seed=0)


def test_a_pool_that_stays_empty_is_said(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.rehearsal.annotators.EMPTY_POOL_PATIENCE_S", 0.3)
    fake.empty = True
    with pytest.raises(RehearsalError, match="No pair is ready"):
        judge_all(address(fake), "support", [Person("p", "right")], 1, seed=0)


def test_a_page_without_an_invitation_is_said(fake: Fake) -> None:
    with Browser(address(fake)) as browser, pytest.raises(RehearsalError, match="no invitation"):
        browser.invite("another")

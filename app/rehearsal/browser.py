"""A browser as far as a simulated annotator needs one: cookies, the headers a browser sends, the HTML read back."""

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from types import TracebackType
from typing import Self

import httpx

VOID = frozenset({"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"})


class RehearsalError(Exception):
    """The product did not answer as the rehearsal needs it to."""


@dataclass
class Task:
    """One comparison as the page shows it: the customer's turns and the two answers, left first."""

    comparison: str
    order: str
    turns: list[tuple[str, str]] = field(default_factory=list)
    answers: dict[str, str] = field(default_factory=dict)

    @property
    def prompt(self) -> str:
        """The last message of the user."""
        return [text for role, text in self.turns if role == "user"][-1]


class _Tasks(HTMLParser):
    """Collects `<article data-task>` elements with the text of their `data-turn` and `data-answer` descendants."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tasks: list[Task] = []
        self._path: list[str] = []  # open elements, each with what it collects: "task", "turn", "answer" or ""
        self._text: list[str] = []
        self._name = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in VOID:
            if tag == "br" and self._name:
                self._text.append("\n")
            return
        given = {k: v or "" for k, v in attrs}
        kind = ""
        if "data-task" in given:
            kind = "task"
            self.tasks.append(Task(given.get("data-comparison", ""), given.get("data-order", "0,1")))
        elif "task" in self._path and not self._name and ("data-turn" in given or "data-answer" in given):
            kind = "turn" if "data-turn" in given else "answer"
            self._name, self._text = given.get(f"data-{kind}", ""), []
        self._path.append(kind)

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID or not self._path:
            return
        kind = self._path.pop()
        if kind in ("turn", "answer"):
            text = "".join(self._text).strip()
            if kind == "turn":
                self.tasks[-1].turns.append((self._name, text))
            else:
                self.tasks[-1].answers[self._name] = text
            self._name = ""

    def handle_data(self, data: str) -> None:
        if self._name:
            self._text.append(data)


def read_tasks(html: str) -> list[Task]:
    """The comparisons that a page or fragment shows, in order; those without two answers are left out."""
    parser = _Tasks()
    parser.feed(html)
    parser.close()
    return [t for t in parser.tasks if t.comparison and t.turns and {"left", "right"} <= t.answers.keys()]


def visible_text(html: str, limit: int = 300) -> str:
    """The words of a page, for an error message."""
    bare = re.sub(r"(?s)<(script|style|head)\b.*?</\1>|<[^>]+>", " ", html)
    return " ".join(bare.split())[:limit]


class Browser:
    """One person's session. Follows redirects; an answer of 400 or more raises RehearsalError."""

    def __init__(self, url: str, timeout_s: float = 60.0) -> None:
        self.url = url.rstrip("/")
        self._client = httpx.Client(base_url=self.url, follow_redirects=True, timeout=timeout_s, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def get(self, path: str) -> httpx.Response:
        """A page, as if its address had been followed. Guidelines that stand before it are read."""
        page = self._checked(
            self._client.get(path, headers={"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "navigate"})
        )
        unread = re.search(r'action="([^"]+/guidelines/read)"[\s\S]*?name="version" value="(\d+)"', page.text)
        if unread is None or page.url.path == path:
            return page
        return self.post(unread[1], {"version": unread[2]})

    def post(self, path: str, form: dict[str, str], *, fragment: bool = False) -> httpx.Response:
        """A form sent from a page of the same site; `fragment` asks for the piece of a page that htmx would."""
        headers = {
            "Origin": self.url,
            "Sec-Fetch-Site": "same-origin",
            "Sec-Fetch-Mode": "cors" if fragment else "navigate",
        }
        if fragment:
            headers["HX-Request"] = "true"
        return self._checked(self._client.post(path, data=form, headers=headers))

    def _checked(self, response: httpx.Response) -> httpx.Response:
        if response.status_code >= 400:
            request = response.request
            words = visible_text(response.text)
            raise RehearsalError(f"{request.method} {request.url.path} answered {response.status_code}: {words}")
        return response

    def sign_in(self, username: str, password: str) -> None:
        """Signs in; the session's cookie stays with this browser."""
        page = self.post("/sign-in", {"username": username, "password": password})
        if page.url.path == "/sign-in":
            raise RehearsalError(f"{username} could not sign in: {visible_text(page.text)}")

    def set_up_owner(self, link: str, username: str, password: str) -> None:
        """Makes the installation's owner by the link of the console, and signs in as the owner."""
        path = httpx.URL(link).path
        self.get(path)
        self.post(path, {"username": username, "password": password})
        self._signed_in_or_sign_in(username, password)

    def invite(self, slug: str, role: str = "annotator") -> str:
        """The path of a one-time invitation, made by an admin."""
        page = self.post(f"/p/{slug}/people/invite", {"role": role})
        found = re.search(r"/join/[A-Za-z0-9_.~-]+", page.text)
        if found is None:
            raise RehearsalError(f"no invitation in the page: {visible_text(page.text)}")
        return found.group()

    def join(self, path: str, username: str, password: str) -> None:
        """Accepts an invitation under a new name, and signs in."""
        self.get(path)
        self.post(path, {"username": username, "password": password})
        self._signed_in_or_sign_in(username, password)

    def _signed_in_or_sign_in(self, username: str, password: str) -> None:
        if self.get("/").url.path == "/sign-in":
            self.sign_in(username, password)

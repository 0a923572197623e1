"""Rendering: templates, the choice between a page, a fragment and a redirect, and errors in the house's voice."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from app.core.errors import Conflict, Forbidden, Invalid, NotFound, PairwrightError, TooMany, Unavailable
from app.core.vocabulary import Role
from app.web import language, said, words
from app.web.access import SignInNeeded, Visit
from app.web.rendering import rich, shown
from app.web.results import brief

ROOT = Path(__file__).resolve().parents[2]
STATIC = ROOT / "static"
STATUS: dict[type[PairwrightError], int] = {
    SignInNeeded: 401,
    NotFound: 404,
    Conflict: 409,
    Invalid: 422,
    TooMany: 429,
    Forbidden: 403,
    Unavailable: 503,
}

RETRY_AFTER = {429: "300", 503: "5"}


@dataclass(frozen=True)
class Place:
    """A page in the bar across the top."""

    key: str
    path: str
    label: str


PLACES = (
    Place("loop", "", "Loop"),
    Place("judge", "/judge", "Judge"),
    Place("history", "/history", "History"),
    Place("guidelines", "/guidelines", "Guidelines"),
    Place("runs", "/runs", "Runs"),
    Place("policies", "/policies", "Policies"),
    Place("data", "/data", "Data"),
    Place("people", "/people", "People"),
    Place("quality", "/quality", "Quality"),
    Place("settings", "/settings", "Settings"),
    Place("me", "/me", "Your numbers"),
)
SEEN_BY = {
    Role.ADMIN: {place.key for place in PLACES} - {"me", "history"},  # their own stand on the page of all
    Role.RESEARCHER: {"loop", "guidelines", "runs", "policies", "data"},
    Role.ANNOTATOR: {"judge", "history", "guidelines", "me"},
}


def navigation(role: Role) -> list[Place]:
    """The pages that somebody of this role can open."""
    return [place for place in PLACES if place.key in SEEN_BY[role]]


@cache
def static(path: str) -> str:
    """The address of a static file, with its content's hash, so that browsers may keep it for good."""
    digest = hashlib.sha256((STATIC / path).read_bytes()).hexdigest()[:12]
    return f"/static/{path}?v={digest}"


def environment() -> Environment:
    """Everything is escaped, everything undefined is an error."""
    env = Environment(
        loader=FileSystemLoader(ROOT / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.add_extension("jinja2.ext.i18n")
    env.policies["ext.i18n.trimmed"] = True
    # New style: a translation is markup as the template is, and what is filled in is escaped.
    env.install_gettext_callables(language.gettext, language.ngettext, newstyle=True)  # type: ignore[attr-defined]
    env.filters.update(words.FILTERS | said.FILTERS)
    env.filters.update(rich=rich, shown=shown)
    env.filters["brief"] = lambda run: brief(run.kind, run.metrics)
    env.globals.update(static=static, navigation=navigation)
    return env


TEMPLATES = environment()


def wants_page(request: Request) -> bool:
    """Whether a person's browser is going to a page, rather than a script or a program fetching something."""
    mode = request.headers.get("sec-fetch-mode")
    if mode is not None:
        return mode == "navigate"
    return "application/xhtml+xml" in request.headers.get("accept", "")


def render(name: str, context: Mapping[str, Any]) -> str:
    """A template as text."""
    return TEMPLATES.get_template(name).render(context)


def page(visit: Visit, name: str, /, **context: Any) -> HTMLResponse:
    """A page or a fragment, with what the bar across the top needs."""
    shared = {"account": visit.who, "project": visit.at, "role": visit.role, "here": ""}
    return HTMLResponse(render(name, shared | context), context.get("status", 200))


def go(request: Request, where: str) -> Response:
    """Leads on after something was done: a redirect, or htmx's word for one."""
    if request.headers.get("hx-request"):
        return Response(headers={"HX-Redirect": where})
    return RedirectResponse(where, 303)


def local(target: str | None) -> str:
    """Where to go after signing in: a path of this very site, else the start."""
    if target and target.startswith("/") and not target.startswith(("//", "/\\")) and "\n" not in target:
        return target
    return "/"


def base_address(visit: Visit) -> str:
    """Where people reach this installation, without a closing slash, for links that are passed on."""
    return visit.settings.public_url or str(visit.request.base_url).rstrip("/")


def refusal(request: Request, error: PairwrightError) -> Response:
    """An error where the person is looking: a notice for a script's request, a page for a person's."""
    status = next((code for kind, code in STATUS.items() if isinstance(error, kind)), 400)
    headers = {"Retry-After": RETRY_AFTER[status]} if status in RETRY_AFTER else {}
    message, mend = language.told(error)
    if not wants_page(request):
        return HTMLResponse(render("_notice.html", {"message": message, "mend": mend}), status, headers)
    if status == 401 and request.method == "GET":
        return RedirectResponse(f"/sign-in?next={request.url.path}", 303)
    context = {
        "account": getattr(request.state, "account", None),
        "project": getattr(request.state, "project", None),
        "role": getattr(request.state, "role", None),
        "here": "",
        "status": status,
        "message": message,
        "mend": mend,
        "request_id": getattr(request.state, "request_id", ""),
    }
    return HTMLResponse(render("error.html", context), status, headers)

"""Who may do what: each route declares one policy, and the policy loads and authorises before the route runs.

The dependency that a policy makes is also the request's transaction. It is function-scoped: FastAPI leaves it after the
route has returned and before the answer is sent, so an answer of 200 means that the commit happened.
"""

import uuid
from asyncio import AbstractEventLoop, Semaphore, get_running_loop
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from enum import StrEnum
from types import SimpleNamespace
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from anyio import CancelScope
from fastapi import APIRouter, Depends
from fastapi.concurrency import run_in_threadpool
from fastapi.routing import APIRoute
from sqlalchemy.orm import Session
from starlette.requests import Request

from app.core.errors import Forbidden, NotFound, PairwrightError
from app.core.messages import mark as _
from app.core.vocabulary import Role
from app.settings import Settings
from app.store import accounts
from app.store.models import Account, Project
from app.web.security import session_token


class Policy(StrEnum):
    """Who may use a route."""

    PUBLIC = "public"
    SIGNED_IN = "signed_in"
    MEMBER = "member"
    ANNOTATOR = "annotator"
    RESEARCHER = "researcher"
    ADMIN = "admin"


# Admins may do everything in their project, judging included; researchers only read, annotators only judge.
ROLES: dict[Policy, frozenset[Role]] = {
    Policy.MEMBER: frozenset(Role),
    Policy.ANNOTATOR: frozenset({Role.ANNOTATOR, Role.ADMIN}),
    Policy.RESEARCHER: frozenset({Role.RESEARCHER, Role.ADMIN}),
    Policy.ADMIN: frozenset({Role.ADMIN}),
}
NOT_FOR = {
    Role.ANNOTATOR: _("This page is not for annotators."),
    Role.RESEARCHER: _("This page is not for researchers."),
    Role.ADMIN: _("This page is not for admins."),
}
MENDS = {
    Policy.ANNOTATOR: _("Researchers read; an admin of the project can invite you as an annotator."),
    Policy.RESEARCHER: _("Your part in this project is judging."),
    Policy.ADMIN: _("Ask an admin of the project."),
}


T = TypeVar("T")


class SignInNeeded(PairwrightError):
    """Nobody is signed in, and this page needs somebody."""


@dataclass(frozen=True)
class Visit:
    """One request under its policy: the session (one transaction), the settings, and who is there where."""

    request: Request
    s: Session
    settings: Settings
    who: Account | None
    at: Project | None
    role: Role | None

    @property
    def account(self) -> Account:
        """The account, on routes whose policy needs one."""
        assert self.who is not None, "a public route has no account"
        return self.who

    @property
    def project(self) -> Project:
        """The project, on routes under /p/{slug}."""
        assert self.at is not None, "this route is in no project"
        return self.at


def may(policy: Policy) -> Any:
    """The dependency that opens the transaction, loads who asks and for what, refuses, and commits at the end."""

    async def enter(request: Request) -> AsyncIterator[Visit]:
        async with turns(request):
            s: Session = request.app.state.sessions()
            try:
                yield await run_in_threadpool(visit, request, s, policy)
                await run_in_threadpool(_commit, s)
            except BaseException:
                # Whatever was done is rolled back, even where the visitor has gone meanwhile.
                with CancelScope(shield=True):
                    await run_in_threadpool(s.close)
                raise

    enter.policy = policy  # type: ignore[attr-defined]
    return Depends(enter, scope="function")


def _commit(s: Session) -> None:
    with s:
        s.commit()


# By event loop: a semaphore belongs to one.
_TURNS: WeakKeyDictionary[AbstractEventLoop, Semaphore] = WeakKeyDictionary()


def turns(request: Request) -> Semaphore:
    """Lets in as many requests as there are connections; the others wait here, and hold no thread meanwhile.

    Else threads that wait for a connection could be all that there are, and who holds one could not go on.
    """
    loop = get_running_loop()
    if loop not in _TURNS:
        _TURNS[loop] = Semaphore(request.app.state.engine.pool.size())
    return _TURNS[loop]


@dataclass(frozen=True)
class Standby:
    """Somebody who is let in to a stream: no transaction is open, and none is kept while anything is streamed.

    Whatever is read or stored goes through `within`, which authorises anew: the role is never older than the last tick.
    """

    request: Request
    policy: Policy
    account_id: uuid.UUID

    async def within(self, work: Callable[[Visit], T]) -> T:
        """Do this in a thread, in a transaction of its own, if the person may still."""
        async with turns(self.request):
            return await run_in_threadpool(self._within, work)

    async def check(self) -> None:
        """Raises what a request would be refused with now: somebody signed out, removed, or of another role."""
        await self.within(lambda _: None)

    def _within(self, work: Callable[[Visit], T]) -> T:
        with self.request.app.state.sessions() as s:
            done = work(visit(self.request, s, self.policy))
            s.commit()
            return done


def may_stream(policy: Policy) -> Any:
    """`may` for a route that streams: it authorises, and leaves no transaction open behind it."""

    def let_in(request: Request) -> Standby:
        with request.app.state.sessions() as s:
            account_id = visit(request, s, policy).account.id
            s.commit()
        return Standby(request, policy, account_id)

    async def enter(request: Request) -> Standby:
        async with turns(request):
            return await run_in_threadpool(let_in, request)

    enter.policy = policy  # type: ignore[attr-defined]
    return Depends(enter)


def visit(request: Request, s: Session, policy: Policy) -> Visit:
    """Loads and authorises. A project that is not the visitor's does not exist for them."""
    settings: Settings = request.app.state.settings
    if policy is Policy.PUBLIC:
        return Visit(request, s, settings, None, None, None)
    token = session_token(request)
    # No project has an empty name.
    entered = accounts.entering(s, token, request.path_params.get("slug", "")) if token else None
    if entered is None:
        raise SignInNeeded("You are not signed in.", "Sign in, then try again.")
    account, project, role = entered
    # Plain copies, for an error page that is rendered when the session is gone.
    request.state.account = SimpleNamespace(username=account.username)
    if policy is Policy.SIGNED_IN:
        return Visit(request, s, settings, account, None, None)
    # One answer for what is not there and for what is not theirs.
    if project is None or role is None:
        raise NotFound("There is no such page.", "The address may be mistyped, or the thing gone.")
    request.state.project = SimpleNamespace(slug=project.slug, name=project.name)
    request.state.role = role
    if role not in ROLES[policy]:
        raise Forbidden(NOT_FOR[role], MENDS.get(policy, ""))
    return Visit(request, s, settings, account, project, role)


def signed_in(request: Request, s: Session) -> Account | None:
    """The account behind the request's cookie, if there is one."""
    token = session_token(request)
    return accounts.account_of_session(s, token) if token else None


def policy_of(route: APIRoute) -> Policy | None:
    """The one policy that a route declares; None where it declares none or several."""
    found = [getattr(d.call, "policy", None) for d in route.dependant.dependencies]
    found = [policy for policy in found if policy is not None]
    return found[0] if len(found) == 1 else None


def declared(routers: tuple[APIRouter, ...]) -> list[tuple[str, str, Policy | None]]:
    """Every route as (method, path, policy), in order of path."""
    rows = [
        (method, route.path, policy_of(route))
        for router in routers
        for route in router.routes
        if isinstance(route, APIRoute)
        for method in sorted(route.methods or ())
    ]
    return sorted(rows, key=lambda row: (row[1], row[0]))


def table(routers: tuple[APIRouter, ...]) -> str:
    """docs/access.md: what each route asks, and what each kind of visitor gets."""
    lines = [
        "# Who may do what",
        "",
        "Generated by `python -m app.web`; a test compares it with the code and walks every row.",
        "Somebody of another project, or a foreign id, gets 404: what is not theirs does not exist for them.",
        "",
        "| method | path | policy | nobody | annotator | researcher | admin |",
        "|---|---|---|---|---|---|---|",
    ]
    for method, path, policy in declared(routers):
        assert policy is not None, f"{method} {path} declares no policy"
        nobody = "yes" if policy is Policy.PUBLIC else "sign in"
        roles = ROLES.get(policy, frozenset(Role))
        marks = " | ".join("yes" if role in roles else "403" for role in Role)
        lines.append(f"| {method} | `{path}` | {policy.value} | {nobody} | {marks} |")
    return "\n".join(lines) + "\n"

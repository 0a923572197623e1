"""Chatting: the page, a message whose two answers are streamed, the pick, and the end."""

import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Form
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.responses import RedirectResponse, Response

from app.core.errors import Conflict, NotFound, PairwrightError, Unavailable
from app.core.pairing import why_not
from app.core.sampler import CompletionRequest, CompletionResult, SamplerClient
from app.core.vocabulary import DropCause, Mode
from app.store import chats, comparisons, projects
from app.store.chats import Plan, Talk
from app.store.judgments import Submission
from app.store.standing import Standing, standing
from app.web.access import Policy, Standby, Visit, may, may_stream
from app.web.forms import ChatForm, PickForm, TurnForm, TurnOnlyForm
from app.web.pages import go, page, render, wants_page
from app.web.routes.loop import preparing_page
from app.web.streams import STILL_THERE, EventStream, event, watched

router = APIRouter(prefix="/p/{slug}")
Annotator = Annotated[Visit, may(Policy.ANNOTATOR)]
Reader = Annotated[Standby, may_stream(Policy.ANNOTATOR)]

TRIES = 2
ALIKE = {
    DropCause.IDENTICAL: "Both answers said the same",
    DropCause.EMPTY: "An answer was empty",
    DropCause.BROKEN: "An answer was not readable text",
}


@router.get("/chat")
def chat(visit: Annotator) -> Response:
    """The open chat with its whole transcript, or the field in which a new one begins."""
    found = asked_for(visit)
    if found.unread is not None and found.why is None:
        return RedirectResponse(f"/p/{visit.project.slug}/guidelines", 303)
    talk = chats.talk(visit.s, visit.project, visit.account.id)
    if talk.chat_id is None and visit.project.current_policy_id is None:
        return preparing_page(visit)
    return page(
        visit,
        "chat/chat.html",
        here="judge",
        talk=talk,
        standing=found,
        longest=chats.LONGEST_MESSAGE,
        guidelines=projects.guidelines(visit.s, visit.project.id),
    )


@router.post("/chat/turns")
async def turn(reader: Reader, form: Annotated[TurnForm, Form()]) -> Response:
    """Take a message and stream two answers to it. They are stored when both are whole; until then nothing is."""
    leave = reader.request.app.state.lanes.enter(reader.account_id)
    try:
        plan = await reader.within(partial(begin, message=form.message))
    except BaseException:
        leave()
        raise
    return EventStream(answers(reader, plan), leave)


def begin(visit: Visit, message: str) -> Plan:
    """What to sample, if this person may have new work at all."""
    found = asked_for(visit)
    if found.unread is not None:
        raise Conflict("The guidelines have changed.", "Reload the page to read them; your message stays in the field.")
    if found.why is not None or found.qualifying:
        raise Conflict("No new turn is open for you here right now.", "Reload the page: it says why.")
    return chats.plan(visit.s, visit.project, visit.account.id, message)


async def answers(reader: Standby, plan: Plan) -> AsyncGenerator[str]:
    """The two answers as they are drawn, by the side on which they stand, and at last the stored turn."""
    try:
        for tries_left in reversed(range(TRIES)):
            requests = asked_of(plan)
            whole: dict[int, CompletionResult] = {}
            async with aclosing(watched(sampler(reader).stream_together(requests), reader.check)) as events:
                async for heard in events:
                    if heard is None:
                        yield STILL_THERE
                    elif isinstance(heard[1], CompletionResult):
                        whole[heard[0]] = heard[1]
                    else:
                        yield event("text", side=plan.order.index(heard[0]), text=heard[1])
            results = [whole[place] for place in sorted(whole)]
            cause = why_not([result.text for result in results])
            if cause is None:
                html = await reader.within(partial(kept, plan=plan, requests=requests, results=results))
                yield event("done", html=html)
                return
            await reader.within(partial(dropped, plan=plan, cause=cause))
            if not tries_left:
                mend = "Your message is back in the field: put it differently, or ask something else."
                raise Unavailable(f"{ALIKE[cause]} twice, so there is nothing to choose from.", mend)
            yield event("again", message=f"{ALIKE[cause]}, so the policy tries once more.")
    except PairwrightError as error:
        yield event("refused", html=render("_notice.html", {"message": error.message, "mend": error.mend}))
    except (DBAPIError, PoolTimeout):
        text = {"message": "The database does not answer right now.", "mend": "Nothing of this turn was stored."}
        yield event("refused", html=render("_notice.html", text))


def asked_of(plan: Plan) -> list[CompletionRequest]:
    """One request for each policy, with new seeds."""
    return [CompletionRequest(model, plan.messages, plan.sampling, secrets.randbelow(2**31)) for model in plan.models]


def kept(visit: Visit, plan: Plan, requests: list[CompletionRequest], results: list[CompletionResult]) -> str:
    """Store a whole turn, and show it."""
    completions = [
        comparisons.sampled(policy_id, plan.sampling, request.seed, result)
        for policy_id, request, result in zip(plan.policies, requests, results, strict=True)
    ]
    chats.keep(visit.s, visit.project, visit.account.id, plan, completions)
    talk = chats.talk(visit.s, visit.project, visit.account.id)
    return bytes(shown(visit, talk).body).decode()


def dropped(visit: Visit, plan: Plan, cause: DropCause) -> None:
    """Count a pair that there was nothing to choose from."""
    chats.dropped(visit.s, visit.project.id, plan, cause)


@router.post("/chat/picks")
def pick(visit: Annotator, form: Annotated[PickForm, Form()]) -> Response:
    """Take the choice; the chat goes on from it."""
    submission = Submission(**form.model_dump())
    return shown(visit, chats.pick(visit.s, visit.project, visit.account.id, submission))


@router.post("/chat/skip")
def skip(visit: Annotator, form: Annotated[TurnOnlyForm, Form()]) -> Response:
    """Leave a turn unjudged."""
    return shown(visit, chats.skip(visit.s, visit.project, visit.account.id, form.comparison_id))


@router.post("/chat/undo")
def undo(visit: Annotator) -> Response:
    """Take the newest pick back and show its two answers again."""
    return shown(visit, chats.undo(visit.s, visit.project, visit.account.id))


@router.post("/chat/end")
def end(visit: Annotator, form: Annotated[ChatForm, Form()]) -> Response:
    """End the chat, and go to where the next one begins."""
    chats.end(visit.s, visit.project, visit.account.id, form.chat_id)
    return go(visit.request, f"/p/{visit.project.slug}/chat")


def asked_for(visit: Visit) -> Standing:
    """How the person stands in a project whose mode is chat; in another one there is no such page."""
    if visit.project.mode is not Mode.CHAT:
        raise NotFound("This project does not ask for chats.", "Its own work is under ‘Judge’.")
    return standing(visit.s, visit.project.id, visit.account.id)


def shown(visit: Visit, talk: Talk) -> Response:
    """The chat as a fragment; without scripts, the way back to the page."""
    if wants_page(visit.request):
        return RedirectResponse(f"/p/{visit.project.slug}/chat", 303)
    found = standing(visit.s, visit.project.id, visit.account.id)
    return page(visit, "chat/_chat.html", talk=talk, standing=found)


def sampler(reader: Standby) -> SamplerClient:
    """The client that this process shares."""
    client: SamplerClient = reader.request.app.state.sampler
    return client

"""What everything that streams shares: who may at once, server-sent events, and a look at the role while it lasts."""

import asyncio
import json
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from app.core.errors import Conflict, Unavailable

TICK_S = 2.0
"""How often a stream asks whether its reader may still read it."""
MOST = 16
"""Streams at once in one web process: beyond, answers would come so slowly that nobody would wait for them."""

T = TypeVar("T")
_END = object()


class Lanes:
    """Who is being answered in this process: one answer at a time for a person, and not too many for all."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._taken: set[uuid.UUID] = set()

    def enter(self, account_id: uuid.UUID) -> Callable[[], None]:
        """Take a lane; what is returned leaves it. Conflict for a second one, Unavailable where all are taken."""
        if account_id in self._taken:
            raise Conflict("You are being answered already, perhaps in another tab.", "Wait for it, or stop it there.")
        if len(self._taken) >= self._most:
            raise Unavailable(
                "Too many answers are being written right now.", "Your text is still here; try again in a few seconds."
            )
        self._taken.add(account_id)
        return lambda: self._taken.discard(account_id)


class EventStream(StreamingResponse):
    """Server-sent events; however it ends, the events are closed and the lane is free."""

    def __init__(self, events: AsyncGenerator[str], leave: Callable[[], None]) -> None:
        # Proxies that gather an answer before they pass it on are asked not to.
        super().__init__(events, media_type="text/event-stream", headers={"x-accel-buffering": "no"})
        self._events, self._leave = events, leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._leave()
            await self._events.aclose()


def event(name: str, **fields: Any) -> str:
    """One event; its fields are JSON, which has no line breaks."""
    return f"event: {name}\ndata: {json.dumps(fields, ensure_ascii=False)}\n\n"


STILL_THERE = ": still there\n\n"


async def watched(
    events: AsyncGenerator[T], check: Callable[[], Awaitable[None]], every: float = TICK_S
) -> AsyncGenerator[T | None]:
    """The events, and None after each `check` that found nothing to object to; what it raises ends them."""

    async def following() -> Any:
        return await anext(events, _END)

    async def tick() -> None:
        await asyncio.sleep(every)
        await check()

    coming, ticking = asyncio.ensure_future(following()), asyncio.ensure_future(tick())
    try:
        while True:
            await asyncio.wait({coming, ticking}, return_when=asyncio.FIRST_COMPLETED)
            if ticking.done():
                ticking.result()
                ticking = asyncio.ensure_future(tick())
                yield None
            if coming.done():
                found = coming.result()
                if found is _END:
                    return
                yield found
                coming = asyncio.ensure_future(following())
    finally:
        for task in (coming, ticking):
            task.cancel()
        await asyncio.gather(coming, ticking, return_exceptions=True)
        await events.aclose()

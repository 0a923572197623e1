"""A sampler that says what a test tells it to, piece by piece, and notices who leaves."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

Say = Callable[[str, int], list[str]]


class Talker:
    """`say` gives the pieces of the n-th answer by a model; `pause` is the time before each piece after the first."""

    def __init__(self) -> None:
        self.say: Say = lambda model, n: [f"Answer {n} ", "by ", "a policy."]
        self.pause = 0.0
        self.refuse: tuple[int, str] | None = None
        self.asked: list[dict[str, object]] = []
        self.whole = self.left = 0

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/v1/chat/completions", self.complete, methods=["POST"])])

    async def complete(self, http: Request) -> Response:
        body = await http.json()
        self.asked.append(body)
        if self.refuse:
            status, message = self.refuse
            return JSONResponse({"error": {"message": message}}, status)
        return StreamingResponse(self.pieces(body["model"], len(self.asked)), media_type="text/event-stream")

    async def pieces(self, model: str, n: int) -> AsyncIterator[str]:
        done = False
        try:
            for i, piece in enumerate(self.say(model, n)):
                await asyncio.sleep(self.pause if i else 0)
                yield chunk({"delta": {"content": piece}, "finish_reason": None})
            done = True
            self.whole += 1
            yield chunk({"delta": {}, "finish_reason": "stop", "token_ids": [3, 1], "token_logprobs": [-0.5, -0.1]})
            yield "data: [DONE]\n\n"
        finally:
            self.left += not done


def chunk(choice: dict[str, object]) -> str:
    body = {"object": "chat.completion.chunk", "choices": [{"index": 0, **choice}], "chat_template_hash": "ab" * 32}
    return f"data: {json.dumps(body)}\n\n"


@contextmanager
def served(app: ASGIApp) -> Iterator[str]:
    """An application in a thread on a port of its own: where a client can really stream, and really leave."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="off", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(20)

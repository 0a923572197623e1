"""The sampler process: `python -m app.policy.server --socket S --root CHECKPOINTS [--threads N]`.

OpenAI's chat completions on a Unix socket, with token ids, log-probabilities and the template's hash beside the text.
With `"stream": true` the text comes as server-sent events; a client that leaves ends the drawing of its answer.
It ends when its parent ends, and on SIGTERM after the batch under way.
"""

import argparse
import asyncio
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal

import torch
import uvicorn
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from app.core import logs
from app.core.configs import SamplingSettings
from app.core.errors import Invalid, NotFound, PairwrightError, Unavailable
from app.policy.serving import Answer, Batcher, Models, Request

LONGEST_BODY = 1_000_000
LONGEST_PATH = 100  # bytes; the kernel's limit for a Unix socket is 108
_STATUS: dict[type[PairwrightError], int] = {NotFound: 404, Invalid: 422, Unavailable: 503}

logger = logging.getLogger("pairwright.sampler")


class Turn(BaseModel):
    """One message of the conversation."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: str


class Body(BaseModel):
    """The part of OpenAI's request that is understood; anything else is refused, not ignored."""

    model_config = ConfigDict(extra="forbid")

    model: str
    messages: Annotated[list[Turn], Field(min_length=1, max_length=1000)]
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = SamplingSettings().max_tokens
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    n: Literal[1] = 1
    stream: bool = False

    def sampling(self) -> SamplingSettings:
        """The settings in our own terms; ValidationError where they are out of range."""
        return SamplingSettings(temperature=self.temperature, top_p=self.top_p, max_tokens=self.max_tokens)


def create_app(root: Path) -> Starlette:
    """The sampler's web application over the checkpoint folders under `root`."""
    models = Models(root)
    batcher = Batcher(models)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        batcher.start()
        yield
        batcher.stop()
        await asyncio.to_thread(batcher.join, 10.0)

    async def complete(http: HttpRequest) -> Response:
        if int(http.headers.get("content-length") or LONGEST_BODY + 1) > LONGEST_BODY:
            return _refusal(413, "The request is too long, or does not say how long it is.")
        try:
            body = Body.model_validate_json(await http.body())
            sampling = body.sampling()
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            return _refusal(422, f"{'.'.join(map(str, first['loc'])) or 'body'}: {first['msg']}")
        seed = int.from_bytes(os.urandom(7)) if body.seed is None else body.seed
        request = Request(body.model, [{"role": t.role, "content": t.content} for t in body.messages], sampling, seed)
        try:
            if body.stream:
                return await _streamed(http, body.model, batcher, request)
            answer = await asyncio.wrap_future(batcher.submit(request))
        except PairwrightError as error:
            return _refusal(_STATUS.get(type(error), 500), f"{error.message} {error.mend}".strip())
        return JSONResponse(_completion(body.model, answer))

    async def list_models(http: HttpRequest) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": name, "object": "model"} for name in models.names()]})

    async def health(http: HttpRequest) -> Response:
        return JSONResponse({"status": "ok"})

    app = Starlette(
        routes=[
            Route("/v1/chat/completions", complete, methods=["POST"]),
            Route("/v1/models", list_models),
            Route("/healthz", health),
        ],
        lifespan=lifespan,
    )
    app.state.batcher = batcher
    return app


def _completion(model: str, answer: Answer) -> dict[str, Any]:
    drawn = answer.generation
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": answer.text},
                "finish_reason": drawn.finish.value,
                "token_ids": drawn.token_ids,
                "token_logprobs": drawn.logprobs,
                "logprobs_sum": sum(drawn.logprobs),
            }
        ],
        "usage": {
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": len(drawn.token_ids),
            "total_tokens": answer.prompt_tokens + len(drawn.token_ids),
        },
        "chat_template_hash": answer.template,
    }


async def _streamed(http: HttpRequest, model: str, batcher: Batcher, request: Request) -> Response:
    """The answer in pieces. Raises what refuses the request, and begins only when there is a first piece."""
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[str | None] = asyncio.Queue()

    def put(piece: str | None) -> None:
        with suppress(RuntimeError):  # the loop is closed: the process ends
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

    request.heard = put
    request.answer.add_done_callback(lambda _: put(None))
    first = asyncio.ensure_future(pieces.get())
    left = asyncio.ensure_future(_left(http))
    try:
        batcher.submit(request)
        await asyncio.wait({first, left}, return_when=asyncio.FIRST_COMPLETED)
        if not first.done():
            request.gone = True
            return Response(status_code=499)  # nobody reads it
        if (begun := first.result()) is None and (error := request.answer.exception()) is not None:
            raise error
    except BaseException:
        request.gone = True
        raise
    finally:
        first.cancel()
        left.cancel()
    head: dict[str, Any] = {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": "chat.completion.chunk"}
    head |= {"created": int(time.time()), "model": model}
    return StreamingResponse(_events(head, request, begun, pieces), media_type="text/event-stream")


async def _events(
    head: dict[str, Any], request: Request, piece: str | None, pieces: "asyncio.Queue[str | None]"
) -> AsyncIterator[str]:
    try:
        role: dict[str, str] = {"role": "assistant"}
        while piece is not None:
            choice = {"index": 0, "delta": {**role, "content": piece}, "finish_reason": None}
            yield _event({**head, "choices": [choice]})
            role = {}
            piece = await pieces.get()
        try:
            whole = _completion(head["model"], request.answer.result())
        except PairwrightError as error:
            yield _event({"error": {"message": error.message, "type": "server_error"}})
            return
        [choice] = whole["choices"]
        # The whole text once more: the joined pieces, for whoever did not join them.
        choice |= {"delta": role, "text": choice.pop("message")["content"]}
        yield _event({**whole, **head, "choices": [choice]})
        yield "data: [DONE]\n\n"
    finally:
        # Reached by cancellation when the client has left: its row leaves the batch.
        request.gone = True


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


async def _left(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _refusal(status: int, message: str) -> Response:
    kind = "invalid_request_error" if status < 500 else "server_error"
    headers = {"Retry-After": "1"} if status == 503 else None
    return JSONResponse({"error": {"message": message, "type": kind}}, status, headers)


def main(arguments: list[str] | None = None) -> int:
    """Serve until told to stop; the answer is the exit code."""
    parser = argparse.ArgumentParser(prog="python -m app.policy.server", description="Sample from checkpoints.")
    parser.add_argument("--socket", type=Path, required=True, help="the Unix socket to listen on")
    parser.add_argument("--root", type=Path, required=True, help="the folder whose folders are the models")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves it to torch")
    options = parser.parse_args(arguments)
    logs.set_up("sampler")
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        listener = _listen(options.socket)
    except OSError as error:
        logger.error("the socket %s cannot be opened: %s", options.socket, error.strerror or error)
        return 1
    config = uvicorn.Config(
        create_app(options.root), log_config=None, access_log=False, lifespan="on", timeout_graceful_shutdown=10
    )
    server = uvicorn.Server(config)

    def stop(number: int, frame: FrameType | None) -> None:
        server.should_exit = True

    # uvicorn raises the signal again once it has shut down; this handler lets us end in order then.
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    threading.Thread(target=_end_with_parent, args=(server, os.getppid()), name="parent", daemon=True).start()
    logger.info("sampling on %s, %d threads", options.socket, torch.get_num_threads())
    try:
        server.run(sockets=[listener])
    finally:
        listener.close()
        options.socket.unlink(missing_ok=True)
    return 0


def _listen(path: Path) -> socket.socket:
    """A Unix socket that only this user can open; one left behind by a dead process is replaced."""
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise OSError(None, f"its path is longer than {LONGEST_PATH} bytes")
    if path.exists():
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)
            else:
                raise OSError(None, "another sampler listens there")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(before)
    listener.listen(256)
    return listener


def _end_with_parent(server: uvicorn.Server, parent: int) -> None:
    """Stop once the process that started us is gone: our own parent is then another."""
    while os.getppid() == parent:
        time.sleep(0.5)
    server.should_exit = True
    time.sleep(15)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())

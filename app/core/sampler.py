"""The one client of every sampler: ours on a Unix socket, or any server that speaks OpenAI's chat completions."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass
from typing import Any

import httpx

from app.core.configs import SamplingSettings
from app.core.errors import Invalid, NotFound, PairwrightError, Unavailable
from app.core.records import Message
from app.core.vocabulary import FinishReason

CONNECT_S, ANSWER_S = 5.0, 300.0
PIECE_S = 120.0
"""The longest silence in a streamed answer; a model that is not in memory yet is loaded in it."""
LATER = "Try again in a moment."


@dataclass(frozen=True)
class CompletionRequest:
    """One answer wanted: by which model, to what, how drawn."""

    model: str
    messages: Sequence[Message]
    sampling: SamplingSettings
    seed: int


@dataclass(frozen=True)
class CompletionResult:
    """One sampled answer. Token ids and log-probabilities (natural, at the sampling temperature, the stop token's
    included) are empty where the server is not ours and does not tell."""

    text: str
    token_ids: list[int]
    logprobs: list[float]
    finish_reason: FinishReason
    chat_template_hash: str
    latency_ms: float


@dataclass(frozen=True)
class SamplerFailure:
    """A request that was not answered; `reason` is for the log."""

    reason: str


class SamplerClient:
    """`address` is "unix:/path/to/socket" or "http://host:port". Safe to share between threads."""

    def __init__(self, address: str) -> None:
        self._uds = address.removeprefix("unix:") if address.startswith("unix:") else None
        self._base = "http://sampler" if self._uds is not None else address.rstrip("/")

    def complete(
        self, requests: Sequence[CompletionRequest], concurrency: int = 64
    ) -> list[CompletionResult | SamplerFailure]:
        """Answers in the order of the requests, at most `concurrency` under way at once; a failure is an answer too."""
        return asyncio.run(self._complete(requests, concurrency))

    async def stream(self, request: CompletionRequest) -> AsyncGenerator[str | CompletionResult]:
        """The pieces of an answer as they are drawn, and at the end the whole with its provenance.

        Raises Unavailable where nobody answers, or stops in the middle; Invalid or NotFound where the server refuses.
        Closing the iterator (`aclosing`) closes the connection, and with that our own sampler gives up the answer.
        """
        timeout = httpx.Timeout(PIECE_S, connect=CONNECT_S)
        try:
            async with self._open(timeout) as client, _asking(client, request) as response:
                if not response.is_success:
                    await response.aread()
                    raise _refused(response)
                async with aclosing(_read(response)) as events:
                    async for event in events:
                        yield event
        except httpx.HTTPError as error:
            raise Unavailable("The policy does not answer right now.", LATER) from error
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise Unavailable("The policy's answer could not be read.", LATER) from error

    async def stream_together(
        self, requests: Sequence[CompletionRequest]
    ) -> AsyncGenerator[tuple[int, str | CompletionResult]]:
        """Several streams at once, each event with the place of its request; the first error ends them all."""
        heard: asyncio.Queue[tuple[int, str | CompletionResult | BaseException | None]] = asyncio.Queue()

        async def listen(place: int, request: CompletionRequest) -> None:
            try:
                async with aclosing(self.stream(request)) as events:
                    async for event in events:
                        heard.put_nowait((place, event))
                heard.put_nowait((place, None))
            except PairwrightError as error:
                heard.put_nowait((place, error))

        tasks = [asyncio.create_task(listen(place, request)) for place, request in enumerate(requests)]
        try:
            left = len(tasks)
            while left:
                place, event = await heard.get()
                if isinstance(event, BaseException):
                    raise event
                if event is None:
                    left -= 1
                else:
                    yield place, event
        finally:
            for task in tasks:
                task.cancel()
            # Their connections are closed when this returns.
            await asyncio.gather(*tasks, return_exceptions=True)

    def healthy(self) -> bool:
        """Whether a server answers at the address."""
        return asyncio.run(self._healthy())

    async def _healthy(self) -> bool:
        try:
            async with self._open(httpx.Timeout(2.0)) as client:
                return (await client.get("/v1/models")).is_success
        except httpx.HTTPError:
            return False

    def _open(self, timeout: httpx.Timeout, connections: int = 1) -> httpx.AsyncClient:
        # A connection for each request: one kept alive may be closed by the server just when it is used again.
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=0)
        transport = httpx.AsyncHTTPTransport(uds=self._uds, limits=limits)
        # No proxy from the environment: the address is where the sampler is.
        return httpx.AsyncClient(transport=transport, base_url=self._base, timeout=timeout, trust_env=False)

    async def _complete(
        self, requests: Sequence[CompletionRequest], concurrency: int
    ) -> list[CompletionResult | SamplerFailure]:
        gate = asyncio.Semaphore(concurrency)
        # A request may wait for its connection as long as for its answer.
        async with self._open(httpx.Timeout(ANSWER_S, connect=CONNECT_S), concurrency) as client:

            async def one(request: CompletionRequest) -> CompletionResult | SamplerFailure:
                async with gate:
                    return await _ask(client, request)

            return await asyncio.gather(*(one(request) for request in requests))


def _body(request: CompletionRequest, stream: bool) -> dict[str, Any]:
    return {
        "model": request.model,
        "messages": [dict(message) for message in request.messages],
        "temperature": request.sampling.temperature,
        "top_p": request.sampling.top_p,
        "max_tokens": request.sampling.max_tokens,
        "seed": request.seed,
        "n": 1,
        "stream": stream,
    }


def _asking(client: httpx.AsyncClient, request: CompletionRequest) -> AbstractAsyncContextManager[httpx.Response]:
    return client.stream("POST", "/v1/chat/completions", json=_body(request, stream=True))


async def _data(response: httpx.Response) -> AsyncGenerator[bytes]:
    """What stands in the `data:` lines, up to the last one. A line ends at a line feed alone: text has other ends."""
    rest = b""
    async for some in response.aiter_bytes():
        *lines, rest = (rest + some).split(b"\n")
        for line in lines:
            field, _, data = line.partition(b":")
            if field != b"data" or not data.strip():
                continue
            if data.strip() == b"[DONE]":
                return
            yield data


async def _read(response: httpx.Response) -> AsyncGenerator[str | CompletionResult]:
    """Server-sent events as text, then the whole; ValueError and its kin for what is none."""
    started = time.monotonic()
    pieces: list[str] = []
    last: dict[str, Any] = {}
    async for data in _data(response):
        chunk = json.loads(data)
        if "error" in chunk:
            raise Unavailable("The policy stopped in the middle of its answer.", LATER)
        last |= {name: chunk[name] for name in ("chat_template_hash",) if name in chunk}
        for choice in chunk["choices"]:
            if piece := choice["delta"].get("content"):
                pieces.append(str(piece))
                yield pieces[-1]
            if choice.get("finish_reason"):
                last |= {"choice": choice}
    if "choice" not in last:
        raise Unavailable("The policy stopped in the middle of its answer.", LATER)
    text = str(last["choice"].get("text") or "".join(pieces))
    choice = {**last["choice"], "message": {"content": text}}
    yield _result({**last, "choices": [choice]}, (time.monotonic() - started) * 1000)


def _refused(response: httpx.Response) -> PairwrightError:
    if response.status_code == 404:
        return NotFound("The server that samples does not have this policy.", "An admin can restore it from a backup.")
    if response.status_code in (400, 413, 422):
        return Invalid(_reason(response))
    return Unavailable("The policy does not answer right now.", LATER)


async def _ask(client: httpx.AsyncClient, request: CompletionRequest) -> CompletionResult | SamplerFailure:
    started = time.monotonic()
    try:
        response = await client.post("/v1/chat/completions", json=_body(request, stream=False))
        if not response.is_success:
            return SamplerFailure(f"refused with {response.status_code}: {_reason(response)}")
        return _result(response.json(), (time.monotonic() - started) * 1000)
    except httpx.HTTPError as error:
        return SamplerFailure(f"no answer: {type(error).__name__}")
    except (ValueError, KeyError, TypeError, IndexError) as error:
        return SamplerFailure(f"not understood: {type(error).__name__}")


def _result(answer: dict[str, Any], latency_ms: float) -> CompletionResult:
    choice = answer["choices"][0]
    return CompletionResult(
        text=str(choice["message"]["content"] or ""),
        token_ids=[int(i) for i in choice.get("token_ids") or []],
        logprobs=[float(x) for x in choice.get("token_logprobs") or []],
        finish_reason=FinishReason(choice["finish_reason"]),
        chat_template_hash=str(answer.get("chat_template_hash", "")),
        latency_ms=latency_ms,
    )


def _reason(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])[:500]
    except (ValueError, KeyError, TypeError):
        return response.reason_phrase

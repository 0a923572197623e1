"""The one client of every sampler: ours on a Unix socket, or any server that speaks OpenAI's chat completions."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from app.core.configs import SamplingSettings
from app.core.records import Message
from app.core.vocabulary import FinishReason

CONNECT_S, ANSWER_S = 5.0, 300.0


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


async def _ask(client: httpx.AsyncClient, request: CompletionRequest) -> CompletionResult | SamplerFailure:
    body = {
        "model": request.model,
        "messages": [dict(message) for message in request.messages],
        "temperature": request.sampling.temperature,
        "top_p": request.sampling.top_p,
        "max_tokens": request.sampling.max_tokens,
        "seed": request.seed,
        "n": 1,
        "stream": False,
    }
    started = time.monotonic()
    try:
        response = await client.post("/v1/chat/completions", json=body)
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

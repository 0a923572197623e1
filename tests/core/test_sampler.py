import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from app.core.configs import SamplingSettings
from app.core.errors import Invalid, NotFound, PairwrightError, Unavailable
from app.core.sampler import CompletionRequest, CompletionResult, SamplerClient, SamplerFailure
from app.core.vocabulary import FinishReason

REQUEST = CompletionRequest("m", [{"role": "user", "content": "hello"}], SamplingSettings(), seed=7)


class Server:
    """An engine of somebody else's: it says what it is told to, and remembers what it was asked."""

    def __init__(self, status=200, body=None):
        self.asked, self.busy, self.most_busy = [], 0, 0
        self.lock, self.barrier = threading.Lock(), None
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self._send(200, {"data": []})

            def do_POST(self):
                with server.lock:
                    server.busy += 1
                    server.most_busy = max(server.most_busy, server.busy)
                length = int(self.headers["content-length"])
                server.asked.append((self.path, json.loads(self.rfile.read(length))))
                if server.barrier:
                    server.barrier.wait(10)
                with server.lock:
                    server.busy -= 1
                self._send(status, body)

            def _send(self, status, body):
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.client = SamplerClient(f"http://127.0.0.1:{self.http.server_port}/")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.http.shutdown()
        self.http.server_close()


PLAIN = {"choices": [{"message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}]}


def test_any_openai_compatible_server_will_do():
    with Server(body=PLAIN) as server:
        [result] = server.client.complete([REQUEST])
        assert server.client.healthy()
    assert (result.text, result.finish_reason) == ("hi", FinishReason.STOP)
    assert (result.token_ids, result.logprobs, result.chat_template_hash) == ([], [], "")
    [(path, body)] = server.asked
    assert path == "/v1/chat/completions"
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "hello"}],
        "temperature": 1.0,
        "top_p": 1.0,
        "max_tokens": 96,
        "seed": 7,
        "n": 1,
        "stream": False,
    }


def test_requests_run_side_by_side_up_to_the_limit():
    with Server(body=PLAIN) as server:
        server.barrier = threading.Barrier(4)
        results = server.client.complete([REQUEST] * 8, concurrency=4)
    assert all(isinstance(r, CompletionResult) for r in results)
    assert server.most_busy == 4


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (
            503,
            {"error": {"message": "Too many requests are waiting."}},
            "refused with 503: Too many requests are waiting.",
        ),
        (500, b"oops", "refused with 500: Internal Server Error"),
        (200, b"oops", "not understood: JSONDecodeError"),
        (200, {"choices": []}, "not understood: IndexError"),
        (200, {"choices": [{"message": {"content": "x"}, "finish_reason": "magic"}]}, "not understood: ValueError"),
    ],
)
def test_whatever_the_server_says_is_an_answer_or_a_failure(status, body, reason):
    with Server(status, body) as server:
        assert server.client.complete([REQUEST]) == [SamplerFailure(reason)]


def test_no_server_is_a_failure_and_not_healthy():
    with Server() as server:
        port = server.http.server_port
    client = SamplerClient(f"http://127.0.0.1:{port}")
    assert not client.healthy()
    assert client.complete([REQUEST]) == [SamplerFailure("no answer: ConnectError")]


def test_no_requests_need_no_server():
    assert SamplerClient("http://127.0.0.1:9").complete([]) == []


# ---- streams -------------------------------------------------------------------------------------------------------


def streamed(server, *requests):
    async def gather():
        return [event async for event in server.client.stream_together(requests or [REQUEST])]

    return asyncio.run(gather())


def sse(*chunks, end="data: [DONE]\r\n\r\n"):
    lines = [f"data: {json.dumps(chunk, ensure_ascii=False)}\r\n\r\n" for chunk in chunks]
    return (": a comment\r\n\r\n" + "".join(lines) + end).encode()


def piece(text, **choice):
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None, **choice}]}


def test_any_openai_compatible_stream_will_do():
    # A line separator inside a text is no end of a line; a chunk with nothing but the usage has no choice.
    pieces = [
        piece(None, delta={"role": "assistant"}),
        piece("two\u2028lin"),
        piece("es"),
        piece("", finish_reason="stop"),
    ]
    with Server(body=sse(*pieces, {"choices": [], "usage": {}})) as server:
        *texts, (place, result) = streamed(server)
    assert texts == [(0, "two\u2028lin"), (0, "es")]
    assert (place, result.text, result.finish_reason) == (0, "two\u2028lines", FinishReason.STOP)
    assert (result.token_ids, result.logprobs, result.chat_template_hash) == ([], [], "")
    [(_, body)] = server.asked
    assert (body["stream"], body["seed"]) == (True, 7)


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (200, sse(piece("cut"), end=""), Unavailable, "stopped in the middle"),
        (200, sse(piece("cut"), {"error": {"message": "out of memory"}}), Unavailable, "stopped in the middle"),
        (200, b"data: oops\n\n", Unavailable, "could not be read"),
        (200, sse({"no": "choices"}), Unavailable, "could not be read"),
        (503, {"error": {"message": "busy"}}, Unavailable, "does not answer"),
        (404, {"error": {"message": "none"}}, NotFound, "does not have this policy"),
        (422, {"error": {"message": "The conversation is too long."}}, Invalid, "The conversation is too long."),
    ],
)
def test_a_stream_that_cannot_go_on_says_how(status, body, kind, words):
    with Server(status, body) as server, pytest.raises(kind, match=words):
        streamed(server)


def test_nobody_there_or_one_of_two_failing_ends_the_streams():
    with Server(body=sse(piece("whole", finish_reason="stop"))) as server:
        assert len(streamed(server, REQUEST, REQUEST)) == 4
    with pytest.raises(PairwrightError, match="does not answer"):
        streamed(server)

import asyncio
import json
import threading
import time
from contextlib import aclosing, contextmanager

import pytest
import torch
import uvicorn
from starlette.testclient import TestClient

from app.core.configs import SamplingSettings
from app.core.errors import Invalid, NotFound
from app.core.sampler import CompletionRequest, CompletionResult, SamplerClient
from app.policy.chat import decode
from app.policy.checkpoint import load_policy
from app.policy.server import create_app
from app.policy.serving import Batcher, Models, Request
from app.policy.text import Unfolding

MESSAGES = [{"role": "user", "content": "My kettle arrived broken. Order 4821."}]
LONG = SamplingSettings(max_tokens=400)


@pytest.fixture(scope="module")
def web(root):
    with TestClient(create_app(root)) as client:
        yield client


@pytest.fixture
def batcher(root):
    made = Batcher(Models(root))
    made.start()
    yield made
    made.stop()
    made.join(20)


@contextmanager
def served(root):
    """The application on a port of its own, in a thread, where a client can really leave; its batcher and address."""
    app = create_app(root)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="on"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    yield app.state.batcher, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(20)


def until(ask, seconds=30):
    deadline = time.monotonic() + seconds
    while not ask():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def events(answer):
    lines = [line for line in answer.text.split("\n\n") if line]
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def body(**changes):
    return {"model": "one", "messages": MESSAGES, "max_tokens": 60, "seed": 5, **changes}


@pytest.mark.parametrize("seed", [5, 6, 7])
def test_streamed_or_not_the_same_seed_gives_the_same_answer(web, seed):
    whole = web.post("/v1/chat/completions", json=body(seed=seed)).json()
    answer = web.post("/v1/chat/completions", json=body(seed=seed, stream=True))
    assert answer.headers["content-type"].startswith("text/event-stream")
    *pieces, last = events(answer)
    [expected], [choice] = whole["choices"], last["choices"]
    text = "".join(piece["choices"][0]["delta"]["content"] for piece in pieces)
    assert text == choice["text"] == expected["message"]["content"]
    assert choice["token_ids"] == expected["token_ids"]
    assert choice["token_logprobs"] == pytest.approx(expected["token_logprobs"], abs=1e-5)
    assert choice["finish_reason"] == expected["finish_reason"]
    assert (last["usage"], last["chat_template_hash"]) == (whole["usage"], whole["chat_template_hash"])
    assert len(pieces) > 10
    assert [p["choices"][0]["finish_reason"] for p in pieces] == [None] * len(pieces)
    assert pieces[0]["choices"][0]["delta"]["role"] == "assistant"


def test_what_is_refused_has_its_status_before_anything_is_streamed(web):
    assert web.post("/v1/chat/completions", json=body(model="nobody", stream=True)).status_code == 404
    long = [{"role": "user", "content": "kettle " * 600}]
    assert web.post("/v1/chat/completions", json=body(messages=long, stream=True)).status_code == 422


@pytest.mark.parametrize(
    "text", ["Grüße, 你好 👩\u200d👩\u200d👧 end", "  a line\n\n  and another  ", "\ufffd?", "", " \n"]
)
def test_pieces_never_hold_half_a_character_and_join_to_the_whole(root, text):
    tokenizer = load_policy(root / "one").tokenizer
    ids = tokenizer(text, add_special_tokens=False).input_ids
    unfolding = Unfolding(tokenizer)
    pieces = [unfolding.add(i) for i in ids]
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) + unfolding.rest(decode(tokenizer, ids)) == decode(tokenizer, ids) == text.strip()


def test_bytes_that_are_no_text_are_given_out_at_the_end(root):
    tokenizer = load_policy(root / "one").tokenizer
    ids = [
        *tokenizer("so ", add_special_tokens=False).input_ids,
        *tokenizer("👩", add_special_tokens=False).input_ids[:1],
    ]
    unfolding = Unfolding(tokenizer)
    assert "".join(unfolding.add(i) for i in ids) == "so"
    assert unfolding.rest(decode(tokenizer, ids)) == " \ufffd"


def ask(batcher, seed, heard=None, sampling=LONG, model="one"):
    request = Request(model, MESSAGES, sampling, seed, heard=heard)
    batcher.submit(request)
    return request


def test_a_row_that_is_given_up_leaves_and_the_other_goes_on(batcher):
    alone = ask(batcher, 2, lambda _: None).answer.result(60)
    pieces = []
    gone, kept = ask(batcher, 1, pieces.append), ask(batcher, 2, lambda _: None)
    until(lambda: pieces)
    gone.gone = True
    assert kept.answer.result(60).generation.token_ids == alone.generation.token_ids
    heard = len(pieces)
    until(lambda: not batcher._live)
    assert not gone.answer.done()
    assert len(pieces) == heard < 400


def test_a_streamed_answer_does_not_wait_for_the_batch_under_way(batcher):
    pieces = []
    pool = [ask(batcher, seed) for seed in range(40)]
    until(lambda: all(one.answer.running() for one in pool))
    watched = ask(batcher, 99, pieces.append, SamplingSettings(max_tokens=5))
    watched.answer.result(60)
    assert pieces
    assert not all(one.answer.done() for one in pool)
    assert all(one.answer.result(60).generation.token_ids for one in pool)
    [again] = [ask(batcher, 3)]
    assert again.answer.result(60).generation.token_ids == pool[3].answer.result().generation.token_ids


def test_a_small_model_is_watched_in_one_thread_and_gives_the_others_back(root):
    torch.set_num_threads(2)
    try:
        batcher = Batcher(Models(root))
        batcher.start()
        threads = []
        ask(
            batcher, 1, lambda _: threads.append(torch.get_num_threads()), SamplingSettings(max_tokens=20)
        ).answer.result(60)
        until(lambda: not batcher._live)
        ask(batcher, 1, None, SamplingSettings(max_tokens=2)).answer.result(60)
        batcher.stop()
        batcher.join(20)
        assert set(threads) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_two_models_are_watched_at_once(batcher):
    first, second = ask(batcher, 1, lambda _: None), ask(batcher, 1, lambda _: None, model="two")
    texts = {one.answer.result(60).text for one in (first, second)}
    assert len(texts) == 2


def test_closing_the_stream_ends_the_drawing(root):
    async def leave(address):
        request = CompletionRequest("one", MESSAGES, LONG, 1)
        async with aclosing(SamplerClient(address).stream(request)) as pieces:
            return await anext(pieces)

    async def stay(address):
        requests = [CompletionRequest(model, MESSAGES, SamplingSettings(max_tokens=30), 4) for model in ("one", "two")]
        return [event async for event in SamplerClient(address).stream_together(requests)]

    async def refused(address, model, content):
        request = CompletionRequest(model, [{"role": "user", "content": content}], LONG, 1)
        return [piece async for piece in SamplerClient(address).stream(request)]

    with served(root) as (batcher, address):
        ended = []
        submit = batcher.submit
        batcher.submit = lambda request: (ended.append(request), submit(request))[1]
        assert asyncio.run(leave(address))
        until(lambda: not batcher._live)
        assert ended[0].gone
        assert not ended[0].answer.done()

        heard = asyncio.run(stay(address))
        for place in (0, 1):
            *pieces, result = [event for at, event in heard if at == place]
            assert isinstance(result, CompletionResult)
            assert "".join(pieces) == result.text
            assert len(result.token_ids) == len(result.logprobs) == 30
        with pytest.raises(NotFound):
            asyncio.run(refused(address, "nobody", "hello"))
        with pytest.raises(Invalid, match="reads at most 511"):
            asyncio.run(refused(address, "one", "kettle " * 600))

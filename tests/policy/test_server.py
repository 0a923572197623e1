import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from app.core.configs import SamplingSettings
from app.core.errors import NotFound
from app.core.sampler import CompletionRequest, CompletionResult, SamplerClient, SamplerFailure
from app.core.vocabulary import FinishReason
from app.policy.checkpoint import load_policy
from app.policy.engine import generate
from app.policy.server import _listen, create_app
from app.policy.serving import Models

MESSAGES = [{"role": "user", "content": "My kettle arrived broken. Order 4821."}]
SHORT = SamplingSettings(max_tokens=12)


@pytest.fixture(scope="module")
def web(root):
    with TestClient(create_app(root)) as client:
        yield client


@pytest.fixture(scope="module")
def sampler(root, tmp_path_factory):
    """The real process on a real socket; the client for it."""
    path = tmp_path_factory.mktemp("s") / "sampler.sock"
    command = [sys.executable, "-m", "app.policy.server", "--socket", str(path), "--root", str(root), "--threads", "1"]
    with path.with_name("log").open("w") as log:
        process = subprocess.Popen(command, stderr=log)
    client = SamplerClient(f"unix:{path}")
    wait_for(client, process)
    yield client, path, process
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert not path.exists()


def wait_for(client, process, seconds=60):
    deadline = time.monotonic() + seconds
    while not client.healthy():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)


def post(web, **changes):
    return web.post("/v1/chat/completions", json={"model": "one", "messages": MESSAGES, "max_tokens": 12, **changes})


def test_an_answer_is_openais_with_its_provenance_beside_it(web, root):
    body = post(web, seed=5).json()
    choice = body["choices"][0]
    policy = load_policy(root / "one")
    prompt = "<|user|>My kettle arrived broken. Order 4821.<|end|><|assistant|>"
    ids = policy.tokenizer(prompt, add_special_tokens=False).input_ids
    [expected] = generate(policy.model, [ids], [5], SHORT, 1, 0)
    assert choice["token_ids"] == expected.token_ids
    assert choice["token_logprobs"] == pytest.approx(expected.logprobs, abs=1e-5)
    assert choice["logprobs_sum"] == pytest.approx(sum(expected.logprobs), abs=1e-4)
    assert choice["finish_reason"] in ("stop", "length")
    assert choice["message"] == {
        "role": "assistant",
        "content": policy.tokenizer.decode(expected.token_ids, skip_special_tokens=True).strip(),
    }
    assert body["usage"]["prompt_tokens"] == len(ids)
    assert body["usage"]["completion_tokens"] == len(expected.token_ids)
    assert len(body["chat_template_hash"]) == 64


def test_without_a_seed_every_answer_is_another(web):
    answers = {tuple(post(web).json()["choices"][0]["token_ids"]) for _ in range(4)}
    assert len(answers) == 4


def test_the_models_are_the_folders(web):
    assert [m["id"] for m in web.get("/v1/models").json()["data"]] == ["one", "two"]
    assert post(web, seed=5).json()["choices"] != post(web, model="two", seed=5).json()["choices"]


@pytest.mark.parametrize(
    "name", ["three", "", ".", "..", "../one", "one/../one", "/etc", "one\x00", "-one", "a" * 500, "one/", "\u202eone"]
)
def test_no_name_leads_out_of_the_root(web, name):
    answer = post(web, model=name)
    assert answer.status_code == 404
    assert answer.json()["error"]["message"] == "There is no such model."


def test_a_link_that_leads_out_of_the_root_is_not_followed(root, tmp_path):
    inside = tmp_path / "root"
    inside.mkdir()
    (inside / "link").symlink_to(root / "one")
    with pytest.raises(NotFound):
        Models(inside).get("link")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"temperature": 0}, "temperature"),
        ({"temperature": 99}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 2}, "n"),
        ({"stream": 3}, "stream"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages"),
        ({"seed": -1}, "seed"),
        ({"logit_bias": {}}, "logit_bias"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(web, change, field):
    answer = post(web, **change)
    assert answer.status_code == 422
    assert answer.json()["error"]["message"].startswith(field)


def test_a_body_that_is_no_json_or_too_long_is_refused(web):
    assert web.post("/v1/chat/completions", content=b"{").status_code == 422
    assert web.post("/v1/chat/completions", content=b" " * 1_000_001).status_code == 413


def test_a_conversation_longer_than_the_context_is_refused(web):
    answer = post(web, messages=[{"role": "user", "content": "kettle " * 600}])
    assert answer.status_code == 422
    assert "reads at most 511" in answer.json()["error"]["message"]


def test_a_damaged_checkpoint_is_named_and_does_not_stop_the_others(root, tmp_path):
    shutil.copytree(root / "one", tmp_path / "broken")
    shutil.copytree(root / "two", tmp_path / "fine")
    weights = tmp_path / "broken" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with TestClient(create_app(tmp_path)) as web:
        answer = post(web, model="broken")
        assert answer.status_code == 422
        assert "broken/model.safetensors" in answer.json()["error"]["message"]
        assert post(web, model="fine").status_code == 200


def test_two_models_are_kept(root, tmp_path):
    for name in ("a", "b", "c"):
        shutil.copytree(root / "one", tmp_path / name)
    models = Models(tmp_path)
    first = models.get("a")
    models.get("b")
    assert models.get("a") is first
    models.get("c")
    assert models.get("a") is first
    assert set(models._kept) == {"c", "a"}


# ---- the process and its client ------------------------------------------------------------------------------------


def request(seed, model="one", sampling=SHORT):
    return CompletionRequest(model, MESSAGES, sampling, seed)


def test_many_requests_at_once_give_what_each_gives_alone(sampler):
    client, _, _ = sampler
    together = client.complete([request(i, "one" if i % 3 else "two") for i in range(100)])
    assert all(isinstance(r, CompletionResult) for r in together)
    for i in (0, 1, 50, 99):
        [alone] = client.complete([request(i, "one" if i % 3 else "two")])
        assert alone.token_ids == together[i].token_ids
        assert alone.text == together[i].text
    assert len({tuple(r.token_ids) for r in together}) > 90


def test_requests_with_other_settings_share_a_batch(sampler):
    client, _, _ = sampler
    settings = [SamplingSettings(max_tokens=1 + i % 7, temperature=0.5 + i / 10, top_p=0.9) for i in range(20)]
    results = client.complete([request(3, sampling=s) for s in settings])
    for s, r in zip(settings, results, strict=True):
        assert len(r.token_ids) == len(r.logprobs) <= s.max_tokens
        assert r.finish_reason in FinishReason
        assert r.latency_ms > 0


def test_a_failure_is_an_answer_and_spoils_no_other(sampler):
    client, _, _ = sampler
    good, bad = client.complete([request(1), request(1, model="nobody")])
    assert isinstance(good, CompletionResult)
    assert bad == SamplerFailure("refused with 404: There is no such model.")


def test_only_this_user_can_open_the_socket(sampler):
    _, path, _ = sampler
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_second_sampler_on_the_same_socket_says_so(sampler):
    client, path, _ = sampler
    with pytest.raises(OSError, match="another sampler listens there"):
        _listen(path)
    assert client.healthy()


def test_nobody_there_is_a_failure_not_an_error(tmp_path):
    client = SamplerClient(f"unix:{tmp_path}/nothing.sock")
    assert not client.healthy()
    assert client.complete([request(1)]) == [SamplerFailure("no answer: ConnectError")]


def test_it_ends_when_its_parent_ends_and_replaces_a_socket_left_behind(root, tmp_path):
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    script = (
        "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-m', 'app.policy.server',"
        f" '--socket', {str(path)!r}, '--root', {str(root)!r}, '--threads', '1'], stderr=subprocess.DEVNULL);"
        " print(p.pid, flush=True); time.sleep(300)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    client = SamplerClient(f"unix:{path}")
    deadline = time.monotonic() + 60
    while not client.healthy():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    while path.exists() or Path(f"/proc/{child}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_path_too_long_for_a_socket_is_explained(tmp_path):
    with pytest.raises(OSError, match="longer than 100 bytes"):
        _listen(tmp_path / ("x" * 120))


def test_texts_never_reach_the_log(sampler):
    client, path, _ = sampler
    client.complete([CompletionRequest("one", [{"role": "user", "content": "canary-text"}], SHORT, 1)])
    client.complete([CompletionRequest("canary-model", MESSAGES, SHORT, 1)])
    log = path.with_name("log").read_text()
    assert "loaded one" in log
    assert "canary" not in log

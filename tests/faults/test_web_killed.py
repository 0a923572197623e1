"""The web process is killed while a judgment is on its way, again and again, and a ledger is kept at the other end.

Acknowledged means that the whole answer arrived. An unknown outcome is sent again under the same key.
"""

import os
import random
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator

import httpx
import psycopg
import pytest

from app.core.vocabulary import Role
from app.store import accounts, claims
from app.store.db import make_engine, session_factory
from app.web.security import signed
from tests.installation import ROOT, until

KEY = "a-key-for-the-killed-web-0123456789"

pytestmark = pytest.mark.timeout(1800)


class Killable:
    """Web processes, one after another, on a listening socket that outlives them."""

    def __init__(self, database_url: str, home: str) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.environment = os.environ | {"PAIRWRIGHT_DATABASE_URL": database_url, "PAIRWRIGHT_HOME": home}
        self.environment["PAIRWRIGHT_SECRET_KEY"] = KEY
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        fd = self.listener.fileno()
        command = [sys.executable, "-m", "app", "web", "--fd", str(fd)]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, cwd=ROOT, env=self.environment, pass_fds=[fd], **quiet)
        until(lambda: httpx.get(f"{self.url}/livez", timeout=60, trust_env=False).is_success, 60)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()


@pytest.fixture
def web(database_url: str, tmp_path) -> Iterator[Killable]:
    made = Killable(database_url, str(tmp_path / "home"))
    yield made
    if made.process is not None:
        made.kill()
    made.listener.close()


@pytest.mark.parametrize("kills", [4, pytest.param(60, marks=pytest.mark.slow)])
def test_every_acknowledged_judgment_is_there_and_none_twice(web, database_url, make_with, kills):
    engine = make_engine(database_url)
    sessions = session_factory(engine)
    with sessions.begin() as s:
        make = make_with(s)
        project = make.project()
        policy, person = make.policy(project, promote=True), make.person(project, Role.ANNOTATOR)
        for _ in range(kills):
            make.pair(project, policy)
        token = accounts.open_session(s, person.id)
    cookies, headers = {"pairwright": signed(KEY, token)}, {"Sec-Fetch-Site": "same-origin", "HX-Request": "true"}
    chance = random.Random(0)
    ledger: dict[str, str] = {}

    client = httpx.Client(cookies=cookies, headers=headers, timeout=30, trust_env=False)

    def send(form: dict[str, str]) -> bool:
        """Whether the judgment was acknowledged."""
        try:
            return client.post(f"{web.url}/p/{project.slug}/judgments", data=form).is_success
        except httpx.HTTPError:
            return False

    for i in range(kills):
        web.start()
        with sessions.begin() as s:
            [task] = claims.claim(s, project.id, person.id, count=1)
        form = {
            "comparison_id": str(task.comparison_id),
            "key": str(uuid.uuid4()),
            "verdict": "left",
            "order": ",".join(map(str, task.order)),
        }
        # By turns somewhere on the way, and right behind the answer.
        killer = threading.Timer(chance.uniform(0.0, 0.12) if i % 2 else 60, web.kill)
        killer.start()
        outcome = "acknowledged" if send(form) else "unknown"
        if i % 2:
            killer.join()
        else:
            killer.cancel()
            web.kill()
        if outcome == "unknown":
            web.start()
            assert send(form), "the same key again gets its receipt"
            web.kill()
        ledger[form["key"]] = outcome
    client.close()
    engine.dispose()

    with psycopg.connect(database_url.replace("+psycopg", "")) as connection:
        stored = connection.execute("SELECT key::text, count(*) FROM judgment_revision GROUP BY 1").fetchall()
        filled = connection.execute("SELECT count(*) FROM slot WHERE state = 'filled'").fetchall()
    assert dict(stored) == dict.fromkeys(ledger, 1)
    assert filled == [(kills,)]
    assert list(ledger.values())[::2] == ["acknowledged"] * (kills // 2)
    print({outcome: list(ledger.values()).count(outcome) for outcome in ("acknowledged", "unknown")})

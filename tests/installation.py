"""A whole installation in a folder of its own: `serve` as a real process, and what tests ask of it."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import psutil
import psycopg
import pytest

from app.store import embedded

ROOT = Path(__file__).parents[1]
T = TypeVar("T")


def free_port() -> int:
    """A port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(ask: Callable[[], T], seconds: float, what: str = "") -> T:
    """The first true answer; an assertion fails after so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := ask():
            return answer
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s: {what or ask}")


class Installation:
    """One data folder with its processes. `settings` are PAIRWRIGHT_ variables without the prefix."""

    def __init__(self, home: Path, **settings: str) -> None:
        self.home, self.port = home, free_port()
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PAIRWRIGHT_")}
        given = {"HOME": str(home), "PORT": str(self.port), "STARTER": "tiny", "POOL_TARGET": "8"} | settings
        self.environment = inherited | {f"PAIRWRIGHT_{name}": value for name, value in given.items()}
        self.process: subprocess.Popen[bytes] | None = None
        self.children: list[psutil.Process] = []
        self.code: int | None = None
        self.log = home.parent / f"{home.name}.log"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, *arguments: str, answer_within: float | None = 120) -> "Installation":
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "app", "serve", *arguments],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        if answer_within:
            until(self.answers, answer_within, "the web answers")
        return self

    def answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.said()
        return self.get("/livez") == 200

    def get(self, path: str) -> int | None:
        """The status of a GET; None where nobody answers."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            error.close()
            return int(error.code)
        except OSError:
            return None

    def said(self) -> str:
        """All that `serve` and its children printed."""
        return self.log.read_text() if self.log.exists() else ""

    def owner_link(self) -> str:
        """The newest link that the console showed."""
        return until(lambda: re.findall(r"http://\S+/setup/\S+", self.said()), 10, "the owner's link")[-1]

    def processes(self, word: str) -> list[psutil.Process]:
        """Live descendants whose command line has the word: web, worker, app.policy.server, app.training."""
        assert self.process is not None
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if word in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                    found.append(child)
            except psutil.NoSuchProcess:
                continue
        return found

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Another command of the product, on the same data folder."""
        return subprocess.run(
            [sys.executable, "-m", "app", *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=240,
            stdin=subprocess.DEVNULL,
        )

    def ask(self, query: str) -> list[tuple]:
        """Rows straight from the database."""
        url = embedded.attach(self.home)
        try:
            with psycopg.connect(url.replace("+psycopg", "")) as connection:
                cursor = connection.execute(query)
                return cursor.fetchall() if cursor.description else []
        finally:
            embedded.stop(self.home)

    def stop(self, number: signal.Signals = signal.SIGINT, within: float = 60) -> int:
        """Ask `serve` to stop and wait for its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(within)

    def end(self) -> None:
        """Whatever still lives of it ends; for the test's own end."""
        if self.process is not None and self.process.poll() is None:
            try:
                self.stop(signal.SIGTERM)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if (self.home / "postgres").exists():
            embedded.stop(self.home)


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    """An installation that has not been started yet."""
    made = Installation(tmp_path / "home")
    yield made
    made.end()

"""A web server on a free loopback port over a given database, and a Chromium to look at it with."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from playwright.sync_api import Browser, Playwright

ROOT = Path(__file__).parents[2]
KEY = "a-key-for-browser-tests-0123456789"
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SERVE = """
import sys, uvicorn
from app.settings import Settings
from app.web.main import create_app
settings = Settings().make_home()
uvicorn.Server(uvicorn.Config(create_app(settings), fd=int(sys.argv[1]), log_level="warning")).run()
"""


def chromium_path() -> Path | None:
    """The Chromium to drive, if this machine has one."""
    path = Path(os.environ.get("PAIRWRIGHT_CHROMIUM") or "/usr/bin/chromium")
    return path if path.exists() else None


def launch(playwright: Playwright) -> Browser:
    """A Chromium with a fresh profile that asks nobody for anything."""
    path = chromium_path()
    assert path is not None, "there is no Chromium: set PAIRWRIGHT_CHROMIUM"
    return playwright.chromium.launch(executable_path=path, args=ARGUMENTS)


@contextmanager
def serve(database_url: str, home: Path) -> Iterator[str]:
    """The address of a fresh web process."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        environment = os.environ | {"PAIRWRIGHT_HOME": str(home), "PAIRWRIGHT_DATABASE_URL": database_url}
        environment["PAIRWRIGHT_SECRET_KEY"] = KEY
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(listener.fileno())],
            cwd=ROOT,
            env=environment,
            pass_fds=[listener.fileno()],
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/livez", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    """Returns when the server answers."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        assert process.poll() is None, "the web process ended"
        try:
            httpx.get(address, timeout=2, trust_env=False)
        except httpx.TransportError:
            time.sleep(0.1)
        else:
            return
    raise TimeoutError("the web process did not answer within 30 s")

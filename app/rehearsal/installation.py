"""The product in a fresh data folder, started as a person would start it and used from outside."""

import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from app.core.records import RunDir, RunError, RunResult, RunSpec
from app.rehearsal.browser import Browser, RehearsalError

OWNER = "rehearsal"
_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"


class Installation:
    """`python -m app serve` on a free loopback port. Entering starts it and makes the owner; leaving stops it."""

    def __init__(self, home: Path, say: Callable[[str], None], environment: dict[str, str] | None = None) -> None:
        self.home = home.resolve()
        self.say = say
        self._environment = environment or {}
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""
        self.slug = ""
        self.owner = Browser("http://127.0.0.1:9")

    def __enter__(self) -> Self:
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        # A rehearsal that is asked to end stops the product that it started, too.
        with suppress(ValueError):  # only the main thread may
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        port = _free_port()
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PAIRWRIGHT_") or k in _PASSED_ON}
        environment |= {"PAIRWRIGHT_HOME": str(self.home), "PAIRWRIGHT_PORT": str(port), "PYTHONUNBUFFERED": "1"}
        with self._console.open("wb") as console:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "app", "serve"],
                env=environment | self._environment,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            link = self.wait("the owner's link", 120, self._owner_link)
            self.url = link.split("/setup/")[0]
            self.owner = Browser(self.url)
            self.wait("the web process", 60, lambda: _answers(self.url))
            self.owner.set_up_owner(link, OWNER, secrets.token_urlsafe(18))
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def wait(self, what: str, patience_s: float, found: Callable[[], Any]) -> Any:
        """What `found` gives once it is something; RehearsalError when the product ended or the patience did."""
        ends = time.monotonic() + patience_s
        while not (value := found()):
            if self._process is not None and self._process.poll() is not None:
                raise RehearsalError(f"the product ended while waiting for {what}:\n{self._last_lines()}")
            if time.monotonic() > ends:
                raise RehearsalError(f"{what} did not come within {patience_s:.0f} s:\n{self._last_lines()}")
            time.sleep(0.25)
        return value

    def wait_for_starter(self, patience_s: float = 1800) -> None:
        """Until the project is there and its first pair can be judged."""
        self.slug = self.wait("the project", patience_s, self._project)
        self.wait("the first pair", patience_s, lambda: "data-task" in self.owner.get(f"/p/{self.slug}/judge").text)

    def train(self, seed: int) -> tuple[str, str]:
        """Presses the button that trains a reward model and then PPO; the ids of both runs."""
        known = set(self._run_ids())
        page = self.owner.post(f"/p/{self.slug}/train", {"seed": str(seed)})
        reward = page.url.path.rsplit("/", 1)[-1]
        others = [run for run in self._run_ids() if run not in known and run != reward]
        if len(others) != 1:
            raise RehearsalError(f"training started {len(others)} runs beside the reward model's, not one")
        return reward, others[0]

    def train_dpo(self, seed: int, policy: str) -> str:
        """Sends the form that starts DPO from a policy, with its defaults; the run's id."""
        form = {"kind": "dpo", "seed": str(seed), "policy_id": policy}
        return self.owner.post(f"/p/{self.slug}/runs", form).url.path.rsplit("/", 1)[-1]

    def wait_for_run(self, run: str, patience_s: float = 3600) -> RunResult:
        """Until a run has ended well; RehearsalError with its own words where it did not."""

        def ended() -> bool:
            return not self.owner.get(f"/p/{self.slug}/runs/{run}/metrics").json()["live"]

        self.wait(f"run {run}", patience_s, ended)
        directory = self.run_dir(run)
        if not directory.result.exists():
            words = (
                RunError.model_validate_json(directory.error.read_text()).message if directory.error.exists() else ""
            )
            raise RehearsalError(f"run {run} did not finish: {words or 'it left no result'}")
        return RunResult.model_validate_json(directory.result.read_text())

    def run_dir(self, run: str) -> RunDir:
        """The files of a run."""
        return RunDir(self.home / "runs" / run)

    def spec(self, run: str) -> RunSpec:
        """What a run was asked to do."""
        return RunSpec.model_validate_json(self.run_dir(run).spec.read_text())

    def folder(self, run: str, named: str | None) -> Path:
        """The folder that a field of a run's spec names."""
        return (self.run_dir(run).root / str(named)).resolve()

    def promote_newest(self) -> str:
        """Presses promote beside the newest policy; its id."""
        page = self.owner.get(f"/p/{self.slug}/policies").text
        found = re.search(rf'action="/p/{self.slug}/policies/({_UUID})/promote"', page)
        if found is None:
            raise RehearsalError("there is no policy to promote")
        self.owner.post(f"/p/{self.slug}/policies/{found[1]}/promote", {})
        return found[1]

    def roll_back(self) -> None:
        """Presses roll back."""
        self.owner.post(f"/p/{self.slug}/policies/rollback", {})

    @property
    def _console(self) -> Path:
        return self.home / "console.log"

    def _owner_link(self) -> str | None:
        found = re.search(r"http://\S+/setup/\S+", self._console.read_text(errors="replace"))
        return found.group() if found else None

    def _project(self) -> str | None:
        page = self.owner.get("/")
        found = re.search(r"/p/([a-z0-9-]+)", f"{page.url.path} {page.text}")
        return found[1] if found else None

    def _run_ids(self) -> list[str]:
        page = self.owner.get(f"/p/{self.slug}/runs").text
        return list(dict.fromkeys(re.findall(rf"/p/{self.slug}/runs/({_UUID})", page)))

    def _last_lines(self) -> str:
        return "\n".join(self._console.read_text(errors="replace").splitlines()[-15:])

    def _stop(self) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(90)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


_PASSED_ON = ("PAIRWRIGHT_STARTER", "PAIRWRIGHT_POLICY", "PAIRWRIGHT_TRAINING_THREADS", "PAIRWRIGHT_SAMPLER_THREADS")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(url: str) -> bool:
    try:
        with Browser(url, timeout_s=5) as browser:
            browser.get("/sign-in")
    except Exception:
        return False
    return True

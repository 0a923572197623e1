"""`pairwright serve`: database, web and worker under one command, restarted when they crash, stopped in order."""

import logging
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import FrameType

from app.core.errors import Unavailable
from app.jobs import database, leash
from app.jobs.environment import of_our_own
from app.settings import Settings
from app.store.accounts import issue_setup_token
from app.store.db import make_engine, session_factory

WEB_DRAINS_S = 10.0
WORKER_STOPS_S = 40.0
LONGEST_PAUSE_S = 30.0
STEADY_S = 60.0
LOOK_AFTER_DATABASE_S = 3.0
# A child that ends with this code has said on the console what a person must mend first; starting it again is no help.
CANNOT_GO_ON = 78

logger = logging.getLogger("pairwright.supervisor")


@dataclass
class Child:
    """One process that is kept alive. After each crash the pause doubles; a minute of steady work forgives."""

    name: str
    command: list[str]
    environment: Mapping[str, str]
    keep: tuple[int, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    pause_s: float = 0.5
    started: float = 0.0
    due: float = field(default=0.0)

    def tend(self) -> None:
        """Start it when it is due; note its end and set the next start."""
        now = time.monotonic()
        if self.process is None:
            if now >= self.due:
                self.process = leash.spawn(
                    self.command, env=self.environment, death_signal=signal.SIGTERM, keep=self.keep
                )
                self.started = now
            return
        code = self.process.poll()
        if code is None:
            return
        if code == CANNOT_GO_ON:
            raise CannotGoOn
        if now - self.started > STEADY_S:
            self.pause_s = 0.5
        logger.error("%s ended with code %d; starting it again in %.1f s", self.name, code, self.pause_s)
        self.process, self.due = None, now + self.pause_s
        self.pause_s = min(2 * self.pause_s, LONGEST_PAUSE_S)

    def ask(self) -> None:
        """Ask it to stop and do not wait, so that several stop at the same time."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()

    def stop(self, seconds: float) -> None:
        """Ask it to stop, wait, and kill what is left."""
        if self.process is not None:
            code = leash.end(self.process, seconds)
            logger.info("%s stopped (%d)", self.name, code)
            self.process = None


class CannotGoOn(Exception):
    """A child has said why it cannot work; everything stops."""


def serve(settings: Settings, say: Callable[[str], None]) -> bool:
    """Run the product until a signal asks to stop; False where a child said that it cannot work at all.

    Raises what a person can mend before anything is started; `say` prints a line for them.
    """
    stopping = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)

    settings.make_home()
    settings.signing_key()
    with listening(settings) as listener, database.opened(settings) as url:
        database.migrated(url)
        environment = {**of_our_own(), "PAIRWRIGHT_DATABASE_URL": url}
        # Whichever is idle takes the next connection.
        command = ["-m", "app", "web", "--fd", str(listener.fileno())]
        webs = [Child("web", command, environment, (listener.fileno(),)) for _ in range(settings.web_processes)]
        worker = Child("worker", ["-m", "app", "worker"], environment)
        for web in webs:
            web.tend()
        say(f"Pairwright is at {settings.address} - stop it with Ctrl-C")
        link = owner_link(settings, url)
        if link:
            say(f"Nobody owns this installation yet. Open this link once to become its owner:\n  {link}")
        try:
            looked = time.monotonic()
            while not stopping.wait(0.2):
                for child in (*webs, worker):
                    child.tend()
                if time.monotonic() - looked > LOOK_AFTER_DATABASE_S:
                    database.revive(settings, url)
                    looked = time.monotonic()
        except CannotGoOn:
            return False
        finally:
            say("Stopping: open pages are answered, training leaves a checkpoint, the database closes last.")
            for web in webs:
                web.ask()
            for web in webs:
                web.stop(WEB_DRAINS_S)
            worker.stop(WORKER_STOPS_S)
    return True


def listening(settings: Settings) -> socket.socket:
    """A socket that listens on the configured address. It outlives a web process, so a restart refuses nobody."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        if isinstance(error, PermissionError):
            reason = f"Port {settings.port} may not be opened by this user."
        elif isinstance(error, socket.gaierror) or "assign" in str(error):
            reason = f"{settings.host} is no address of this machine."
        else:
            reason = f"Port {settings.port} of {settings.host} is taken by another program."
        raise Unavailable(reason, "Choose another with --port or PAIRWRIGHT_PORT.") from None
    return listener


def owner_link(settings: Settings, url: str) -> str | None:
    """The one-time link that makes the owner; None once there is one."""
    engine = make_engine(url, pool_size=1)
    try:
        with session_factory(engine).begin() as session:
            token = issue_setup_token(session)
    finally:
        engine.dispose()
    return f"{settings.address}/setup/{token}" if token else None

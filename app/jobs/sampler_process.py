"""Keeping the sampler alive: our own process on a Unix socket, unless a server elsewhere is configured."""

import logging
import os
import signal
import socket
import subprocess
import time

from app.jobs import leash
from app.jobs.environment import without_secrets
from app.settings import Settings

# Below the web, above training: pages first, then the pool, then runs.
NICE = 5
LONGEST_PAUSE_S = 30.0
STEADY_S = 60.0

logger = logging.getLogger("pairwright.worker")


class SamplerProcess:
    """Starts the sampler, restarts it when it ends, stops it. All from one thread, which must outlive it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._started = self._due = 0.0
        self._pause_s = 0.5

    def tend(self) -> None:
        """Start it when it is due, and note when it has ended."""
        if self._settings.sampler_url is not None:
            return
        now = time.monotonic()
        if self._process is None:
            if now >= self._due:
                self._start(now)
            return
        code = self._process.poll()
        if code is None:
            return
        if now - self._started > STEADY_S:
            self._pause_s = 0.5
        logger.error("the sampler ended with code %d; starting it again in %.1f s", code, self._pause_s)
        self._process, self._due = None, now + self._pause_s
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    def stop(self) -> None:
        """Stop it; a request under way is dropped."""
        if self._process is not None:
            leash.end(self._process, 5.0)
            self._process = None

    def _start(self, now: float) -> None:
        path = self._settings.sampler_socket
        if _answers(str(path)):
            # Another worker of this data folder keeps one already.
            self._due = now + 5.0
            return
        path.unlink(missing_ok=True)  # left behind by one that was killed
        self._process = leash.spawn(
            [
                *("-m", "app.policy.server", "--socket", str(path)),
                *("--root", str(self._settings.checkpoints_dir)),
                *("--threads", str(self._settings.sampler_threads or os.cpu_count() or 1)),
            ],
            env=without_secrets(self._settings.sampler_threads),
            death_signal=signal.SIGKILL,
            nice=NICE,
        )
        self._started = now


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except OSError:
            return False
    return True

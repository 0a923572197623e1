"""The worker: prepares the first start, claims runs, keeps the sampler alive and the pool filled.

One thread starts every child process, because a leash hangs on the thread that put it on. The pool, the
heartbeat and the fit of skills have threads of their own, so a long step of one never delays another.
"""

import logging
import os
import secrets
import signal
import socket
import threading
from types import FrameType

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from app.jobs import prepare
from app.jobs.attempt import Attempt
from app.jobs.pool import Pool
from app.jobs.sampler_process import SamplerProcess
from app.jobs.skill import Skills
from app.settings import Settings
from app.store import runs
from app.store.db import make_engine, session_factory

CHECKPOINT_WITHIN_S = 20.0

logger = logging.getLogger("pairwright.worker")


def work(settings: Settings, url: str) -> None:
    """Work until a signal asks to stop; then leave a checkpoint, put the run back, and stop the sampler."""
    stopping = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    settings.make_home()
    engine = make_engine(url)
    sessions = session_factory(engine)
    name = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"
    sampler, attempt = SamplerProcess(settings), None
    logger.info("worker %s started", name)
    try:
        sampler.tend()
        prepare.first_start(settings, sessions)
        pool = Pool(settings, sessions, stopping)
        pool.start()
        Skills(sessions, stopping).start()
        while not stopping.is_set():
            sampler.tend()
            if attempt is None:
                attempt = _claimed(settings, sessions, name)
            elif attempt.tick():
                attempt = None
                continue  # the next run may start at once
            stopping.wait(settings.worker_poll_s)
    finally:
        stopping.set()
        if attempt is not None:
            attempt.stop(CHECKPOINT_WITHIN_S)
        sampler.stop()
        engine.dispose()
        logger.info("worker %s stopped", name)


def _claimed(settings: Settings, sessions: sessionmaker[Session], worker: str) -> Attempt | None:
    try:
        with sessions.begin() as session:
            run = runs.claim_run(session, worker)
    except DBAPIError:
        logger.warning("the database does not answer; the worker waits")
        return None
    return Attempt(settings, sessions, run) if run is not None else None

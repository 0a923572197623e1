"""How far each annotator can be trusted: a model of the votes, fitted beside the work, now and then.

The library is crowd-kit, whose import takes seconds and a good deal of memory: it is only ever imported in a process of
its own (`app.jobs.skill_fit`), niced, which reads votes from a file and writes estimates to another. A thread of the
worker starts it, so that neither the pool nor a run waits.
"""

import json
import logging
import signal
import subprocess
import tempfile
import threading
import uuid
from pathlib import Path
from typing import Any

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from app.jobs import leash
from app.jobs.environment import without_secrets
from app.store import projects, skills

EVERY_S = 180.0
FIRST_S = 20.0
FIT_WITHIN_S = 300.0

logger = logging.getLogger("pairwright.skill")


class Skills(threading.Thread):
    """Fits each project in which new judgments came, at most every few minutes, until `stopping` is set."""

    def __init__(self, sessions: sessionmaker[Session], stopping: threading.Event, every_s: float = EVERY_S) -> None:
        super().__init__(name="skill", daemon=True)
        self._sessions, self._stopping, self._every_s = sessions, stopping, every_s
        self._seen: dict[uuid.UUID, Any] = {}

    def run(self) -> None:
        pause = min(FIRST_S, self._every_s)
        while not self._stopping.wait(pause):
            pause = self._every_s
            try:
                self.round()
            except DBAPIError:
                logger.warning("the database does not answer; the skills wait")
            except Exception:
                logger.exception("fitting the skills failed")

    def round(self) -> int:
        """Fit where there is something new; how many projects that were."""
        with self._sessions.begin() as session:
            ids = [project.id for project in projects.all_projects(session)]
        return sum(self._fit(project_id) for project_id in ids if not self._stopping.is_set())

    def _fit(self, project_id: uuid.UUID) -> bool:
        with self._sessions.begin() as session:
            newest = skills.newest(session, project_id)
            if newest is None or newest == self._seen.get(project_id):
                return False
            if skills.fitted_since(session, project_id, newest):
                return False
            votes = skills.votes(session, project_id)
        estimates = fit(votes, self._stopping)
        if estimates is None:
            return False
        with self._sessions.begin() as session:
            skills.store(session, project_id, estimates, votes.read_at)
        self._seen[project_id] = newest
        return True


def fit(votes: skills.Votes, stopping: threading.Event | None = None) -> list[skills.Fitted] | None:
    """The estimates, from a process of their own; None where it was stopped or broke."""
    if not votes.said:
        return []
    with tempfile.TemporaryDirectory(prefix="pairwright-skill-") as folder:
        asked, answered = Path(folder) / "votes.json", Path(folder) / "skills.json"
        asked.write_text(json.dumps({"said": votes.said, "gold": votes.gold}))
        process = leash.spawn(
            ["-m", "app.jobs.skill_fit", str(asked), str(answered)],
            env=without_secrets(threads=1),
            death_signal=signal.SIGKILL,
            nice=10,
        )
        try:
            if not _wait(process, stopping or threading.Event()) or not answered.exists():
                return None
            return [skills.Fitted(**one) for one in json.loads(answered.read_text())]
        finally:
            leash.kill(process)


def _wait(process: subprocess.Popen[bytes], stopping: threading.Event) -> bool:
    """Whether the process ended well, in time."""
    for _ in range(int(FIT_WITHIN_S * 5)):
        try:
            code = process.wait(0.2)
        except subprocess.TimeoutExpired:
            if stopping.is_set():
                return False
            continue
        if code:
            logger.error("fitting the skills ended with code %d", code)
        return code == 0
    logger.error("fitting the skills took too long")
    return False

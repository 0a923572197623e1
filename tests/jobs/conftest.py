"""A worker's surroundings with a trainer that does as it is told instead of training."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy.orm import Session, sessionmaker

from app.core.vocabulary import RunKind
from app.jobs import launch
from app.jobs.attempt import Attempt
from app.settings import Settings
from app.store import prompts, runs
from app.store.db import make_engine, session_factory
from app.store.models import Project, Run
from tests.installation import until

TOLD = """
import json, os, signal, sys, time
from pathlib import Path
from app.core.folders import write_folder
from app.core.records import RunDir
d = RunDir(sys.argv[1])
def log(step, **values):
    with d.metrics.open("a") as f:
        f.write(json.dumps({"step": step, "time": 0.0, "phase": "train", **values}) + "\\n")
def progress(step, total):
    beat = {"step": step, "total": total, "phase": "train", "seconds_left": 1.5, "time": 0.0}
    d.progress.write_text(json.dumps(beat))
def fail(kind, message, mend="Mend it."):
    d.error.write_text(json.dumps({"kind": kind, "message": message, "mend": mend}))
    sys.exit(4)
def finish(**metrics):
    write_folder(d.final, lambda folder: (folder / "model.safetensors").write_bytes(b"weights"))
    d.result.write_text(json.dumps({"status": "finished", "step": 3, "metrics": metrics}))
    sys.exit(0)
def times():
    "How often this directory was started."
    n = len(list(d.root.glob("started-*")))
    (d.root / f"started-{n}").touch()
    return n + 1
"""


@pytest.fixture
def sessions(database_url: str) -> Iterator[sessionmaker[Session]]:
    engine = make_engine(database_url)
    yield session_factory(engine)
    engine.dispose()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home").make_home()


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """trainer("finish(loss=1.0)") says what the next trainers do."""
    return lambda code: monkeypatch.setattr(launch, "TRAINER", ("-c", TOLD + code))


class Work:
    """One project with demonstrations, its queue, and what a worker would do with it."""

    def __init__(self, settings: Settings, sessions: sessionmaker[Session], project: Project) -> None:
        self.settings, self.sessions, self.project = settings, sessions, project

    def queue(self, kind: RunKind = RunKind.SFT, **fields: object) -> Run:
        with self.sessions.begin() as s:
            return runs.enqueue(s, self.project.id, kind, None, **fields)

    def claim(self, worker: str = "worker") -> Attempt:
        with self.sessions.begin() as s:
            run = runs.claim_run(s, worker)
        assert run is not None
        return Attempt(self.settings, self.sessions, run)

    def see(self, run: Run) -> Run:
        with self.sessions() as s:
            return runs.run(s, self.project.id, run.id)

    def steps(self, run: Run) -> list[int]:
        with self.sessions() as s:
            return [row.step for row in runs.metrics_after(s, run.id)]

    def through(self, attempt: Attempt, seconds: float = 30) -> None:
        """Tick to the end."""
        until(attempt.tick, seconds, "the attempt ends")

    def ticking(self, attempt: Attempt, condition: Callable[[], bool], seconds: float = 30) -> None:
        """Tick until something holds."""

        def holds() -> bool:
            assert not attempt.tick(), "the attempt ended"
            return condition()

        until(holds, seconds)


@pytest.fixture
def work(settings: Settings, sessions: sessionmaker[Session], make_with: Callable[[Session], SimpleNamespace]) -> Work:
    with sessions.begin() as s:
        project = make_with(s).project()
        rows = [([{"role": "user", "content": f"Where is order {n}?"}], "On its way.") for n in range(30)]
        prompts.add_demonstrations(s, project, rows, "test")
    return Work(settings, sessions, project)

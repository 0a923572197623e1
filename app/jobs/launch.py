"""A training process: its run directory, its start, and reading along in what it logs."""

import json
import logging
import os
import signal
import subprocess
import uuid
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from app.core.folders import write_file
from app.core.records import RunDir, RunSpec
from app.core.vocabulary import RunKind
from app.jobs import leash
from app.jobs.environment import without_secrets
from app.settings import Settings
from app.store import checkpoints, snapshots
from app.store.models import Run, Snapshot

NICE = 10
TRAINER = ("-m", "app.training")

logger = logging.getLogger("pairwright.worker")


def run_directory(settings: Settings, run: Run) -> RunDir:
    """Where a run's files are. Only its id makes the name, so nothing typed by a person reaches a path."""
    return RunDir(settings.runs_dir / str(run.id))


def write_directory(session: Session, settings: Settings, run: Run) -> RunDir:
    """Write what the trainer reads: the records and spec.json last. A directory that has its spec is left as it is.

    Paths in the spec are relative to the run directory, so that the data folder can be moved or copied as a whole.
    """
    directory = run_directory(settings, run)
    if directory.spec.exists():
        return directory
    directory.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    sums: dict[str, str] = {}
    if run.kind in (RunKind.REWARD, RunKind.DPO):
        assert run.snapshot_id is not None  # the table says so
        sums["preferences.jsonl"] = snapshots.write_preferences(session, run.snapshot_id, directory.preferences)
    if run.kind in (RunKind.PPO, RunKind.DPO):
        sums["prompts.jsonl"] = snapshots.write_prompts(session, run.project_id, directory.prompts)
    sums["demonstrations.jsonl"] = snapshots.write_demonstrations(session, run.project_id, directory.demonstrations)
    spec = RunSpec(
        run_id=str(run.id),
        kind=run.kind,
        seed=run.seed,
        config=run.config,
        policy=_folder(session, settings, run, run.policy_id),
        reward_model=_folder(session, settings, run, run.reward_model_id),
        snapshot_sha256=session.get_one(Snapshot, run.snapshot_id).sha256 if run.snapshot_id else None,
        data_sha256=sums,
    )
    write_file(directory.spec, spec.model_dump_json(indent=1) + "\n")
    return directory


def _folder(session: Session, settings: Settings, run: Run, checkpoint_id: uuid.UUID | None) -> str | None:
    if checkpoint_id is None:
        return None
    folder = checkpoints.checkpoint(session, run.project_id, checkpoint_id).folder_name
    return os.path.relpath(settings.checkpoints_dir / folder, run_directory(settings, run).root)


def start(directory: RunDir, settings: Settings, lock: int) -> subprocess.Popen[bytes]:
    """Start the trainer: niced, in a group of its own, killed when the calling thread ends, holding `lock` as long."""
    for leftover in (directory.cancel, directory.error, directory.progress):
        leftover.unlink(missing_ok=True)
    with directory.log.open("ab") as log:
        return leash.spawn(
            [*TRAINER, str(directory.root)],
            env=without_secrets(settings.training_threads),
            death_signal=signal.SIGKILL,
            nice=NICE,
            output=log,
            keep=(lock,),
        )


class Tail:
    """Reads the rows that were added to a JSONL file since the last look; a line still being written waits.

    A file that became shorter was cut back by a resumed run: it is read again from its start.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def rows(self, limit: int = 2000) -> list[dict[str, Any]]:
        """Up to `limit` new rows, each a flat object; what is not JSON is passed over and said."""
        found: list[dict[str, Any]] = []
        try:
            with self._path.open("rb") as file:
                if os.fstat(file.fileno()).st_size < self._offset:
                    self._offset = 0
                file.seek(self._offset)
                while len(found) < limit and (line := file.readline()).endswith(b"\n"):
                    self._offset += len(line)
                    try:
                        row = json.loads(line)
                    except ValueError:
                        logger.warning("a line of %s is not JSON and was passed over", self._path.name)
                    else:
                        found.append(row)
        except FileNotFoundError:
            pass
        return found

"""One attempt at one run: from the claim to the last word about it in the database.

Every write carries the attempt's number. When the lease is lost, the trainer is killed and nothing more is written: the
run belongs to somebody else.
"""

import errno
import fcntl
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from app.core.errors import PairwrightError
from app.core.folders import DamagedFolder, sync, verify_folder
from app.core.records import Progress, RunDir, RunError, RunResult
from app.core.vocabulary import CheckpointKind, RunKind, RunStatus
from app.jobs import launch, leash
from app.settings import Settings
from app.store import checkpoints, runs
from app.store.models import Project, Run

FINISHED, CANCELLED, FAILED = 0, 3, 4
BEAT_S = 1.0
CANCEL_WITHIN_S = 120.0

DISK = RunError(
    kind="disk",
    message="The disk is full: nothing half-written was kept, and the run waits.",
    mend="Free some space where the data folder is, then resume the run.",
)

logger = logging.getLogger("pairwright.worker")


def _unexpected(error: Exception) -> RunError:
    """A failure that nobody foresaw, by its kind: its words may quote what people wrote."""
    return RunError(
        kind="internal",
        message=f"The worker could not go on with this run: {type(error).__name__}.",
        mend="The worker's log has the details; mend what they name, then resume the run.",
    )


class Heartbeat(threading.Thread):
    """Renews the lease from a thread of its own, so that a slow step of the worker loses nothing.

    `lost` is set, and the trainer killed, as soon as the run belongs to somebody else or may: no renewal for a lease.
    """

    def __init__(self, sessions: sessionmaker[Session], run: Run, directory: RunDir, lease_s: float) -> None:
        super().__init__(name=f"heartbeat-{run.id}", daemon=True)
        self.lost = threading.Event()
        self.closing = False  # the last word is being written: a refused renewal is no surprise
        self.process: subprocess.Popen[bytes] | None = None
        self._ended = threading.Event()
        self._sessions, self._directory, self._lease_s = sessions, directory, lease_s
        self._run_id, self._attempt = run.id, run.attempt

    def run(self) -> None:
        renewed = time.monotonic()
        while not self._ended.wait(min(BEAT_S, self._lease_s / 4)):
            asked = time.monotonic()
            try:
                with self._sessions.begin() as session:
                    ours = runs.heartbeat(session, self._run_id, self._attempt, self._progress())
            except DBAPIError:
                ours = time.monotonic() - renewed < self._lease_s
                logger.warning("the database did not take the heartbeat of run %s", self._run_id)
            else:
                renewed = asked
            if not ours and self.closing:
                return
            if not ours:
                logger.error("run %s is no longer ours: its trainer is killed", self._run_id)
                self.lost.set()
                if self.process is not None:
                    leash.kill(self.process)
                return

    def end(self) -> None:
        """Stop renewing, and wait until no renewal is under way."""
        self._ended.set()
        if self.is_alive():
            self.join()

    def _progress(self) -> Progress | None:
        try:
            return Progress.model_validate_json(self._directory.progress.read_text(encoding="utf-8"))
        except (OSError, ValidationError):
            return None


class Attempt:
    """A claimed run under way. `tick` moves it on; the thread that starts it must live as long as it does."""

    def __init__(self, settings: Settings, sessions: sessionmaker[Session], run: Run) -> None:
        self._settings, self._sessions, self._claimed = settings, sessions, run
        self._dir = launch.run_directory(settings, run)
        self._heartbeat = Heartbeat(sessions, run, self._dir, runs.LEASE_SECONDS)
        self._metrics, self._samples = launch.Tail(self._dir.metrics), launch.Tail(self._dir.samples)
        self._process: subprocess.Popen[bytes] | None = None
        self._cancelled_at: float | None = None
        self._stopping = False
        self._retried = False

    @property
    def run_id(self) -> str:
        return str(self._claimed.id)

    def tick(self) -> bool:
        """Do what is due; True once this attempt is over, well or not."""
        try:
            over = self._lost() or self._step()
        except DBAPIError:
            logger.warning("the database does not answer; run %s goes on meanwhile", self.run_id)
            return False
        except PairwrightError as error:
            over = self._close(RunStatus.FAILED, error=RunError(kind="data", message=error.message, mend=error.mend))
        except Exception as error:
            # Whatever is wrong with one run is that run's failure: the worker goes on with the sampler and the others.
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                over = self._close(RunStatus.PAUSED, error=DISK)
            else:
                logger.exception("run %s failed outside its trainer", self.run_id)
                over = self._close(RunStatus.FAILED, error=_unexpected(error))
        if over:
            self._release()
        return over

    def stop(self, seconds: float) -> None:
        """The worker stops: leave a checkpoint and put the run back into the queue, for the next worker to go on."""
        self._stopping = True
        if self._process is not None:
            leash.end(self._process, seconds)
        deadline = time.monotonic() + 5
        while not self.tick() and time.monotonic() < deadline:
            time.sleep(0.1)
        self._release()

    # ---- steps -------------------------------------------------------------------------------------------------

    def _step(self) -> bool:
        if self._heartbeat.ident is None:
            self._heartbeat.start()
        if self._process is None:
            return self._begin()
        code = self._process.poll()
        # Until the trainer has reported a step it may still cut its logs back to the checkpoint it resumes from.
        if code is not None or self._dir.progress.exists():
            self._read_along()
        if code is None:
            self._pass_on_cancel()
            return False
        return self._lost() or self._ended(code)

    def _begin(self) -> bool:
        """Write the directory and start the trainer, once no other process is in the directory any more."""
        if self._stopping:
            return self._close(RunStatus.QUEUED)
        if self._cancel_wanted():
            return self._close(RunStatus.CANCELLED)
        self._dir.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(self._dir.root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # Held by the trainer alone, as long as it lives: one that outlived its worker is waited for.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with self._sessions.begin() as session:
                launch.write_directory(session, self._settings, self._claimed)
            self._process = self._heartbeat.process = launch.start(self._dir, self._settings, lock)
        except BlockingIOError:
            return False
        finally:
            os.close(lock)
        logger.info("run %s (%s): attempt %d started", self.run_id, self._claimed.kind, self._claimed.attempt)
        return False

    def _read_along(self) -> None:
        while metrics := self._metrics.rows():
            with self._sessions.begin() as session:
                runs.append_metrics(session, self._claimed.id, self._claimed.attempt, metrics)
        while samples := self._samples.rows():
            with self._sessions.begin() as session:
                runs.append_samples(session, self._claimed.id, self._claimed.attempt, samples)

    def _pass_on_cancel(self) -> None:
        if self._cancelled_at is None:
            if self._cancel_wanted():
                self._dir.cancel.touch()
                self._cancelled_at = time.monotonic()
        elif time.monotonic() - self._cancelled_at > CANCEL_WITHIN_S and self._process is not None:
            leash.kill(self._process)

    def _cancel_wanted(self) -> bool:
        with self._sessions.begin() as session:
            return runs.cancel_requested(session, self._claimed.id)

    def _ended(self, code: int) -> bool:
        logger.info("run %s: the trainer ended with code %d", self.run_id, code)
        if code == FINISHED:
            return self._finish()
        if self._cancelled_at is not None:
            return self._close(RunStatus.CANCELLED)
        if self._stopping:
            return self._close(RunStatus.QUEUED)
        if code == CANCELLED:
            return self._close(RunStatus.CANCELLED)
        error = self._error(code)
        if error.kind == "memory" and not self._retried:
            logger.warning("run %s ran out of memory; it goes on once more from its newest checkpoint", self.run_id)
            self._retried, self._process = True, None
            return False
        return self._close(RunStatus.PAUSED if error.kind == "disk" else RunStatus.FAILED, error=error)

    def _error(self, code: int) -> RunError:
        if code == -signal.SIGKILL:
            return RunError(
                kind="memory",
                message="The training process was killed by signal 9, most likely for want of memory.",
                mend="Use a smaller batch or a machine with more memory, then resume from the newest checkpoint.",
            )
        if code < 0:
            return RunError(
                kind="internal",
                message=f"The training process died of signal {-code}.",
                mend="log.txt in the run's directory has what it printed; the run can be resumed.",
            )
        try:
            return RunError.model_validate_json(self._dir.error.read_text(encoding="utf-8"))
        except (OSError, ValidationError):
            return RunError(
                kind="internal",
                message=f"The training process ended with code {code} and left no reason.",
                mend="log.txt in the run's directory has what it printed; the run can be resumed.",
            )

    def _finish(self) -> bool:
        """Make the result a checkpoint: the folder first, then one transaction that names it and closes the run.

        The folder's name is the run's id. Whatever is killed in between, the next attempt finds the folder and goes on.
        """
        result = RunResult.model_validate_json(self._dir.result.read_text(encoding="utf-8"))
        target = self._settings.checkpoints_dir / self.run_id
        try:
            files = verify_folder(self._dir.final if self._dir.final.exists() else target)
        except DamagedFolder as error:
            mend = "Start the run again: what it made cannot be used."
            return self._close(
                RunStatus.FAILED, error=RunError(kind="checkpoint", message=f"Damaged result: {error}", mend=mend)
            )
        if self._dir.final.exists():
            self._dir.final.rename(target)
            sync(target.parent)
        return self._close(RunStatus.FINISHED, metrics=result.metrics, files=files)

    def _close(
        self,
        status: RunStatus,
        metrics: Mapping[str, Any] | None = None,
        error: RunError | None = None,
        files: Mapping[str, str] | None = None,
    ) -> bool:
        """The last word, in one transaction; nothing of it happens when the run is not ours any more."""
        self._heartbeat.closing = True
        run = self._claimed
        with self._sessions() as session:
            if files is not None:
                self._register(session, run, dict(files), dict(metrics or {}))
            if status == RunStatus.QUEUED:
                held = runs.release(session, run.id, run.attempt)
            else:
                held = runs.finish(session, run.id, run.attempt, status, metrics, error)
            if held:
                session.commit()
            else:
                session.rollback()
                logger.error("run %s was taken over: this attempt's end is dropped", self.run_id)
                return True
        logger.info("run %s: %s", self.run_id, status)
        return True

    def _register(self, session: Session, run: Run, files: dict[str, str], metrics: dict[str, Any]) -> None:
        """Name the checkpoint; a project's first policy becomes the current one without being asked."""
        kind = CheckpointKind.REWARD_MODEL if run.kind == RunKind.REWARD else CheckpointKind.POLICY
        made = checkpoints.register(
            session, run.project_id, kind, run.id, run.policy_id, self.run_id, files, metrics, checkpoint_id=run.id
        )
        if kind == CheckpointKind.POLICY and session.get_one(Project, run.project_id).current_policy_id is None:
            checkpoints.promote(session, run.project_id, made.id, by=None)

    def _lost(self) -> bool:
        return self._heartbeat.lost.is_set()

    def _release(self) -> None:
        self._heartbeat.end()
        if self._process is not None:
            leash.kill(self._process)
            self._process = None

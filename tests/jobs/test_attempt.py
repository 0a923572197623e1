import errno
import os
import time

import pytest
from sqlalchemy import text

from app.core.folders import verify_folder
from app.core.records import RunDir, RunSpec
from app.core.vocabulary import RunStatus
from app.jobs import launch
from app.store import checkpoints, runs


def directory(work, run) -> RunDir:
    return launch.run_directory(work.settings, run)


def test_a_finished_run_becomes_the_first_policy_and_is_promoted(work, trainer):
    trainer("log(1, loss=2.0); progress(1, 3); log(2, loss=1.5); finish(heldout_nll=1.25)")
    run = work.queue(seed=7)
    work.through(work.claim())
    seen = work.see(run)
    assert (seen.status, seen.metrics) == (RunStatus.FINISHED, {"heldout_nll": 1.25})
    assert work.steps(run) == [1, 2]
    with work.sessions() as s:
        [policy] = checkpoints.policies(s, work.project.id)
        assert (policy.name, policy.folder_name, policy.id) == ("v1", str(run.id), run.id)
        [moved] = checkpoints.history(s, work.project.id)
        assert moved.checkpoint_id == policy.id
    folder = work.settings.checkpoints_dir / policy.folder_name
    assert verify_folder(folder) == policy.files
    assert not directory(work, run).final.exists()


def test_the_directory_holds_all_that_training_sees_and_nothing_else(work, trainer):
    trainer(
        "(d.root / 'seen').write_text(json.dumps(dict(os.environ)) + str(sys.argv[1:]) + str(os.nice(0))); finish()"
    )
    os.environ["PAIRWRIGHT_CANARY"] = "canary"
    try:
        run = work.queue(seed=7)
        work.through(work.claim())
    finally:
        del os.environ["PAIRWRIGHT_CANARY"]
    spec = RunSpec.model_validate_json(directory(work, run).spec.read_text())
    assert (spec.run_id, spec.kind, spec.seed, spec.policy) == (str(run.id), "sft", 7, None)
    assert list(spec.data_sha256) == ["demonstrations.jsonl"]
    seen = (directory(work, run).root / "seen").read_text()
    assert "canary" not in seen
    assert "postgresql" not in seen
    assert seen.endswith(f"['{directory(work, run).root}']{os.nice(0) + launch.NICE}")


def test_a_failure_is_told_in_the_trainers_own_words(work, trainer):
    trainer("fail('diverged', 'loss became nan at step 12.', 'Lower the learning rate.')")
    run = work.queue()
    work.through(work.claim())
    seen = work.see(run)
    assert seen.status == RunStatus.FAILED
    expected = {"kind": "diverged", "message": "loss became nan at step 12.", "mend": "Lower the learning rate."}
    assert seen.error == expected


def test_a_trainer_that_ends_without_a_word_is_told_so(work, trainer):
    trainer("sys.exit(1)")
    run = work.queue()
    work.through(work.claim())
    assert work.see(run).error["kind"] == "internal"
    assert "code 1" in work.see(run).error["message"]


def test_a_result_that_cannot_be_read_fails_the_run_and_not_the_worker(work, trainer):
    trainer("d.result.write_text('no json')")  # and ends with 0, as if all were well
    run = work.queue()
    work.through(work.claim())
    assert work.see(run).status == RunStatus.FAILED
    assert "ValidationError" in work.see(run).error["message"]


def test_a_crash_is_not_taken_for_want_of_memory(work, trainer):
    trainer("os.kill(os.getpid(), signal.SIGSEGV)")
    run = work.queue()
    work.through(work.claim())
    assert (work.see(run).error["kind"], "signal 11" in work.see(run).error["message"]) == ("internal", True)


def test_a_full_disk_pauses_the_run_and_resuming_goes_on(work, trainer):
    trainer("fail('disk', 'The disk is full.') if times() == 1 else finish()")
    run = work.queue()
    work.through(work.claim())
    assert work.see(run).status == RunStatus.PAUSED
    assert work.see(run).error["message"] == "The disk is full."
    with work.sessions.begin() as s:
        runs.resume(s, work.project.id, run.id, None)
    work.through(work.claim())
    assert work.see(run).status == RunStatus.FINISHED


def test_a_disk_too_full_for_the_run_directory_pauses_the_run_as_well(work, trainer, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    trainer("finish()")
    run = work.queue()
    with monkeypatch.context() as filling:
        filling.setattr(launch, "write_directory", full)
        work.through(work.claim())
    assert work.see(run).status == RunStatus.PAUSED
    assert "disk is full" in work.see(run).error["message"]
    with work.sessions.begin() as s:
        runs.resume(s, work.project.id, run.id, None)
    work.through(work.claim())
    assert work.see(run).status == RunStatus.FINISHED


def test_a_trainer_killed_for_memory_goes_on_once_and_then_is_named(work, trainer):
    trainer("times() == 1 and os.kill(os.getpid(), signal.SIGKILL); finish()")
    first = work.queue()
    work.through(work.claim())
    assert work.see(first).status == RunStatus.FINISHED

    trainer("times(); os.kill(os.getpid(), signal.SIGKILL)")
    second = work.queue()
    work.through(work.claim())
    assert work.see(second).status == RunStatus.FAILED
    assert work.see(second).error["kind"] == "memory"
    assert "signal 9" in work.see(second).error["message"]
    assert len(list(directory(work, second).root.glob("started-*"))) == 2


def test_cancelling_leaves_a_checkpoint_and_resuming_goes_on_from_it(work, trainer):
    trainer(
        """
if times() > 1: finish()
progress(1, 100)
while not d.cancel.exists(): time.sleep(0.02)
(d.root / "kept").touch(); sys.exit(3)
"""
    )
    run = work.queue()
    attempt = work.claim()
    work.ticking(attempt, lambda: work.see(run).step == 1)
    with work.sessions.begin() as s:
        runs.request_cancel(s, work.project.id, run.id, None)
    work.through(attempt)
    assert work.see(run).status == RunStatus.CANCELLED
    assert (directory(work, run).root / "kept").exists()
    with work.sessions.begin() as s:
        runs.resume(s, work.project.id, run.id, None)
    work.through(work.claim())
    assert work.see(run).status == RunStatus.FINISHED


def test_a_worker_that_stops_leaves_a_checkpoint_and_puts_the_run_back(work, trainer):
    trainer(
        """
if times() > 1: finish()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3)); progress(1, 100)
time.sleep(60)
"""
    )
    run = work.queue()
    attempt = work.claim()
    work.ticking(attempt, directory(work, run).progress.exists)
    attempt.stop(seconds=10)
    assert work.see(run).status == RunStatus.QUEUED
    work.through(work.claim())
    assert (work.see(run).status, work.see(run).attempt) == (RunStatus.FINISHED, 2)


def take_over(work, run) -> None:
    """The lease of a run runs out, as if its worker had been silent for long."""
    with work.sessions.begin() as s:
        s.execute(text("UPDATE run SET lease_expires_at = now() - interval '1 second' WHERE id = :id"), {"id": run.id})


def test_a_worker_back_from_the_dead_kills_its_trainer_and_writes_nothing(work, trainer):
    trainer("n = times(); log(n, loss=float(n)); progress(n, 2); time.sleep(60) if n == 1 else finish(attempt=n)")
    run = work.queue()
    zombie = work.claim("one")
    work.ticking(zombie, lambda: work.steps(run) == [1])
    pid = zombie._process.pid
    zombie._heartbeat._ended.set()  # frozen: no renewal
    take_over(work, run)
    second = work.claim("two")
    assert not second.tick(), "the second waits while the first trainer is in the directory"
    assert second._process is None
    zombie._heartbeat.lost.set()
    assert zombie.tick()
    assert not os.path.exists(f"/proc/{pid}") or zombie._process is None  # noqa: PTH110
    work.through(second)
    seen = work.see(run)
    assert (seen.status, seen.attempt, seen.metrics) == (RunStatus.FINISHED, 2, {"attempt": 2})


def test_the_heartbeat_itself_notices_a_lost_lease_and_kills_the_trainer(work, trainer):
    trainer("progress(1, 2); time.sleep(60)")
    run = work.queue()
    first = work.claim("one")
    work.ticking(first, lambda: work.see(run).step == 1)
    with work.sessions.begin() as s:
        s.execute(text("UPDATE run SET attempt = attempt + 1 WHERE id = :id"), {"id": run.id})
    started = time.monotonic()
    work.through(first, seconds=10)
    assert time.monotonic() - started < 5
    assert work.see(run).status == RunStatus.RUNNING, "it belongs to the other one"


class Killed(BaseException):
    """kill -9, as far as this process's code can tell."""


def test_a_worker_killed_between_the_folder_and_the_database_repeats_only_the_last_step(work, trainer, monkeypatch):
    trainer("times(); finish(loss=1.0)")
    run = work.queue()
    first = work.claim("one")
    with monkeypatch.context() as killing:
        killing.setattr(runs, "finish", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            work.through(first)
    first._heartbeat.end()
    with work.sessions() as s:
        assert checkpoints.policies(s, work.project.id) == []
    assert (work.settings.checkpoints_dir / str(run.id)).is_dir()
    trainer("sys.exit(0)")  # what the real one does in a finished directory
    take_over(work, run)
    work.through(work.claim("two"))
    assert (work.see(run).status, work.see(run).metrics) == (RunStatus.FINISHED, {"loss": 1.0})
    with work.sessions() as s:
        assert [policy.folder_name for policy in checkpoints.policies(s, work.project.id)] == [str(run.id)]


def test_a_damaged_result_is_refused_and_never_registered(work, trainer):
    trainer(
        """
write_folder(d.final, lambda folder: (folder / "model.safetensors").write_bytes(b"weights"))
(d.final / "model.safetensors").write_bytes(b"weightz")
d.result.write_text(json.dumps({"status": "finished", "step": 1, "metrics": {}}))
"""
    )
    run = work.queue()
    work.through(work.claim())
    assert work.see(run).status == RunStatus.FAILED
    assert work.see(run).error["kind"] == "checkpoint"
    with work.sessions() as s:
        assert checkpoints.policies(s, work.project.id) == []


def test_logs_cut_back_by_a_resumed_run_are_read_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tail = launch.Tail(path)
    assert tail.rows() == []
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert tail.rows() == [{"step": 1}, {"step": 2}]
    assert tail.rows() == []
    path.write_text('{"step": 1}\n')
    assert tail.rows() == [{"step": 1}]


def test_the_database_away_for_a_moment_does_not_end_a_run(work, trainer):
    trainer("progress(1, 2); log(1, loss=1.0); time.sleep(1.5); finish()")
    run = work.queue()
    attempt = work.claim()
    work.ticking(attempt, directory(work, run).progress.exists)
    with work.sessions() as s:
        others = "datname = current_database() AND pid <> pg_backend_pid()"
        s.execute(text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}"))
    work.through(attempt)
    assert work.see(run).status == RunStatus.FINISHED

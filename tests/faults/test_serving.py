"""What `serve` survives, what it leaves behind, and how it stops."""

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from app.core.folders import sha256_of
from app.core.records import RunDir
from app.jobs.environment import without_secrets
from tests.installation import ROOT, Installation, until

# Whole products in real processes: generous where other work shares the cores.
pytestmark = pytest.mark.timeout(900)


def finished(installation: Installation) -> bool:
    return installation.ask("SELECT 1 FROM run WHERE status = 'finished'") != []


def ready(installation: Installation) -> int:
    rows = installation.ask("SELECT count(*) FROM comparison WHERE state = 'open'")
    return int(rows[0][0])


def gone(process: psutil.Process, within: float = 15) -> bool:
    return until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, within)


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Iterator[Installation]:
    """An installation after its first start: the policy is made, the pool has filled; stopped by Ctrl-C."""
    made = Installation(tmp_path_factory.mktemp("first") / "home").start()
    until(lambda: finished(made), 300, "the starter is trained")
    until(lambda: ready(made) >= 1, 120, "pairs are ready")
    made.children = psutil.Process(made.process.pid).children(recursive=True)
    made.code = made.stop(signal.SIGINT)
    yield made
    made.end()


@pytest.fixture
def prepared(first: Installation, tmp_path) -> Iterator[Installation]:
    """A copy of it, running."""
    home = tmp_path / "home"
    shutil.copytree(first.home, home, ignore=shutil.ignore_patterns("*.sock", ".s.PGSQL*", "socket*", "*.lock"))
    made = Installation(home).start()
    yield made
    made.end()


def test_a_ctrl_c_leaves_nothing_running_and_secrets_are_for_their_owner(first: Installation):
    assert first.code == 0
    assert len(first.children) >= 3
    assert all(gone(child) for child in first.children)
    assert "Traceback" not in first.said()
    for made in ("secret", "postgres/password"):
        assert stat.S_IMODE((first.home / made).stat().st_mode) == 0o600
    assert re.fullmatch(rf"{first.url}/setup/[\w-]{{32,}}", first.owner_link())


def test_a_later_start_has_its_pairs_at_once_and_trains_nothing_again(prepared: Installation):
    until(lambda: ready(prepared) >= 1, 10)
    assert prepared.get("/readyz") == 200
    assert prepared.ask("SELECT name, kind FROM checkpoint") == [("v1", "policy")]
    assert prepared.ask("SELECT count(*) FROM run") == [(1,)]


def test_logs_hold_neither_texts_nor_secrets(prepared: Installation):
    password = (prepared.home / "postgres" / "password").read_text().strip()
    secret = (prepared.home / "secret").read_text().strip()
    texts = [row[0] for row in prepared.ask("SELECT text FROM completion WHERE length(text) > 12 LIMIT 500")]
    texts += [row[0] for row in prepared.ask("SELECT messages->0->>'content' FROM prompt LIMIT 500")]
    prepared.stop()
    said = prepared.said()
    assert len(texts) > 300
    assert [text for text in [*texts, password, secret] if text in said] == []


def test_a_killed_web_process_is_back_while_connections_wait(prepared: Installation):
    for _ in range(2):
        [web] = prepared.processes("web")
        web.kill()
        # The socket is the supervisor's: nobody is refused, the answer only takes longer.
        assert prepared.get("/livez") == 200
    assert prepared.processes("web") != [web]


def test_several_web_processes_share_the_port_and_one_that_dies_is_not_missed(prepared: Installation):
    prepared.stop(signal.SIGINT)
    prepared.environment["PAIRWRIGHT_WEB_PROCESSES"] = "2"
    prepared.start()
    one, other = until(lambda: two if len(two := prepared.processes("web")) == 2 else None, 30)
    one.kill()
    assert all(prepared.get("/readyz") == 200 for _ in range(5))
    until(lambda: len(prepared.processes("web")) == 2, 30)
    assert other.is_running()
    assert prepared.stop(signal.SIGINT) == 0
    assert gone(other)


def test_a_killed_sampler_and_a_stale_socket_do_not_stop_the_pool(prepared: Installation):
    until((prepared.home / "sampler.sock").exists, 90, "the sampler listens")
    [sampler] = until(lambda: prepared.processes("app.policy.server"), 60, "the sampler runs")
    sampler.kill()
    gone(sampler)
    assert (prepared.home / "sampler.sock").exists(), "its socket is left behind"
    before = ready(prepared)
    prepared.ask("UPDATE project SET pool_target = pool_target + 4")
    until(lambda: ready(prepared) > before, 120, "the pool fills again")


@pytest.mark.parametrize("moment", ["while the worker starts", "at work"])
def test_a_killed_database_is_back_with_all_that_was_there(prepared: Installation, moment: str):
    if moment == "at work":
        until((prepared.home / "sampler.sock").exists, 90, "the sampler listens")
    before = ready(prepared)
    pid_file = prepared.home / "postgres" / "data" / "postmaster.pid"
    postmaster = pid_file.read_text().split()[0]
    os.kill(int(postmaster), signal.SIGKILL)
    until(lambda: pid_file.exists() and pid_file.read_text().split()[:1] not in ([], [postmaster]), 60, "a new server")
    until(lambda: prepared.get("/readyz") == 200, 60, "the database is back")
    assert ready(prepared) >= before
    assert prepared.process.poll() is None
    until(lambda: prepared.processes("worker"), 60, "a worker is at work")


def test_a_killed_supervisor_takes_everything_of_ours_with_it_and_the_next_start_recovers(prepared: Installation):
    words = ("web", "worker", "app.policy.server")
    children = [until(lambda word=word: prepared.processes(word), 60, f"{word} runs")[0] for word in words]
    prepared.process.kill()
    prepared.process.wait()
    assert all(gone(child) for child in children)
    prepared.start()
    until(lambda: ready(prepared) >= 1, 30)


def test_a_worker_killed_while_it_trains_takes_the_trainer_along_and_the_run_is_finished_by_the_next(
    installation, tmp_path
):
    installation.start()
    [trainer] = until(lambda: installation.processes("app.training"), 60, "training begins")
    until(lambda: installation.ask("SELECT 1 FROM run WHERE step >= 25"), 240)
    [worker] = [p for p in installation.processes("worker") if "app.training" not in p.cmdline()]
    worker.kill()
    gone(trainer)
    until(lambda: finished(installation), 300, "the next worker finishes the run")
    assert installation.ask("SELECT attempt > 1, status FROM run") == [(True, "finished")]
    logged = "SELECT count(*), count(DISTINCT step), max(step) FROM run_metric WHERE phase = 'train'"
    [(rows, steps, last)] = installation.ask(logged)
    assert rows == steps > 0
    assert last == 100

    # The same run from its directory alone, never interrupted: the same weights.
    [(run_id,)] = installation.ask("SELECT id::text FROM run")
    again = RunDir(tmp_path / "again")
    shutil.copytree(installation.home / "runs" / run_id / "data", again.data)
    shutil.copy(installation.home / "runs" / run_id / "spec.json", again.spec)
    subprocess.run(
        [sys.executable, "-m", "app.training", str(again.root)],
        cwd=ROOT,
        env=without_secrets(0),
        check=True,
        timeout=200,
    )
    made = installation.home / "checkpoints" / run_id
    assert sha256_of(made / "model.safetensors") == sha256_of(again.final / "model.safetensors")


def test_a_model_that_cannot_serve_is_one_clear_line_and_everything_stops(installation: Installation, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(b"")
    installation.start("--policy", str(folder))
    assert installation.process.wait(180) == 1
    errors = [line for line in installation.said().splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "has no tokenizer" in errors[0]
    assert "Traceback" not in installation.said()

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from app.jobs import leash
from app.jobs.environment import of_our_own, without_secrets

ROOT = Path(__file__).parents[2]

PARENT = """
import signal, sys, time
from app.jobs import leash
from app.jobs.environment import of_our_own
child = leash.spawn(["-c", "import time; time.sleep(60)"], env=of_our_own(), death_signal=signal.SIGKILL)
print(child.pid, flush=True)
time.sleep(60)
"""


def gone(pid: int, within: float) -> bool:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_child_ends_with_its_parent_even_after_kill_9():
    with subprocess.Popen([sys.executable, "-c", PARENT], cwd=ROOT, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        time.sleep(0.5)  # the leash is on once the child has become its command
        os.kill(pid, 0)
        parent.kill()
        assert gone(pid, within=5)


def test_a_leashed_command_runs_niced_in_a_group_of_its_own(tmp_path):
    out = tmp_path / "out"
    with out.open("wb") as file:
        child = leash.spawn(
            ["-c", "import os; print(os.nice(0), os.getpgid(0) == os.getpid())"],
            env=of_our_own(),
            death_signal=signal.SIGKILL,
            nice=10,
            output=file,
        )
    assert child.wait(20) == 0
    assert out.read_text().split() == [str(os.nice(0) + 10), "True"]


def test_a_child_that_will_not_stop_is_killed():
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    child = leash.spawn(["-c", stubborn], env=of_our_own(), death_signal=signal.SIGKILL)
    time.sleep(0.7)
    assert leash.end(child, seconds=0.3) == -signal.SIGKILL


def test_training_and_sampling_know_no_secret():
    ours = {
        "PATH": "/bin",
        "HOME": "/root",
        "PAIRWRIGHT_DATABASE_URL": "postgresql://u:canary@h/d",
        "PAIRWRIGHT_SECRET_KEY": "canary",
        "HF_TOKEN": "canary",
        "AWS_SECRET_ACCESS_KEY": "canary",
        "PGPASSWORD": "canary",
        "CUDA_VISIBLE_DEVICES": "0",
        "LC_ALL": "C.UTF-8",
    }
    seen = without_secrets(threads=2, source=ours)
    assert "canary" not in str(seen)
    assert seen["PATH"] == "/bin"
    assert seen["CUDA_VISIBLE_DEVICES"] == "0"
    assert seen["OMP_NUM_THREADS"] == "2"
    assert seen["PYTHONPATH"] == str(ROOT)
    assert not any(name.startswith("PAIRWRIGHT_") for name in seen)

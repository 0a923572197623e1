"""`python -m app.jobs.leash --parent PID [--signal N] [--nice N] -- COMMAND...`: become COMMAND, and end when PID ends.

The kernel sends the signal when the thread that started this process is gone, even after `kill -9`; the wish outlives
`exec`. It is asked for here, in a process of its own, because nothing but `exec` is safe between `fork` and `exec` in a
parent with threads. Where there is no prctl (not Linux) the command runs without a leash.
"""

import argparse
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

PR_SET_PDEATHSIG = 1


def spawn(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    death_signal: signal.Signals,
    nice: int = 0,
    output: IO[bytes] | int | None = None,
    own_group: bool = True,
    cwd: Path | None = None,
    keep: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a Python command (its arguments after the interpreter) on a leash held by the calling thread.

    `output` takes stdout and stderr; None shares ours. `keep` are file descriptors that the child inherits.
    """
    leash = [sys.executable, "-m", "app.jobs.leash", "--parent", str(os.getpid()), "--signal", str(int(death_signal))]
    leash += ["--nice", str(nice), "--", sys.executable, *command]
    return subprocess.Popen(  # noqa: S603 - a fixed program; the arguments come from us
        leash,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output if output is None else subprocess.STDOUT,
        process_group=0 if own_group else None,
        cwd=cwd,
        pass_fds=tuple(keep),
    )


def end(process: subprocess.Popen[bytes], seconds: float) -> int:
    """Ask a process that `spawn` started to stop; kill its whole group when it has not within `seconds`."""
    if process.poll() is None:
        process.terminate()
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            pass
    return kill(process)


def kill(process: subprocess.Popen[bytes]) -> int:
    """Kill a process that `spawn` started, with all that it started itself."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def main() -> None:
    """Put the leash on and become the command."""
    parser = argparse.ArgumentParser(description="Run a command that ends with its parent.")
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--signal", type=int, default=int(signal.SIGTERM))
    parser.add_argument("--nice", type=int, default=0)
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, arguments.signal, 0, 0, 0)
        if os.getppid() != arguments.parent:
            sys.exit(1)  # the parent ended before the leash was on
    if arguments.nice:
        os.nice(arguments.nice)
    os.execvp(arguments.command[0], arguments.command)  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main()

"""How a run ends other than well, and how any exception becomes words for the operator."""

import errno
from typing import Literal

import torch
from pydantic import ValidationError
from safetensors import SafetensorError

from app.core.errors import PairwrightError
from app.core.folders import DamagedFolder
from app.core.records import RunError

Kind = Literal["data", "config", "memory", "disk", "checkpoint", "diverged", "internal"]

DISK_MEND = "Free some space on the run directory's disk, then resume: the newest whole checkpoint is untouched."
MEMORY_MEND = "Use a smaller micro-batch or shorter completions, or a machine with more memory, then resume."


class RunFailure(Exception):
    """The run cannot go on: what happened, and what mends it."""

    def __init__(self, kind: Kind, message: str, mend: str) -> None:
        super().__init__(message)
        self.error = RunError(kind=kind, message=message, mend=mend)


class Cancelled(Exception):
    """The operator asked for a stop; the state at `step` is on disk."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped at step {step}")
        self.step = step


def explain(error: BaseException) -> RunError:
    """Name what happened. What is not recognised is `internal` and carries the exception's own text."""
    if isinstance(error, RunFailure):
        return error.error
    if isinstance(error, DamagedFolder):
        return RunError(kind="checkpoint", message=str(error), mend="Restore the folder from a backup or make it anew.")
    if isinstance(error, PairwrightError):
        return RunError(kind="config", message=error.message, mend=error.mend or "Correct the run's inputs.")
    if isinstance(error, ValidationError):
        return RunError(kind="config", message=problems(error), mend="Correct these settings and start the run again.")
    if is_disk_full(error):
        return RunError(kind="disk", message="The disk is full: nothing half-written was kept.", mend=DISK_MEND)
    if _is_out_of_memory(error):
        return RunError(kind="memory", message=f"Out of memory: {_first_line(error)}", mend=MEMORY_MEND)
    message = f"{type(error).__name__}: {_first_line(error)}"
    return RunError(kind="internal", message=message, mend="The traceback is in log.txt; the run can be resumed.")


def is_disk_full(error: BaseException) -> bool:
    """Whether an exception, of Python's own or of safetensors' writer, says that the disk or the quota is full."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, SafetensorError) and ("No space left" in str(error) or "quota" in str(error).lower())


def problems(error: ValidationError) -> str:
    """pydantic's complaints in one line: `field: complaint; field: complaint`."""
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'value'}: {e['msg']}" for e in error.errors(include_url=False))


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    # torch's CPU allocator raises a plain RuntimeError.
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or "no message").splitlines()[0]

"""What a run ran on: environment.json, an entry for each start. No host name, no path, no environment variable."""

import json
import logging
import os
import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from pydantic import ValidationError

from app.core.folders import write_file
from app.core.records import Attempt, RunDir

PACKAGES = ("pairwright", "torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "numpy")
logger = logging.getLogger("pairwright.training")


def record_attempt(directory: RunDir, seed: int, device: torch.device, processes: int = 1) -> None:
    """Add this start to environment.json. Where that cannot be, the log says so and the run goes on."""
    entries = [*attempts(directory), this_attempt(seed, device, processes)]
    try:
        text = json.dumps([entry.model_dump() for entry in entries], indent=1, ensure_ascii=False)
        write_file(directory.environment, text + "\n")
    except OSError as error:
        logger.warning("environment.json could not be written: %s", error)


def attempts(directory: RunDir) -> list[Attempt]:
    """The starts so far, oldest first; none where the file is missing or cannot be read."""
    try:
        return [Attempt.model_validate(entry) for entry in json.loads(directory.environment.read_text("utf-8"))]
    except (OSError, ValueError, TypeError, ValidationError):
        return []


def this_attempt(seed: int, device: torch.device, processes: int = 1) -> Attempt:
    """What this process runs on."""
    return Attempt(
        time=time.time(),
        seed=seed,
        git_commit=_commit(Path(__file__).parents[2]),
        python=platform.python_version(),
        packages={name: _version(name) for name in PACKAGES},
        system=platform.system(),
        release=platform.release(),
        machine=platform.machine(),
        cpus=os.cpu_count(),
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        threads=torch.get_num_threads(),
        processes=processes,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        cuda=torch.version.cuda,
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit(root: Path) -> str | None:
    """The commit of a checkout; None for an installed package, and where git is missing or does not say."""
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(root), "rev-parse", "HEAD"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None

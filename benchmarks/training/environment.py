"""Where TRL comes from: the newest from the project's own environment, its last PPO from a small one made for it.

TRL dropped its PPO trainer after 1.12.0 (1.13.0, 1.14.0, 1.14.2 and 1.15.0 hold none). That release alone is installed
into an environment in build/ that takes everything else, torch and transformers too, from the project's.
"""

import subprocess
import sys
import sysconfig
import tempfile
import venv
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from app.jobs.environment import without_secrets
from benchmarks.report import ROOT
from benchmarks.training.scenes import BUILD, THREADS

PPO = "1.12.0"
PPO_HASH = "sha256:9c8f117b21a941edbc85744f5a341c9453d38e81f24ae81d3c6e9b9ca3b96409"
FOLDER = ROOT / "build" / f"trl-{PPO}"


class Missing(Exception):
    """A side cannot run here; the message says why."""


def newest() -> str:
    """The TRL of the project's environment."""
    try:
        return version("trl")
    except PackageNotFoundError as error:
        raise Missing("TRL is not installed: `make test` installs it") from error


def python_for(task: str) -> tuple[str, str]:
    """The Python that has the TRL of a task, and the version of that TRL."""
    if task != "ppo":
        return sys.executable, newest()
    python = FOLDER / "bin" / "python"
    if not (FOLDER / "whole").exists():
        _make(python)
    return str(python), PPO


def _make(python: Path) -> None:
    venv.create(FOLDER, clear=True, symlinks=True, with_pip=False)
    ours = sysconfig.get_paths()["purelib"]
    theirs = Path(sysconfig.get_paths(vars={"base": str(FOLDER), "platbase": str(FOLDER)})["purelib"])
    # Read after what is installed here: only TRL is another one.
    (theirs / "project.pth").write_text(ours + "\n", encoding="utf-8")
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as wanted:
        wanted.write(f"trl=={PPO} --hash={PPO_HASH}\n")
        wanted.flush()
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--require-hashes"]
        done = subprocess.run([*pip, "-q", "-r", wanted.name], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Missing(f"TRL {PPO}, the last with PPO, could not be installed: {done.stderr.strip()[-300:]}")
    (FOLDER / "whole").touch()


def variables(spin: str) -> dict[str, str]:
    """The environment of a contestant; `spin` is how waiting threads wait: `ours` as the product does, or `default`."""
    kept = without_secrets(THREADS)
    if spin == "default":
        del kept["OMP_WAIT_POLICY"], kept["GOMP_SPINCOUNT"]
    kept |= {
        "HF_HOME": str(BUILD / "cache"),
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "PYTHONWARNINGS": "ignore",
    }
    return kept | {"PAIRWRIGHT_BENCH_THREADS": str(THREADS)}

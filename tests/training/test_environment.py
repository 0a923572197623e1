"""environment.json: what each start of a run ran on, and nothing that should not be there."""

import getpass
import json
import logging
import platform
import socket
import subprocess
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from app.core.records import Attempt, RunDir
from app.training import __main__ as entry
from app.training import environment
from app.training.environment import attempts, record_attempt, this_attempt
from app.training.run import Run

Make = Callable[..., Path]
CPU = torch.device("cpu")


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], int]:
    """Starts a run whose loop ends at once, through the command's own main."""
    monkeypatch.setattr(entry, "_stop_on_signals", lambda run: None)
    monkeypatch.setattr(entry, "_log_to", lambda root: None)

    def loop(run: Run[Any]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(entry, "_trainer", lambda kind: loop)
    threads = torch.get_num_threads()
    yield lambda root: entry.main([str(root)])
    torch.set_num_threads(threads)


def test_each_start_is_an_entry_with_what_it_ran_on(make_run: Make, start: Callable[[Path], int]) -> None:
    root = make_run(seed=41, config={"threads": 1})
    assert start(root) == start(root) == 4
    entries = json.loads((root / "environment.json").read_text())
    assert len(entries) == 2
    first, second = entries
    assert first["time"] < second["time"]
    assert {k: first[k] for k in ("seed", "threads", "python", "device", "processes")} == {
        "seed": 41,
        "threads": 1,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu",
        "processes": 1,
    }
    for name in ("torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors"):
        assert first["packages"][name] == version(name)
    assert set(first["packages"]) >= {"pairwright"}
    assert first["machine"] == platform.machine()


def test_the_commit_is_git_s_or_null(tmp_path: Path) -> None:
    assert environment._commit(tmp_path) is None
    (tmp_path / ".git").write_text("no repository")
    assert environment._commit(tmp_path) is None
    (tmp_path / ".git").unlink()
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    assert environment._commit(tmp_path) is None
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    commit = environment._commit(tmp_path)
    assert commit is not None
    assert subprocess.run([*git, "cat-file", "-t", commit], check=True, capture_output=True).stdout == b"commit\n"


def test_without_git_nothing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment._commit(tmp_path) is None
    monkeypatch.setattr(environment, "PACKAGES", ("no-such-package",))
    assert this_attempt(1, CPU).packages == {"no-such-package": None}


def test_no_secret_no_host_and_no_path_is_written(
    make_run: Make, monkeypatch: pytest.MonkeyPatch, start: Callable[[Path], int]
) -> None:
    monkeypatch.setenv("PAIRWRIGHT_SECRET_KEY", "hush-hush-4711")
    root = make_run()
    start(root)
    text = (root / "environment.json").read_text()
    for private in ("hush-hush-4711", f'"{socket.gethostname()}"', f'"{getpass.getuser()}"', "/"):
        assert private not in text
    assert set(json.loads(text)[0]) == set(Attempt.model_fields)


@pytest.mark.parametrize("damage", ['[{"time": 1', '{"a": 1}', "7", '[{"time": 1}]'])
def test_a_file_that_cannot_be_read_is_begun_anew(tmp_path: Path, damage: str) -> None:
    directory = RunDir(tmp_path)
    directory.environment.write_text(damage)
    record_attempt(directory, seed=5, device=CPU)
    [only] = attempts(directory)
    assert only.seed == 5


def test_a_full_disk_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(environment, "write_file", full)
    with caplog.at_level(logging.WARNING):
        record_attempt(RunDir(tmp_path), seed=5, device=CPU)
    assert "No space left" in caplog.text

import errno
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from app.core.folders import DamagedFolder, verify_folder, write_folder
from app.training import __main__ as entry
from app.training import state as state_module
from app.training.failures import Cancelled, RunFailure, explain
from app.training.run import Run
from app.training.state import State, load_newest_state, save_state

ROOT = Path(__file__).parents[2]
TOY = ROOT / "tests" / "training" / "toy_run.py"
Make = Callable[..., Path]
Rows = Callable[[Path], list[dict[str, Any]]]
DEMONSTRATION = {"prompt_id": "p", "prompt": [{"role": "user", "content": "Hi"}], "completion": "Yes", "split": "train"}


# ---- opening ------------------------------------------------------------------------------------------------------


def failure_of(root: Path) -> tuple[str, str]:
    with pytest.raises(RunFailure) as failure:
        Run.open(root)
    return failure.value.error.kind, failure.value.error.message


def test_a_directory_without_a_spec_is_refused(tmp_path: Path) -> None:
    kind, message = failure_of(tmp_path)
    assert kind == "config"
    assert "spec.json" in message


def test_an_unknown_key_of_the_configuration_is_refused_by_name(make_run: Make) -> None:
    kind, message = failure_of(make_run(config={"learning_rat": 1e-3}))
    assert kind == "config"
    assert "learning_rat" in message


def test_an_unknown_key_of_the_spec_is_refused_by_name(make_run: Make) -> None:
    kind, message = failure_of(make_run(polcy="x"))
    assert kind == "config"
    assert "polcy" in message


def test_data_that_changed_after_it_was_frozen_is_refused(make_run: Make) -> None:
    root = make_run(data={"demonstrations.jsonl": [DEMONSTRATION]})
    assert Run.open(root).demonstrations()[0].completion == "Yes"
    with (root / "data" / "demonstrations.jsonl").open("a") as file:
        file.write("\n")
    kind, message = failure_of(root)
    assert kind == "data"
    assert "SHA-256" in message


def test_data_outside_the_directory_is_not_read(make_run: Make, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    spec = make_run() / "spec.json"
    spec.write_text(spec.read_text().replace('"data_sha256": {}', '"data_sha256": {"../../secret": "00"}'))
    assert failure_of(spec.parent) == ("data", "data/../../secret is missing.")


def test_a_malformed_line_is_named_by_its_number(make_run: Make) -> None:
    run = Run.open(make_run(data={"demonstrations.jsonl": [DEMONSTRATION, {**DEMONSTRATION, "completio": "No"}]}))
    with pytest.raises(RunFailure, match=r"line 2.*completio"):
        run.demonstrations()


# ---- logging ------------------------------------------------------------------------------------------------------


def test_metrics_progress_and_samples_are_written_as_others_read_them(make_run: Make, rows_of: Rows) -> None:
    run = Run.open(make_run())
    run.log(1, "train", **{"loss": torch.tensor(0.5), "objective/kl": float("nan")})
    run.sample(1, "p", "Dear <b>Ann</b>", reward=0.25)
    run.progress(1, 4, "train")
    assert not run.dir.progress.exists()  # the logs may still be cut back
    run = Run.open(run.dir.root)
    assert run.restore() is None
    run.log(1, "train", **{"loss": torch.tensor(0.5), "objective/kl": float("nan")})
    run.sample(1, "p", "Dear <b>Ann</b>", reward=0.25)
    run.progress(1, 4, "train")
    [row] = rows_of(run.dir.metrics)
    assert {k: row[k] for k in ("step", "phase", "loss", "objective/kl")} == {
        "step": 1,
        "phase": "train",
        "loss": 0.5,
        "objective/kl": None,
    }
    assert rows_of(run.dir.samples) == [{"step": 1, "prompt_id": "p", "completion": "Dear <b>Ann</b>", "reward": 0.25}]
    progress = json.loads(run.dir.progress.read_text())
    assert (progress["step"], progress["total"], progress["seconds_left"]) == (1, 4, None)


def test_the_time_left_comes_from_the_pace_of_the_steps(make_run: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.open(make_run())
    run.restore()
    clock = iter([100.0, 102.0, 104.0])
    monkeypatch.setattr("app.training.run.time.time", lambda: next(clock))
    for step in (10, 11, 12):
        run.progress(step, 20, "train")
    # Two seconds a step, eight steps to go.
    assert json.loads(run.dir.progress.read_text())["seconds_left"] == 16.0


def test_a_loss_that_is_not_finite_ends_the_run_as_diverged(make_run: Make) -> None:
    with pytest.raises(RunFailure) as failure:
        Run.open(make_run()).require_finite(3, loss=float("inf"))
    assert failure.value.error.kind == "diverged"
    assert "step 3" in failure.value.error.message


# ---- whole states -------------------------------------------------------------------------------------------------


def test_a_state_comes_back_as_it_was_with_its_random_generators(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    tree = {"a": {"w": shared, "tied": shared, "view": shared.view(2, 3).T}, "n": [1, 2.5, None, True, "x"], "e": {}}
    save_state(tmp_path, State(3, tree))
    expected = (torch.rand(2), random.random())
    torch.manual_seed(99)
    random.seed(99)
    restored = load_newest_state(tmp_path)
    assert restored.damaged == []
    assert restored.state is not None
    assert restored.state.step == 3
    back = restored.state.tree
    assert torch.equal(back["a"]["w"], shared)
    assert torch.equal(back["a"]["tied"], shared)
    assert torch.equal(back["a"]["view"], shared.view(2, 3).T)
    assert back["n"] == [1, 2.5, None, True, "x"]
    assert back["e"] == {}
    assert torch.equal(torch.rand(2), expected[0])
    assert random.random() == expected[1]
    assert {path.suffix for path in (tmp_path / "step-000003").iterdir()} == {".json", ".safetensors"}


def test_only_the_newest_two_states_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 999_999, 1_000_000):
        save_state(tmp_path, State(step, {"x": step}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1000000", "step-999999"]
    restored = load_newest_state(tmp_path).state
    assert restored is not None
    assert restored.step == 1_000_000


@pytest.mark.parametrize("name", ["state.safetensors", "state.json", "manifest.json"])
def test_a_damaged_checkpoint_is_passed_over_aloud(make_run: Make, rows_of: Rows, name: str) -> None:
    run = Run.open(make_run())
    for step in (1, 2):
        run.log(step, "train", loss=float(step))
        run.save_checkpoint(step, {"x": torch.tensor([float(step)])})
    damaged = run.dir.checkpoints / "step-000002" / name
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    state = Run.open(run.dir.root).restore()
    assert state is not None
    assert state.step == 1
    assert state.tree["x"].item() == 1.0
    rows = rows_of(run.dir.metrics)
    assert [(row["step"], row["phase"]) for row in rows] == [(1, "train"), (1, "restore")]
    assert rows[1]["checkpoint/damaged"] == 1


def test_with_every_checkpoint_damaged_the_run_starts_again_with_clean_logs(make_run: Make, rows_of: Rows) -> None:
    run = Run.open(make_run())
    run.log(0, "evaluate", loss=3.0)
    run.log(1, "train", loss=1.0)
    run.save_checkpoint(1, {"x": 1})
    (run.dir.checkpoints / "step-000001" / "manifest.json").unlink()
    assert Run.open(run.dir.root).restore() is None
    assert [row["phase"] for row in rows_of(run.dir.metrics)] == ["restore"]


def test_on_resume_the_logs_are_cut_back_to_the_restored_step(make_run: Make, rows_of: Rows) -> None:
    run = Run.open(make_run())
    for step in (1, 2, 3, 4):
        run.log(step, "train", loss=0.0)
        run.sample(step, "p", "x")
        if step == 2:
            run.save_checkpoint(step, {})
    with run.dir.metrics.open("a") as file:
        file.write('{"step": 5, "ti')  # killed while it wrote
    Run.open(run.dir.root).restore()
    assert [row["step"] for row in rows_of(run.dir.metrics)] == [1, 2]
    assert [row["step"] for row in rows_of(run.dir.samples)] == [1, 2]


def test_something_that_is_no_plain_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="only tensors"):
        save_state(tmp_path, State(1, {"x": object()}))
    assert list(tmp_path.iterdir()) == []


def test_a_pickle_in_place_of_a_state_is_never_opened(tmp_path: Path) -> None:
    class Canary:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "fired",))

    def fill(folder: Path) -> None:
        (folder / "state.json").write_text('{"step": 1, "loop": {"x": {"$tensor": "x"}}, "rng": {}}')
        torch.save(Canary(), folder / "state.safetensors")

    write_folder(tmp_path / "checkpoints" / "step-000001", fill)  # with a manifest that agrees
    with pytest.raises(SafetensorError):
        load_newest_state(tmp_path / "checkpoints")
    assert not (tmp_path / "fired").exists()


# ---- a full disk --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "full",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_keeps_the_older_checkpoint_and_leaves_nothing_half_written(
    make_run: Make, monkeypatch: pytest.MonkeyPatch, full: Exception
) -> None:
    run = Run.open(make_run())
    run.save_checkpoint(1, {"x": torch.ones(3)})

    def no_space(tensors: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise full

    monkeypatch.setattr(state_module, "save_file", no_space)
    with pytest.raises(type(full)) as failure:
        run.save_checkpoint(2, {"x": torch.ones(3)})
    error = explain(failure.value)
    assert error.kind == "disk"
    assert "full" in error.message
    assert [path.name for path in run.dir.checkpoints.iterdir()] == ["step-000001"]
    verify_folder(run.dir.checkpoints / "step-000001")


def test_final_is_whole_or_not_there(make_run: Make) -> None:
    run = Run.open(make_run())

    def broken(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        run.finish(broken, {})
    assert not run.dir.final.exists()
    assert not run.dir.result.exists()
    run.finish(lambda folder: (folder / "a").write_text("x") and None, {"loss": 0.5})
    assert set(verify_folder(run.dir.final)) == {"a"}
    assert json.loads(run.dir.result.read_text()) == {"status": "finished", "step": 0, "metrics": {"loss": 0.5}}
    (run.dir.final / "a").write_text("y")
    with pytest.raises(DamagedFolder, match="final/a"):
        verify_folder(run.dir.final)


def test_out_of_memory_is_named_whoever_says_it() -> None:
    cpu = RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried")
    for error in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), cpu):
        assert explain(error).kind == "memory"
    assert explain(RuntimeError("shapes differ")).kind == "internal"


# ---- the command --------------------------------------------------------------------------------------------------


def use_trainer(monkeypatch: pytest.MonkeyPatch, train: Callable[[Run[Any]], None]) -> None:
    monkeypatch.setattr(entry, "_trainer", lambda kind: train)
    monkeypatch.setattr(entry, "_stop_on_signals", lambda run: None)
    monkeypatch.setattr(entry, "_log_to", lambda root: None)


def finish(run: Run[Any]) -> None:
    run.finish(lambda folder: (folder / "a").write_text("x") and None, {})


def test_a_finished_run_answers_0_and_is_not_run_again(make_run: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_run()
    use_trainer(monkeypatch, finish)
    assert entry.main([str(root)]) == 0
    use_trainer(monkeypatch, lambda run: pytest.fail("ran again"))
    assert entry.main([str(root)]) == 0


def test_a_cancelled_run_answers_3_and_goes_on_when_started_again(
    make_run: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_run()
    (root / "cancel").touch()

    def loop(run: Run[Any]) -> None:
        state = run.restore()
        for step in range(state.step + 1 if state else 1, 4):
            run.end_step(step, 3, "train", lambda: {"x": 1})
        finish(run)

    use_trainer(monkeypatch, loop)
    assert entry.main([str(root)]) == 3
    assert json.loads((root / "result.json").read_text())["status"] == "cancelled"
    assert (root / "checkpoints" / "step-000001").is_dir()
    assert entry.main([str(root)]) == 0
    assert json.loads((root / "result.json").read_text())["status"] == "finished"
    assert not (root / "checkpoints").exists()


def test_a_failed_run_answers_4_and_says_why(make_run: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_run()

    def loop(run: Run[Any]) -> None:
        raise MemoryError("12 GiB")

    use_trainer(monkeypatch, loop)
    assert entry.main([str(root)]) == 4
    error = json.loads((root / "error.json").read_text())
    assert error["kind"] == "memory"
    assert error["mend"]
    use_trainer(monkeypatch, finish)
    assert entry.main([str(root)]) == 0
    assert not (root / "error.json").exists()


def test_a_directory_that_cannot_be_opened_gets_its_error_too(make_run: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_run(config={"nonsense": 1})
    use_trainer(monkeypatch, finish)
    assert entry.main([str(root)]) == 4
    assert "nonsense" in json.loads((root / "error.json").read_text())["message"]
    assert entry.main([str(root / "missing")]) == 4


def test_the_last_step_is_not_cancelled_any_more(make_run: Make) -> None:
    run = Run.open(make_run())
    run.request_stop()
    with pytest.raises(Cancelled):
        run.end_step(1, 2, "train", dict)
    run.end_step(2, 2, "train", dict)


# ---- kill -9 ------------------------------------------------------------------------------------------------------


def start(root: Path, pause: float = 0.0) -> "subprocess.Popen[bytes]":
    command = [sys.executable, str(TOY), str(root), str(pause)]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (root / "log.txt").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def rows_written(root: Path) -> int:
    metrics = root / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def kill_at(root: Path, rows: int, delay: float = 0.0) -> None:
    """Start the toy and kill it once so many rows are logged."""
    process = start(root, pause=0.05)
    deadline = time.monotonic() + 60
    while rows_written(root) < rows and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(delay)
    process.kill()
    process.wait()


def assert_same_end(whole: Path, resumed: Path, rows_of: Rows) -> None:
    for name in ("final/model.safetensors", "final/manifest.json", "samples.jsonl", "result.json"):
        assert (whole / name).read_bytes() == (resumed / name).read_bytes(), name
    losses = [[(row["step"], row["loss"]) for row in rows_of(root / "metrics.jsonl")] for root in (whole, resumed)]
    assert losses[0] == losses[1]
    assert [step for step, _ in losses[1]] == list(range(1, 13))


def test_a_run_killed_at_random_steps_ends_with_the_same_bits(make_run: Make, rows_of: Rows) -> None:
    config = {"checkpoint_every": 3}
    whole, killed = make_run("whole", config=config), make_run("killed", config=config)
    assert start(whole).wait() == 0
    for rows in (2, 8):  # before the first checkpoint, and between two
        kill_at(killed, rows)
    assert not (killed / "result.json").exists()
    process = start(killed)
    assert process.wait() == 0
    assert "resumed from step 6" in (killed / "log.txt").read_text()
    assert_same_end(whole, killed, rows_of)


def test_sigterm_stops_after_the_step_with_a_checkpoint(make_run: Make) -> None:
    root = make_run(config={"checkpoint_every": 1000})
    process = start(root, pause=0.05)
    while rows_written(root) < 2:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 3
    [checkpoint] = (root / "checkpoints").iterdir()
    verify_folder(checkpoint)


@pytest.mark.slow
def test_a_campaign_of_kills_at_random_moments_changes_nothing(make_run: Make, rows_of: Rows) -> None:
    whole = make_run("whole", config={"checkpoint_every": 1})
    assert start(whole).wait() == 0
    chance = random.Random(5)
    for trial in range(8):
        killed = make_run(f"killed-{trial}", config={"checkpoint_every": 1})
        for _ in range(3):
            kill_at(killed, rows_written(killed) + chance.randint(0, 3), delay=chance.random() * 0.1)
            if (killed / "result.json").exists():
                break
        assert start(killed).wait() == 0
        assert_same_end(whole, killed, rows_of)
        shutil.rmtree(killed)

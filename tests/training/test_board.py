"""Event files for TensorBoard, read back record by record with checksums computed here."""

import errno
import json
import logging
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event

from app.core.records import RunDir
from app.training import board as board_module
from app.training.__main__ import main
from app.training.run import Run
from tests.training.test_sft import rows, run_directory

Make = Callable[..., Path]
ROOT = Path(__file__).parents[2]


def crc(data: bytes) -> int:
    """TensorFlow's masked CRC-32C, bit by bit."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
    value ^= 0xFFFFFFFF
    return (((value >> 15) | (value << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def events(root: Path) -> list[Event]:
    [path] = (root / "tensorboard").iterdir()
    assert "tfevents" in path.name
    assert socket.gethostname() not in path.name
    data, found = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        body = data[12 : 12 + length]
        assert struct.unpack("<I", data[8:12]) == (crc(data[:8]),)
        assert struct.unpack("<I", data[12 + length : 16 + length]) == (crc(body),)
        found.append(Event.FromString(body))
        data = data[16 + length :]
    assert found[0].file_version == "brain.Event:2"
    return found


def points(root: Path) -> list[tuple[str, int, float, float]]:
    """Tag, step, time and value of every scalar, sorted."""
    return sorted(
        (value.tag, event.step, event.wall_time, value.simple_value)
        for event in events(root)
        for value in event.summary.value
        if value.WhichOneof("value") == "simple_value"
    )


def texts(root: Path) -> list[tuple[str, int, str]]:
    return [
        (value.tag, event.step, value.tensor.string_val[0].decode())
        for event in events(root)
        for value in event.summary.value
        if value.metadata.plugin_data.plugin_name == "text"
    ]


def logged(root: Path) -> list[tuple[str, int, float, float]]:
    """What metrics.jsonl says, in the same form; a 32-bit float is what an event holds."""
    return sorted(
        (name, row["step"], row["time"], struct.unpack("f", struct.pack("f", value))[0])
        for row in rows(root / "metrics.jsonl")
        for name, value in row.items()
        if name not in ("step", "time", "phase") and value is not None
    )


def test_every_number_and_every_sample_of_a_run_is_there_at_its_step_and_time(tmp_path: Path) -> None:
    root = run_directory(tmp_path / "run", {"eval_every": 4})
    assert main([str(root)]) == 0
    assert points(root) == logged(root)
    assert {tag for tag, *_ in points(root)} >= {"loss", "mean_token_accuracy", "grad_norm", "eval_loss"}
    samples = [
        (f"samples/{r['prompt_id']}/text_summary", r["step"], r["completion"]) for r in rows(root / "samples.jsonl")
    ]
    assert len(samples) == 8
    assert texts(root) == samples


def test_what_was_rolled_back_is_gone_and_nothing_stands_twice(make_run: Make) -> None:
    root = make_run()
    run = Run.open(root)
    run.restore()
    for step in (1, 2, 3):
        run.log(step, "train", loss=float(step))
        run.sample(step, "p", f"answer {step}", reward=0.25)
        if step == 2:
            run.save_checkpoint(step, {})
    times = [row["time"] for row in rows(root / "metrics.jsonl")]
    run = Run.open(root)
    run.restore()
    assert [(tag, step) for tag, step, _, _ in points(root)] == [("loss", 1), ("loss", 2)]
    run.log(3, "train", loss=30.0)
    assert points(root) == logged(root)
    assert [value for *_, value in points(root)] == [1.0, 2.0, 30.0]
    assert [moment for _, _, moment, _ in points(root)][:2] == times[:2]
    assert texts(root) == [("samples/p/text_summary", step, f"Reward 0.25\n\nanswer {step}") for step in (1, 2)]
    told = [event for event in events(root) if event.WhichOneof("what") == "summary"]
    assert [event.wall_time for event in told if event.summary.value[0].tag.startswith("samples")] == times[:2]


def test_a_half_written_record_of_a_killed_process_is_mended_by_the_next(make_run: Make) -> None:
    run = Run.open(make_run())
    run.restore()
    run.log(1, "train", loss=1.0)
    run.save_checkpoint(1, {})
    [path] = run.dir.tensorboard.iterdir()
    path.write_bytes(path.read_bytes()[:-5])
    (run.dir.tensorboard / ".partial").write_bytes(b"half")
    run = Run.open(run.dir.root)
    run.restore()
    run.log(2, "train", loss=2.0)
    assert [value for *_, value in points(run.dir.root)] == [1.0, 2.0]


def test_a_name_told_twice_at_a_step_says_by_which_phase_and_nan_is_left_out(make_run: Make) -> None:
    run = Run.open(make_run())
    run.restore()
    run.log(6, "train", accuracy=0.5, loss=float("nan"))
    run.log(6, "evaluate", accuracy=0.75, heldout_accuracy=1.0)
    run.log(7, "train", accuracy=0.25)
    found = {(tag, step): value for tag, step, _, value in points(run.dir.root)}
    assert found == {
        ("accuracy", 6): 0.5,
        ("evaluate/accuracy", 6): 0.75,
        ("heldout_accuracy", 6): 1.0,
        ("accuracy", 7): 0.25,
    }


def test_a_full_disk_is_told_once_and_ends_nothing(
    make_run: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run.open(make_run())
    run.restore()

    def full(**event: Any) -> bytes:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(board_module, "_record", full)
    with caplog.at_level(logging.WARNING):
        for step in (1, 2, 3):
            run.log(step, "train", loss=0.5)
            run.sample(step, "p", "x")
    assert len(rows(run.dir.metrics)) == 3
    assert caplog.text.count("No space left on device") == 1
    monkeypatch.undo()
    run.save_checkpoint(3, {})
    Run.open(run.dir.root).restore()
    assert points(run.dir.root) == logged(run.dir.root)


def test_a_folder_that_cannot_be_made_ends_nothing(make_run: Make, caplog: pytest.LogCaptureFixture) -> None:
    run = Run.open(make_run())
    run.dir.tensorboard.write_text("a file stands in the way")
    run.restore()
    run.log(1, "train", loss=0.5)
    assert len(rows(run.dir.metrics)) == 1
    assert caplog.text.count("no more events for TensorBoard") == 1


def test_a_trainer_needs_neither_tensorflow_nor_tensorboard(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "time": 2.0, "phase": "train", "loss": 3.0}) + "\n")
    code = """
import sys
for name in ("tensorflow", "tensorboard"):
    sys.modules[name] = None
from pathlib import Path
from app.training.board import Board
root = Path(sys.argv[1])
Board(root / "tensorboard").begin(root / "metrics.jsonl", root / "samples.jsonl")
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=ROOT)
    assert points(tmp_path) == [("loss", 1, 2.0, 3.0)]


def test_the_folder_is_listed_among_a_run_s_files() -> None:
    assert RunDir("x").tensorboard == Path("x/tensorboard")

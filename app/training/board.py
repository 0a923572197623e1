"""A run's metrics and samples once more as TensorBoard's event files, for those who like to look there.

metrics.jsonl and samples.jsonl are the truth. A run that goes on writes its events anew from them, so no point stands
there twice and none that was rolled back. Records are written here, not by a SummaryWriter: its thread would die of a
full disk without a word, and its file would bear the machine's name.
"""

import json
import logging
import struct
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger("pairwright.training")
Row = Mapping[str, Any]
_NO_METRIC = ("step", "time", "phase")


class Board:
    """Writes `folder`. Whatever goes wrong is told once, and the run goes on without."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: Path | None = None
        self._at = -1
        self._named: set[str] = set()

    def begin(self, metrics: Path, samples: Path) -> None:
        """Make the folder hold the rows of these two files, whether or not they exist, and nothing else."""
        self._safely(lambda: self._begin(metrics, samples))

    def metrics(self, row: Row) -> None:
        """Add a row of metrics.jsonl: its numbers under their names, at its step and time."""
        self._safely(lambda: self._append(self._file, self._scalars(row)))

    def sample(self, row: Row) -> None:
        """Add a row of samples.jsonl: a text under samples/ and the prompt's id."""
        self._safely(lambda: self._append(self._file, _text(row, time.time())))

    def _begin(self, metrics: Path, samples: Path) -> None:
        self._folder.mkdir(exist_ok=True)
        self._file = self._folder / f"events.out.tfevents.{time.time_ns()}.pairwright"
        partial = self._folder / ".partial"
        rows = list(_rows(metrics))
        steps = [row["step"] for row in rows]
        with partial.open("wb") as file:
            file.write(_record(wall_time=time.time(), file_version="brain.Event:2"))
            # Tells a TensorBoard that reads along to forget what it had.
            file.write(_record(wall_time=time.time(), step=0, session_log={"status": "START"}))
            for row in rows:
                file.write(self._scalars(row))
            for row in _rows(samples):
                # Samples have no time of their own: that of the row before them.
                place = max(bisect_right(steps, row["step"]) - 1, 0)
                file.write(_text(row, rows[place]["time"] if rows else time.time()))
        for old in self._folder.glob("events.*"):
            old.unlink()
        partial.rename(self._file)

    def _append(self, path: Path | None, record: bytes) -> None:
        if path is not None:
            with path.open("ab") as file:
                file.write(record)

    def _scalars(self, row: Row) -> bytes:
        if row["step"] != self._at:
            self._at, self._named = row["step"], set()
        values = []
        for name, value in row.items():
            if name in _NO_METRIC or value is None:
                continue
            # Two phases may tell one name at one step: a batch's accuracy, and that of all judgments.
            values.append({"tag": f"{row['phase']}/{name}" if name in self._named else name, "simple_value": value})
            self._named.add(name)
        return _record(wall_time=row["time"], step=row["step"], summary={"value": values})

    def _safely(self, write: Callable[[], None]) -> None:
        try:
            write()
        except Exception as error:  # a picture of a run is no reason to end it
            self._file = None  # behind half a record nothing can be read
            logger.warning("no more events for TensorBoard, metrics.jsonl goes on: %s", error)
            self._safely = lambda write: None  # type: ignore[method-assign]


def _text(row: Row, wall_time: float) -> bytes:
    from tensorboardX.summary import text

    reward = f"Reward {row['reward']:.4g}\n\n" if "reward" in row else ""
    summary = text(f"samples/{row['prompt_id']}", reward + row["completion"])
    return _record(wall_time=wall_time, step=row["step"], summary=summary)


def _record(**event: Any) -> bytes:
    """An event in TensorFlow's record format: length and data, each with its checksum."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    data = Event(**event).SerializeToString()
    length = struct.pack("<Q", len(data))
    return b"".join([length, struct.pack("<I", masked_crc32c(length)), data, struct.pack("<I", masked_crc32c(data))])


def _rows(path: Path) -> Iterator[Row]:
    if path.exists():
        with path.open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)

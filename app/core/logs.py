"""One way to log for every process: ids, counts, durations; never texts of people or models, never secrets."""

import json
import logging
import sys
import time
from typing import IO


class JsonLines(logging.Formatter):
    """One JSON object a line: time (UTC), level, process, the message or a logged dict's keys, the error's type."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        row = {"time": stamp, "level": record.levelname.lower(), "process": self._process, "logger": record.name}
        said = record.msg if isinstance(record.msg, dict) else {"message": record.getMessage()}
        return json.dumps(row | said | where(record), ensure_ascii=False, default=str)


class ShortLines(logging.Formatter):
    """What a person reads in a terminal: `21:03:07 worker  claimed run ...`."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        error = " ".join(str(value) for value in where(record).values())
        stamp = self.formatTime(record, "%H:%M:%S")
        said = record.getMessage()
        if isinstance(record.msg, dict):
            said = " ".join(f"{name}={value}" for name, value in record.msg.items())
        return f"{stamp} {self._process:<7} {level}{said}{' | ' + error if error else ''}"


def where(record: logging.LogRecord) -> dict[str, str]:
    """An exception as its type and the lines it passed; its text may quote what a person wrote and stays out."""
    if not record.exc_info or record.exc_info[0] is None:
        return {}
    kind, _, trace = record.exc_info
    steps = []
    while trace is not None:
        code = trace.tb_frame.f_code
        steps.append(f"{code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno}")
        trace = trace.tb_next
    return {"error": kind.__name__, "at": " > ".join(steps[-6:])}


def set_up(process: str, level: str = "info", stream: IO[str] | None = None) -> None:
    """Send this process's logs to stderr: short lines in a terminal, JSON lines elsewhere.

    The libraries speak from warnings on: what they say at lower levels can hold addresses and statements.
    """
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    handler.setFormatter(ShortLines(process) if stream.isatty() else JsonLines(process))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("pairwright").setLevel(level.upper())

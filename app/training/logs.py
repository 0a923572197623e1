"""Logs of one JSON object a line, each with the step that it tells of."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Add a row."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def cut_back(path: Path, step: int) -> None:
    """Truncate a log in place to its rows up to `step`; a torn last line goes too."""
    if not path.exists():
        return
    keep = 0
    with path.open("rb") as lines:
        for line in lines:
            if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                break
            keep += len(line)
    with path.open("rb+") as file:
        file.truncate(keep)

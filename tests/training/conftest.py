"""Run directories made by hand, as the store would write them."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Makes `tmp_path/<name>`: a spec and, under data/, one JSON object a line with its hash in the spec."""

    def make(
        name: str = "run",
        kind: str = "sft",
        config: Mapping[str, Any] | None = None,
        data: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
        seed: int = 7,
        **spec: Any,
    ) -> Path:
        root = tmp_path / name
        (root / "data").mkdir(parents=True)
        sums = {}
        for file, rows in (data or {}).items():
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (root / "data" / file).write_text(text)
            sums[file] = hashlib.sha256(text.encode()).hexdigest()
        whole = {"run_id": "r", "kind": kind, "seed": seed, "config": dict(config or {}), "data_sha256": sums, **spec}
        (root / "spec.json").write_text(json.dumps(whole))
        return root

    return make


@pytest.fixture
def rows_of() -> Callable[[Path], list[dict[str, Any]]]:
    """Reads the objects of a JSONL file."""
    return lambda path: [json.loads(line) for line in path.read_text().splitlines()]

"""Importing prompts, demonstrations and preferences: streamed, all or nothing, every oddity counted."""

import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import BinaryIO, Literal

from sqlalchemy.orm import Session

Kind = Literal["prompts", "demonstrations", "preferences"]


@dataclass(frozen=True)
class ImportReport:
    """What became of a file. `skipped` names lines left out and why; `notes` counts every oddity."""

    rows: int
    added: int
    skipped: list[tuple[int, str]] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)


def import_jsonl(
    s: Session,
    project_id: uuid.UUID,
    kind: Kind,
    stream: BinaryIO | Iterable[bytes],
    by: uuid.UUID | None,
    name: str,
) -> ImportReport:
    """Import a JSONL file (or PandaLM's JSON array of votes); `name` is kept as the source of what it brings.

    Raises Invalid with the numbers of the first malformed lines, and then nothing was added: roll back.
    """
    raise NotImplementedError

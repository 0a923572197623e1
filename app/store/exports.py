"""Taking judgments home: streaming, canonical, annotators only as pseudonyms."""

import uuid
from collections.abc import Iterator

from sqlalchemy.orm import Session


def export_trl(s: Session, project_id: uuid.UUID) -> Iterator[bytes]:
    """TRL's conversational preference format, a line a strict counted pair: {"prompt", "chosen", "rejected"}."""
    raise NotImplementedError


def export_full(s: Session, project_id: uuid.UUID) -> Iterator[bytes]:
    """Every judgment that stands, with its whole provenance, a JSON object a line, ordered by id."""
    raise NotImplementedError

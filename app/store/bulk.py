"""Getting many rows in at once, by COPY."""

import hashlib
import json
import uuid
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

import psycopg
from psycopg import sql
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.core.errors import Invalid
from app.core.pairing import split_of
from app.core.records import Message
from app.store.models import Base, Project, Prompt, new_id

BATCH = 5000

Row = TypeVar("Row")


def batches(rows: Iterable[Row], size: int = BATCH) -> Iterator[list[Row]]:
    """The rows in lists of at most `size`."""
    iterator = iter(rows)
    while batch := list(islice(iterator, size)):
        yield batch


def copy(s: Session, table: type[Base], columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """COPY rows into a table inside the session's transaction; JSON columns take their text."""
    s.flush()
    driver = s.connection().connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(
        sql.Identifier(table.__tablename__), sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    with driver.cursor() as cursor, cursor.copy(statement) as stream:
        for row in rows:
            stream.write_row(row)


def canonical(value: object) -> str:
    """JSON with one spelling: sorted keys, no spaces, characters as themselves."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)


def first_user_message(messages: Sequence[Message]) -> str:
    """What the split is decided by; Invalid for a conversation that no user began."""
    for message in messages:
        if message["role"] == "user":
            return message["content"]
    raise Invalid("A prompt needs a message from the user.")


def place_prompts(
    s: Session, project: Project, conversations: Sequence[Sequence[Message]], source: str
) -> tuple[list[uuid.UUID], int]:
    """The ids of these prompts in their order, after adding those that are new, and how many were."""
    # Two imports at once would both find a prompt missing.
    s.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"prompts {project.id}", 0))))
    texts = [canonical(list(messages)) for messages in conversations]
    digests = [hashlib.sha256(text.encode()).digest() for text in texts]
    query = select(Prompt.digest, Prompt.id).where(Prompt.project_id == project.id, Prompt.digest.in_(set(digests)))
    known: dict[bytes, uuid.UUID] = {row.digest: row.id for row in s.execute(query)}
    new = []
    for messages, text, digest in zip(conversations, texts, digests, strict=True):
        if digest not in known:
            known[digest] = new_id()
            split = split_of(project.salt, first_user_message(messages), project.heldout_share)
            new.append((known[digest], project.id, text, digest, split.value, source))
    copy(s, Prompt, ["id", "project_id", "messages", "digest", "split", "source"], new)
    return [known[digest] for digest in digests], len(new)

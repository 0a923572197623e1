"""What somebody has typed or chosen and not yet submitted: kept here, so that another tab or device brings it back."""

import json
import re
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import delete, select, text
from sqlalchemy.orm import Session

from app.core.errors import Invalid, NotFound
from app.store.models import Draft

LARGEST = 64 * 1024
MOST = 300  # a person's; beyond it the longest untouched goes

# What jsonb does not take: NUL, escaped here, and half a surrogate pair. A typed backslash is two here.
_UNKEPT = re.compile(r"(?<!\\)(?:\\\\)*\\u0000|[\ud800-\udfff]")

# A draft belongs to a task that was handed to this person, now or before.
_MET = text(
    """
    SELECT EXISTS (
        SELECT FROM assignment a
        WHERE a.comparison_id = :task AND a.account_id = :account AND a.project_id = :project
    ) OR EXISTS (
        SELECT FROM writing w WHERE w.prompt_id = :task AND w.account_id = :account AND w.project_id = :project
    )
    """
)

_KEEP = text(
    """
    INSERT INTO draft (account_id, task_id, project_id, body)
    VALUES (:account, :task, :project, CAST(:body AS jsonb))
    ON CONFLICT (account_id, task_id) DO UPDATE SET body = excluded.body, updated_at = clock_timestamp()
    """
)

_MAKE_ROOM = text(
    """
    DELETE FROM draft WHERE account_id = :account AND task_id IN (
        SELECT task_id FROM draft WHERE account_id = :account ORDER BY updated_at DESC, task_id OFFSET :most
    )
    """
)


def load(s: Session, account_id: uuid.UUID, task_ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, dict[str, Any]]:
    """This person's drafts for these tasks, by task; those without one are left out."""
    wanted = list(task_ids)
    if not wanted:
        return {}
    query = select(Draft.task_id, Draft.body).where(Draft.account_id == account_id, Draft.task_id.in_(wanted))
    return {row.task_id: row.body for row in s.execute(query)}


def save(s: Session, project_id: uuid.UUID, account_id: uuid.UUID, task_id: uuid.UUID, body: Mapping[str, Any]) -> None:
    """Keep a draft, in place of the one before. NotFound for a task that was never handed to this person.

    Invalid for one that is too large or holds a character that cannot be kept.
    """
    written = json.dumps(dict(body), ensure_ascii=False)
    if _UNKEPT.search(written):
        raise Invalid("This draft holds a character that cannot be stored.", "Take it out; the rest is kept here.")
    if len(written.encode()) > LARGEST:
        raise Invalid("This draft is larger than 64 kB.", "It stays in this page; shorten it to keep it on the server.")
    who = {"project": project_id, "account": account_id, "task": task_id}
    if not s.execute(_MET, who).scalar_one():
        raise NotFound("This task was not handed to you.", "Reload the page for the next one.")
    s.execute(_KEEP, who | {"body": written})
    s.execute(_MAKE_ROOM, {"account": account_id, "most": MOST})


def drop(s: Session, account_id: uuid.UUID, task_id: uuid.UUID) -> None:
    """Forget a draft, if there is one: it was submitted, or is not wanted any more."""
    s.execute(delete(Draft).where(Draft.account_id == account_id, Draft.task_id == task_id))

"""A person's own history: the list, and each entry whole."""

import uuid
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import AwareDatetime
from starlette.responses import Response

from app.core.errors import NotFound
from app.store import history
from app.web.access import Policy, Visit, may
from app.web.pages import page

router = APIRouter(prefix="/p/{slug}/history")
Annotator = Annotated[Visit, may(Policy.ANNOTATOR)]


@router.get("")
def own(visit: Annotator, at: Annotated[AwareDatetime | None, Query()] = None, id: uuid.UUID | None = None) -> Response:
    """The newest judgments and demonstrations of the reader before a place, which is an entry's time and id."""
    before = (at, id) if at is not None and id is not None else history.LAST
    entries = history.page(visit.s, visit.project.id, visit.account.id, before, history.PAGE + 1)
    more = entries[history.PAGE - 1] if len(entries) > history.PAGE else None
    first = before == history.LAST
    return page(visit, "history/history.html", here="history", entries=entries[: history.PAGE], more=more, first=first)


@router.get("/{entry_id}")
def entry(visit: Annotator, entry_id: uuid.UUID) -> Response:
    """One entry whole: a judgment with its answers, or what was written for a prompt, and all that was said before."""
    where = (visit.s, visit.project.id, visit.account.id, entry_id)
    try:
        record = history.judgment(*where)
    except NotFound:
        written = history.demonstration(*where)
        return page(visit, "history/demonstration.html", here="history", written_history=written)
    # What stands, or stood last: its order is the one to show the answers in.
    last = next(said for said in record.said if not said.withdrawn)
    order = last.order or list(range(len(record.answers)))
    return page(visit, "history/judgment.html", here="history", record=record, last=last, order=order)

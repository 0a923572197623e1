"""Drafts: what a page sends while somebody types."""

import json
import uuid
from typing import Annotated

from fastapi import APIRouter, Form
from starlette.responses import Response

from app.core.errors import Invalid
from app.store import drafts
from app.web.access import Policy, Visit, may
from app.web.forms import DraftForm

router = APIRouter(prefix="/p/{slug}/drafts")
Annotator = Annotated[Visit, may(Policy.ANNOTATOR)]


@router.post("/{task_id}")
def save(visit: Annotator, task_id: uuid.UUID, form: Annotated[DraftForm, Form()]) -> Response:
    """Keep a draft for a comparison or a prompt that was handed to this person."""
    try:
        body = json.loads(form.body)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise Invalid("A draft is a JSON object.")
    drafts.save(visit.s, visit.project.id, visit.account.id, task_id, body)
    return Response(status_code=204)

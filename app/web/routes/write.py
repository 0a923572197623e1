"""Writing ideal answers: the page, and what a person does there."""

import uuid
from typing import Annotated, Literal
from urllib.parse import quote

from fastapi import APIRouter, Form
from starlette.responses import RedirectResponse, Response

from app.core.errors import Conflict, Invalid, PairwrightError
from app.core.vocabulary import Mode, SkipReason
from app.store import guidelines, writing
from app.store.standing import Standing, standing
from app.store.writing import Better, WritingTask, Written
from app.web.access import Policy, Visit, may
from app.web.forms import SkipPromptForm, WriteForm
from app.web.pages import STATUS, page, wants_page
from app.web.said import WHY_NOT

router = APIRouter(prefix="/p/{slug}/write")
Annotator = Annotated[Visit, may(Policy.ANNOTATOR)]
REASONS = {
    SkipReason.UNSURE: "I am not sure what a good answer is",
    SkipReason.TOO_LONG: "It would take too long",
    SkipReason.NOT_MY_FIELD: "It is not my field",
    SkipReason.UNPLEASANT: "I would rather not read or write this",
    SkipReason.OTHER: "Another reason",
}


@router.get("")
def write(visit: Annotator, revise: uuid.UUID | None = None, start: Literal["better"] | None = None) -> Response:
    """The page with one prompt, leased to the reader, or with a demonstration of theirs to write anew."""
    base = f"/p/{visit.project.slug}"
    if revise is not None:
        task = writing.revise(visit.s, visit.project.id, visit.account.id, revise)
        return write_page(visit, started(task, start))
    if visit.project.mode is not Mode.DEMONSTRATE:
        return RedirectResponse(f"{base}/judge", 303)
    how = standing(visit.s, visit.project.id, visit.account.id)
    if how.unread:
        return RedirectResponse(f"{base}/guidelines?next={quote(f'{base}/write')}", 303)
    return write_page(visit, started(claimed(visit, how), start), how)


@router.post("")
def submit(visit: Annotator, form: Annotated[WriteForm, Form()]) -> Response:
    """Take an ideal answer; the answer brings the next prompt. What cannot be taken stays in the field."""
    written = Written(**form.model_dump(exclude={"held"}))
    try:
        writing.submit(visit.s, visit.project.id, visit.account.id, written)
    except (Invalid, Conflict) as error:
        if not wants_page(visit.request):
            raise
        task = writing.task(visit.s, visit.project.id, visit.account.id, form.prompt_id)
        return write_page(visit, task, text=form.text, began=form.edited_from_id, error=error)
    return following(visit)


@router.post("/skip")
def skip(visit: Annotator, form: Annotated[SkipPromptForm, Form()]) -> Response:
    """Leave a prompt to somebody else."""
    writing.skip(visit.s, visit.project.id, visit.account.id, form.prompt_id, form.reason)
    return following(visit)


def claimed(visit: Visit, how: Standing) -> WritingTask | None:
    """The prompt to write to, for somebody who may be handed one."""
    return None if how.why else writing.claim(visit.s, visit.project.id, visit.account.id)


def started(task: WritingTask | None, start: str | None) -> WritingTask | None:
    """The task with the better answer in its field, where that was asked for without scripts."""
    if task is None or task.better is None or start is None:
        return task
    return WritingTask(
        task.prompt_id,
        task.prompt,
        text=task.better.text,
        edited_from_id=task.better.completion_id,
        better=task.better,
        revises=task.revises,
    )


def following(visit: Visit) -> Response:
    """The next prompt for the page's script; without scripts, the way back to the page."""
    base = f"/p/{visit.project.slug}"
    if wants_page(visit.request):
        return RedirectResponse(f"{base}/write", 303)
    how = standing(visit.s, visit.project.id, visit.account.id)
    onward = ""
    if visit.project.mode is not Mode.DEMONSTRATE:
        onward = f"{base}/history"
    elif how.unread:
        onward = f"{base}/guidelines?next={quote(f'{base}/write')}"
    task = None if onward else claimed(visit, how)
    return page(visit, "write/_next.html", onward=onward, **context(visit, task, how))


def write_page(
    visit: Visit,
    task: WritingTask | None,
    how: Standing | None = None,
    text: str | None = None,
    began: uuid.UUID | None = None,
    error: PairwrightError | None = None,
) -> Response:
    """The whole page, with what was typed and what is wrong with it where something is."""
    shown = context(visit, task, how)
    if error is not None:
        shown |= {"text": text, "began": began, "error": error, "status": STATUS[type(error)]}
    newest = guidelines.current(visit.s, visit.project.id)
    return page(visit, "write/write.html", here="judge", guidelines=newest.body, reasons=REASONS, **shown)


def context(visit: Visit, task: WritingTask | None, how: Standing | None) -> dict[str, object]:
    """What the page and its fragment share."""
    return {
        "task": task,
        "text": task.text if task else "",
        "began": task.edited_from_id if task else None,
        "error": None,
        "why": WHY_NOT[how.why] if how and how.why else None,
        "whence": whence(task.better) if task and task.better else "",
        "tally": writing.tally(visit.s, visit.project.id, visit.account.id),
        "guideline_version": visit.project.guideline_version,
        "longest": writing.LONGEST,
        "new_key": uuid.uuid4(),
    }


def whence(better: Better) -> str:
    """Where the answer to start from comes from."""
    if better.won == 0:
        return "the newest answer of a policy"
    return "preferred once" if better.won == 1 else f"preferred {better.won} times"

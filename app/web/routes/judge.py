"""Judging: the page, and the four things a person does there."""

import uuid
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Form
from starlette.responses import RedirectResponse, Response

from app.core.vocabulary import Mode
from app.store import claims, judgments, projects
from app.store.claims import Task
from app.store.judgments import Submission
from app.web.access import Policy, Visit, may
from app.web.forms import HeldForm, JudgmentForm, SkipForm
from app.web.pages import page, wants_page
from app.web.routes.loop import preparing_page

router = APIRouter(prefix="/p/{slug}")
Annotator = Annotated[Visit, may(Policy.ANNOTATOR)]
IN_PAGE = 2
MOST_IN_PAGE = 4


@router.get("/judge")
def judge(visit: Annotator) -> Response:
    """The page, with the pair to judge and the one after it. It leases them to the reader, and changes nothing else."""
    if visit.project.mode is Mode.DEMONSTRATE:
        return RedirectResponse(f"/p/{visit.project.slug}/write", 303)
    tasks = claims.claim(visit.s, visit.project.id, visit.account.id, IN_PAGE)
    if not tasks and visit.project.current_policy_id is None:
        return preparing_page(visit)
    return page(
        visit,
        "judge/judge.html",
        here="judge",
        tasks=tasks,
        tally=judgments.tally(visit.s, visit.project.id, visit.account.id),
        guidelines=projects.guidelines(visit.s, visit.project.id),
        guideline_version=visit.project.guideline_version,
        new_key=uuid.uuid4(),
    )


@router.post("/judgments")
def submit(visit: Annotator, form: Annotated[JudgmentForm, Form()]) -> Response:
    """Take a judgment; the answer brings the comparison after the one that is already in the page."""
    submission = Submission(**form.model_dump(exclude={"held"}))
    judgments.submit(visit.s, visit.project.id, visit.account.id, submission)
    return following(visit, form.held)


@router.post("/skip")
def skip(visit: Annotator, form: Annotated[SkipForm, Form()]) -> Response:
    """Leave a comparison to somebody else."""
    judgments.skip(visit.s, visit.project.id, visit.account.id, form.comparison_id, form.reason or None)
    return following(visit, form.held)


@router.post("/undo")
def undo(visit: Annotator, form: Annotated[HeldForm, Form()]) -> Response:
    """Withdraw the newest judgment and show its comparison again."""
    task = judgments.undo(visit.s, visit.project.id, visit.account.id)
    return answer(visit, [task], form.held, again=True)


@router.post("/next")
def more(visit: Annotator, form: Annotated[HeldForm, Form()]) -> Response:
    """What a page asks for while it has too few comparisons."""
    return following(visit, form.held)


def following(visit: Visit, held: Sequence[uuid.UUID]) -> Response:
    """The comparisons that the page does not have yet, up to one more than it has."""
    wanted = min(max(IN_PAGE, len(held) + 1), MOST_IN_PAGE)
    leased = claims.claim(visit.s, visit.project.id, visit.account.id, wanted)
    return answer(visit, [task for task in leased if task.comparison_id not in held], held)


def answer(visit: Visit, tasks: Sequence[Task], held: Sequence[uuid.UUID], again: bool = False) -> Response:
    """A fragment for the page's script; without scripts, the way back to the page."""
    if wants_page(visit.request):
        return RedirectResponse(f"/p/{visit.project.slug}/judge", 303)
    tally = judgments.tally(visit.s, visit.project.id, visit.account.id)
    return page(visit, "judge/_next.html", tasks=tasks, held=held, tally=tally, again=again)

"""Judging: the page, and the four things a person does there."""

import uuid
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Form
from starlette.responses import RedirectResponse, Response

from app.core.vocabulary import Mode
from app.store import checks, claims, judgments, projects
from app.store.checks import Lesson
from app.store.claims import Task
from app.store.judgments import Submission
from app.store.revising import look_again
from app.store.standing import Standing, standing
from app.web.access import Policy, Visit, may
from app.web.forms import HeldForm, JudgmentForm, SkipForm
from app.web.pages import page, wants_page
from app.web.routes.loop import preparing_page
from app.web.words import FLAGS, SKIP_REASONS

router = APIRouter(prefix="/p/{slug}")
Annotator = Annotated[Visit, may(Policy.ANNOTATOR)]
IN_PAGE = 2
MOST_IN_PAGE = 4
ELSEWHERE = {Mode.CHAT: "chat", Mode.DEMONSTRATE: "write"}


@router.get("/judge")
def judge(visit: Annotator, revise: uuid.UUID | None = None) -> Response:
    """The page, with the comparison to judge and the one after it; or, to be revised, one own judgment.

    It leases what it shows to the reader, and changes nothing else.
    """
    if revise is not None:
        again = look_again(visit.s, visit.project.id, visit.account.id, revise)
        return desk(visit, [again.task], said=again.said)
    found = standing(visit.s, visit.project.id, visit.account.id)
    # The qualification round is of comparisons, whatever comes after it.
    if visit.project.mode in ELSEWHERE and not found.qualifying:
        return RedirectResponse(f"/p/{visit.project.slug}/{ELSEWHERE[visit.project.mode]}", 303)
    if found.unread is not None and found.why is None:
        return RedirectResponse(f"/p/{visit.project.slug}/guidelines", 303)
    wanted = handed_work(found, IN_PAGE)
    tasks = claims.claim(visit.s, visit.project.id, visit.account.id, wanted) if wanted else []
    if not tasks and found.why is None and visit.project.current_policy_id is None:
        return preparing_page(visit)
    return desk(visit, tasks, found)


def desk(
    visit: Visit, tasks: Sequence[Task], found: Standing | None = None, said: dict[str, object] | None = None
) -> Response:
    """The page with these comparisons on it, or with why there are none."""
    return page(
        visit,
        "judge/judge.html",
        here="judge",
        tasks=tasks,
        standing=found,
        said=said,
        tally=judgments.tally(visit.s, visit.project.id, visit.account.id),
        guidelines=projects.guidelines(visit.s, visit.project.id),
        guideline_version=visit.project.guideline_version,
        reasons=SKIP_REASONS,
        flags=FLAGS,
        new_key=uuid.uuid4(),
    )


@router.post("/judgments")
def submit(visit: Annotator, form: Annotated[JudgmentForm, Form()]) -> Response:
    """Take a judgment; the answer brings the comparison after the one that is already in the page."""
    submission = Submission(**form.model_dump(exclude={"held", "back"}))
    judgments.submit(visit.s, visit.project.id, visit.account.id, submission)
    lesson = checks.after(visit.s, visit.project.id, visit.account.id, form.comparison_id)
    if form.back:
        if wants_page(visit.request):
            return RedirectResponse(f"/p/{visit.project.slug}/{form.back}", 303)
        return answer(visit, [], form.held, lesson=lesson)
    return following(visit, form.held, lesson)


@router.post("/skip")
def skip(visit: Annotator, form: Annotated[SkipForm, Form()]) -> Response:
    """Leave a comparison to somebody else."""
    judgments.skip(visit.s, visit.project.id, visit.account.id, form.comparison_id, form.reason)
    lesson = checks.after(visit.s, visit.project.id, visit.account.id, form.comparison_id)
    return following(visit, form.held, lesson)


@router.post("/undo")
def undo(visit: Annotator, form: Annotated[HeldForm, Form()]) -> Response:
    """Withdraw the newest judgment and show its comparison again."""
    task = judgments.undo(visit.s, visit.project.id, visit.account.id)
    return answer(visit, [task], form.held, again=True)


@router.post("/next")
def more(visit: Annotator, form: Annotated[HeldForm, Form()]) -> Response:
    """What a page asks for while it has too few comparisons."""
    return following(visit, form.held)


def following(visit: Visit, held: Sequence[uuid.UUID], lesson: Lesson | None = None) -> Response:
    """The comparisons that the page does not have yet, up to one more than it has; none for whom may not have more."""
    if wants_page(visit.request):
        return RedirectResponse(f"/p/{visit.project.slug}/judge", 303)
    found = standing(visit.s, visit.project.id, visit.account.id)
    wanted = handed_work(found, min(max(IN_PAGE, len(held) + 1), MOST_IN_PAGE))
    leased = claims.claim(visit.s, visit.project.id, visit.account.id, wanted) if wanted else []
    tasks = [task for task in leased if task.comparison_id not in held]
    return answer(visit, tasks, held, found=found, lesson=lesson)


def handed_work(found: Standing, wanted: int) -> int:
    """How many comparisons this person may hold, of so many that the page would have."""
    if found.why is not None or found.unread is not None:
        return 0
    return wanted if found.left is None else min(wanted, found.left)


def answer(
    visit: Visit,
    tasks: Sequence[Task],
    held: Sequence[uuid.UUID],
    again: bool = False,
    found: Standing | None = None,
    lesson: Lesson | None = None,
) -> Response:
    """A fragment for the page's script; without scripts, the way back to the page."""
    if wants_page(visit.request):
        return RedirectResponse(f"/p/{visit.project.slug}/judge", 303)
    tally = judgments.tally(visit.s, visit.project.id, visit.account.id)
    shown = {"tasks": tasks, "held": held, "tally": tally, "again": again, "standing": found, "lesson": lesson}
    return page(visit, "judge/_next.html", **shown)

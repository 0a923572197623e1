"""How well people judge: one's own figures, everybody's for admins, and the gold that they are measured by."""

import uuid
from enum import StrEnum
from typing import Annotated, Literal

from fastapi import APIRouter, Form
from pydantic import BeforeValidator, Field
from starlette.responses import Response

from app.core.errors import Invalid
from app.core.vocabulary import Role
from app.store import checks, gold, quality
from app.store.gold import Certain
from app.store.models import Membership
from app.web.access import Policy, Visit, may
from app.web.forms import FormModel
from app.web.pages import go, page

router = APIRouter(prefix="/p/{slug}")
Annotator = Annotated[Visit, may(Policy.ANNOTATOR)]
Admin = Annotated[Visit, may(Policy.ADMIN)]
Sort = Literal["name", "judgments", "seconds", "consistency", "agreement", "gold", "left", "skill"]


class Act(StrEnum):
    """What an admin may do about somebody's judging."""

    PAUSE = "pause"
    RESUME = "resume"
    LEAVE_OUT = "leave-out"
    TAKE_IN = "take-in"
    QUALIFY = "qualify"
    TRY_AGAIN = "try-again"


class GoldForm(FormModel):
    """Gold from a comparison that exists: which of its answers, from 0, is the right one, and why."""

    comparison_id: uuid.UUID
    best: int = Field(ge=0, le=8)
    explanation: str = Field(max_length=gold.LONGEST_EXPLANATION)
    qualification: bool = False


class WrittenGoldForm(FormModel):
    """Gold typed by hand."""

    prompt: str = Field(max_length=gold.LONGEST_TEXT)
    answer: Annotated[list[str], BeforeValidator(lambda value: value if isinstance(value, list) else [value])] = Field(
        min_length=2, max_length=9
    )
    best: int = Field(ge=0, le=8)
    explanation: str = Field(max_length=gold.LONGEST_EXPLANATION)
    qualification: bool = False


@router.get("/me")
def me(visit: Annotator) -> Response:
    """One's own figures, each with what it means."""
    [mine] = quality.figures(visit.s, visit.project, visit.account.id)
    member = visit.s.get_one(Membership, (visit.project.id, visit.account.id))
    round_ = None
    if visit.project.qualify_on and visit.role is not Role.ADMIN:
        round_ = checks.progress(visit.s, member)
    return page(visit, "quality/me.html", here="me", mine=mine, round=round_)


@router.get("/quality")
def people(visit: Admin, sort: Sort = "skill") -> Response:
    """Everybody's figures, by a named column."""
    found = quality.by(quality.figures(visit.s, visit.project), sort)
    return page(visit, "quality/people.html", here="quality", people=found, sort=sort)


@router.post("/quality/{account_id}/{act}")
def act_on(visit: Admin, account_id: uuid.UUID, act: Act, form: Annotated[FormModel, Form()]) -> Response:
    """Pause somebody or go on, leave their judgments out or take them in, qualify them or let them try again."""
    s, project_id, by = visit.s, visit.project.id, visit.account.id
    if act in (Act.PAUSE, Act.RESUME):
        quality.pause(s, project_id, account_id, by, paused=act is Act.PAUSE)
    elif act in (Act.LEAVE_OUT, Act.TAKE_IN):
        quality.leave_out(s, project_id, account_id, by, out=act is Act.LEAVE_OUT)
    elif act is Act.QUALIFY:
        quality.qualify(s, project_id, account_id, by)
    else:
        quality.try_again(s, project_id, account_id, by)
    return go(visit.request, f"/p/{visit.project.slug}/quality")


@router.get("/gold")
def gold_page(visit: Admin, comparison: str = "") -> Response:
    """The gold there is, what could become gold, and a form to write some."""
    chosen: Certain | None = None
    if comparison:
        try:
            chosen = gold.one(visit.s, visit.project.id, uuid.UUID(comparison.strip()))
        except ValueError:
            raise Invalid("That is no id of a comparison.", "It looks like 0190a1b2-…, 36 characters long.") from None
    certain = gold.candidates(visit.s, visit.project.id, visit.project.answers)
    return page(
        visit,
        "quality/gold.html",
        here="quality",
        gold=gold.listed(visit.s, visit.project.id),
        certain=[chosen] if chosen else certain,
        chosen=chosen,
    )


@router.post("/gold")
def make_gold(visit: Admin, form: Annotated[GoldForm, Form()]) -> Response:
    """Make gold of a comparison."""
    answers = len(gold.one(visit.s, visit.project.id, form.comparison_id).answers)
    if form.best >= answers:
        raise Invalid("There is no such answer.", "Nothing was made.")
    tiers = [[form.best], [i for i in range(answers) if i != form.best]]
    by = visit.account.id
    gold.make_gold(visit.s, visit.project.id, form.comparison_id, tiers, form.explanation, form.qualification, by)
    return go(visit.request, f"/p/{visit.project.slug}/gold")


@router.post("/gold/write")
def write_gold(visit: Admin, form: Annotated[WrittenGoldForm, Form()]) -> Response:
    """Make gold of what was typed."""
    if form.best >= len(form.answer):
        raise Invalid("There is no such answer.", "Nothing was made.")
    gold.write_gold(
        visit.s,
        visit.project.id,
        form.prompt,
        form.answer,
        form.best,
        form.explanation,
        form.qualification,
        visit.account.id,
    )
    return go(visit.request, f"/p/{visit.project.slug}/gold")


@router.post("/gold/{comparison_id}/retire")
def retire_gold(visit: Admin, comparison_id: uuid.UUID, form: Annotated[FormModel, Form()]) -> Response:
    """Hand a gold comparison out no more."""
    gold.retire(visit.s, visit.project.id, comparison_id, visit.account.id)
    return go(visit.request, f"/p/{visit.project.slug}/gold")

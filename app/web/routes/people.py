"""The people of a project: invite, deactivate."""

import uuid
from typing import Annotated

from fastapi import APIRouter, Form
from starlette.responses import Response

from app.core.vocabulary import Role
from app.store import accounts
from app.web.access import Policy, Visit, may
from app.web.forms import FormModel, InviteForm
from app.web.pages import go, page, wants_page

router = APIRouter(prefix="/p/{slug}/people")
Admin = Annotated[Visit, may(Policy.ADMIN)]


@router.get("")
def people(visit: Admin) -> Response:
    """Who is here, in which role, and the form to invite more."""
    return people_page(visit)


@router.post("/invite")
def invite(visit: Admin, form: Annotated[InviteForm, Form()]) -> Response:
    """A one-time link, shown this once: only its hash is kept."""
    token = accounts.invite(visit.s, visit.project.id, form.role, visit.account.id)
    base = visit.settings.public_url or str(visit.request.base_url).rstrip("/")
    link = f"{base}/join/{token}"
    if wants_page(visit.request):
        return people_page(visit, link=link, invited=form.role)
    return page(visit, "people/_invited.html", link=link, invited=form.role)


@router.post("/{account_id}/deactivate")
def deactivate(visit: Admin, account_id: uuid.UUID, form: Annotated[FormModel, Form()]) -> Response:
    """Close the project to somebody; their judgments stay."""
    accounts.deactivate(visit.s, visit.project.id, account_id, visit.account.id)
    return go(visit.request, f"/p/{visit.project.slug}/people")


def people_page(visit: Visit, link: str = "", invited: Role | None = None) -> Response:
    """The page, with the link of a fresh invitation where there is one."""
    members = accounts.members(visit.s, visit.project.id)
    return page(
        visit, "people/people.html", here="people", members=members, roles=list(Role), link=link, invited=invited
    )

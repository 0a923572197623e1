"""The people of a project: invite, change a role, reset a password, deactivate; for the owner, whole accounts."""

import uuid
from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Form
from starlette.responses import Response

from app.core.errors import Invalid
from app.core.vocabulary import Role
from app.store import accounts, members, passwords
from app.web.access import Policy, Visit, may
from app.web.forms import EraseForm, FormModel, InviteForm, RoleForm
from app.web.pages import base_address, go, page, wants_page

router = APIRouter(prefix="/p/{slug}/people")
Admin = Annotated[Visit, may(Policy.ADMIN)]
Plain = Annotated[FormModel, Form()]


@router.get("")
def people(visit: Admin) -> Response:
    """Who is here, in which role, the invitations that are out, and the form to invite more."""
    return people_page(visit)


@router.post("/invite")
def invite(visit: Admin, form: Annotated[InviteForm, Form()]) -> Response:
    """A one-time link, shown this once: only its hash is kept."""
    lasts = timedelta(days=int(form.days))
    token = accounts.invite(visit.s, visit.project.id, form.role, visit.account.id, lasts, form.note)
    link = f"{base_address(visit)}/join/{token}"
    if wants_page(visit.request):
        return people_page(visit, link=link, invited=form.role)
    return page(visit, "people/_invited.html", link=link, invited=form.role)


@router.post("/invitations/{invitation_id}/revoke")
def revoke(visit: Admin, invitation_id: uuid.UUID, form: Plain) -> Response:
    """Make an open invitation worthless."""
    members.revoke(visit.s, visit.project.id, invitation_id, visit.account.id)
    return go(visit.request, f"/p/{visit.project.slug}/people")


@router.get("/{account_id}")
def person(visit: Admin, account_id: uuid.UUID) -> Response:
    """One person, and what may be done about them."""
    return person_page(visit, account_id)


@router.post("/{account_id}/role")
def set_role(visit: Admin, account_id: uuid.UUID, form: Annotated[RoleForm, Form()]) -> Response:
    """Another role in this project."""
    members.set_role(visit.s, visit.project.id, account_id, form.role, visit.account.id)
    return back(visit, account_id)


@router.post("/{account_id}/reset")
def reset(visit: Admin, account_id: uuid.UUID, form: Plain) -> Response:
    """A one-time link that sets a new password, shown this once: only its hash is kept."""
    whose = members.member(visit.s, visit.project.id, account_id)
    token = passwords.make_reset(visit.s, account_id, visit.account.id, visit.project.id)
    link = f"{base_address(visit)}/reset/{token}"
    if wants_page(visit.request):
        return person_page(visit, account_id, link=link)
    return page(visit, "people/_reset.html", link=link, one=whose)


@router.post("/{account_id}/deactivate")
def deactivate(visit: Admin, account_id: uuid.UUID, form: Plain) -> Response:
    """Close the project to somebody; their judgments stay."""
    accounts.deactivate(visit.s, visit.project.id, account_id, visit.account.id)
    return back(visit, account_id)


@router.post("/{account_id}/reactivate")
def reactivate(visit: Admin, account_id: uuid.UUID, form: Plain) -> Response:
    """Open it to them again."""
    members.reactivate(visit.s, visit.project.id, account_id, visit.account.id)
    return back(visit, account_id)


@router.post("/{account_id}/close")
def close(visit: Admin, account_id: uuid.UUID, form: Plain) -> Response:
    """The owner closes somebody's whole account."""
    members.member(visit.s, visit.project.id, account_id)
    members.close_account(visit.s, account_id, visit.account.id)
    return back(visit, account_id)


@router.post("/{account_id}/open")
def reopen(visit: Admin, account_id: uuid.UUID, form: Plain) -> Response:
    """The owner opens it again."""
    members.member(visit.s, visit.project.id, account_id)
    members.open_account(visit.s, account_id, visit.account.id)
    return back(visit, account_id)


@router.post("/{account_id}/erase")
def erase(visit: Admin, account_id: uuid.UUID, form: Annotated[EraseForm, Form()]) -> Response:
    """The owner clears who somebody is, for good."""
    one = members.member(visit.s, visit.project.id, account_id)
    if form.name.strip() != one.username:
        raise Invalid("The name that you typed is another one.", "Nothing was erased.")
    members.erase(visit.s, account_id, visit.account.id)
    return back(visit, account_id)


def back(visit: Visit, account_id: uuid.UUID) -> Response:
    """The person's page, as it is now."""
    return go(visit.request, f"/p/{visit.project.slug}/people/{account_id}")


def people_page(visit: Visit, link: str = "", invited: Role | None = None) -> Response:
    """The page, with the link of a fresh invitation where there is one."""
    return page(
        visit,
        "people/people.html",
        here="people",
        members=accounts.members(visit.s, visit.project.id),
        invitations=members.open_invitations(visit.s, visit.project.id),
        roles=list(Role),
        link=link,
        invited=invited,
    )


def person_page(visit: Visit, account_id: uuid.UUID, **context: Any) -> Response:
    """The page, with the link of a fresh reset where there is one."""
    s, me = visit.s, visit.account.id
    one = members.member(s, visit.project.id, account_id)
    usable = visit.settings.oidc_passwords or one.is_owner
    shared = {
        "here": "people",
        "one": one,
        "roles": list(Role),
        "provider": visit.request.app.state.provider,
        "is_me": account_id == me,
        "may_reset": usable and not one.account_closed and passwords.may_reset(s, me, account_id),
        "am_owner": accounts.is_owner(s, me),
        "link": "",
    }
    return page(visit, "people/person.html", **(shared | context))

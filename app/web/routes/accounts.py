"""Becoming the owner, joining, signing in and out."""

from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Form
from starlette.responses import Response

from app.core.errors import Conflict, Invalid
from app.core.messages import mark as _
from app.store import accounts
from app.store.models import Account
from app.web.access import Policy, Visit, may, signed_in
from app.web.forms import AccountForm, FormModel, SignInForm
from app.web.language import gettext
from app.web.oidc import Provider
from app.web.pages import go, local, page, render, wants_page
from app.web.security import client_of, drop_cookie, session_token, set_cookie, why_no_cookie

router = APIRouter()
Public = Annotated[Visit, may(Policy.PUBLIC)]
WRONG = _("This name and password do not belong together.")
WRONG_MEND = _("Check both and try again. If the password is lost, an admin can make a link that sets a new one.")


@router.get("/setup/{token}")
def setup(visit: Public, token: str) -> Response:
    """The form that makes the owner."""
    if accounts.owner(visit.s) is not None:
        raise Conflict("This link was used: the owner's account exists.", "Sign in with it.")
    return page(visit, "account/setup.html", token=token, provider=provider(visit))


@router.post("/setup/{token}")
def set_up(visit: Public, token: str, form: Annotated[AccountForm, Form()]) -> Response:
    """Make the owner, once."""
    must_keep_cookie(visit)
    account = accounts.create_owner(visit.s, token, form.username, form.password)
    return welcome(visit, account, "/")


@router.get("/sign-in")
def sign_in_page(visit: Public, next: str = "/", said: Literal["", "password"] = "") -> Response:
    """The form to sign in; `said` names what was done on the way here."""
    trouble = why_no_cookie(visit.request, visit.settings)
    return sign_in_form(visit, next, said=said, message=trouble and " ".join(map(gettext, trouble)), mend="")


@router.post("/sign-in")
def sign_in(visit: Public, form: Annotated[SignInForm, Form()]) -> Response:
    """Sign in; a wrong pair is answered alike for known and unknown names, and counted."""
    must_keep_cookie(visit)
    account = accounts.authenticate(visit.s, form.username, form.password, client_of(visit.request))
    if account is not None and (visit.settings.oidc_passwords or accounts.is_owner(visit.s, account.id)):
        return welcome(visit, account, local(form.next))
    # Returned, not raised: the transaction must commit, for it counts the attempt.
    if wants_page(visit.request):
        return sign_in_form(visit, form.next, status=401, message=gettext(WRONG), mend=gettext(WRONG_MEND))
    return Response(
        render("_notice.html", {"message": gettext(WRONG), "mend": gettext(WRONG_MEND)}), 401, media_type="text/html"
    )


@router.post("/sign-out")
def sign_out(visit: Public, form: Annotated[FormModel, Form()]) -> Response:
    """Sign this browser out."""
    token = session_token(visit.request)
    if token:
        accounts.close_session(visit.s, token)
    response = go(visit.request, "/sign-in")
    drop_cookie(response, visit.settings)
    # What the browser may have kept of private pages goes as well.
    response.headers["clear-site-data"] = '"cache"'
    return response


@router.get("/join/{token}")
def join_page(visit: Public, token: str) -> Response:
    """What the invitation is for, and the form to accept it."""
    invitation = accounts.invitation(visit.s, token)
    me = signed_in(visit.request, visit.s)
    return page(
        visit,
        "account/join.html",
        token=token,
        invitation=invitation,
        me=me,
        provider=provider(visit),
        passwords=visit.settings.oidc_passwords,
    )


@router.post("/join/{token}")
def join(visit: Public, token: str, form: Annotated[AccountForm, Form()]) -> Response:
    """Join, as whoever is signed in or by a new account."""
    must_keep_cookie(visit)
    me = signed_in(visit.request, visit.s)
    if me is not None and not form.username:
        accounts.accept_invitation(visit.s, token, account_id=me.id)
        return go(visit.request, "/")
    if not visit.settings.oidc_passwords:
        raise Invalid("Passwords are switched off here.", "Continue by the provider that the page names.")
    account = accounts.accept_invitation(visit.s, token, form.username, form.password)
    return welcome(visit, account, "/")


def sign_in_form(visit: Visit, next: str, **context: Any) -> Response:
    """The page, with whatever is to be said above the form."""
    shared = {"next": local(next), "said": "", "provider": provider(visit), "passwords": visit.settings.oidc_passwords}
    return page(visit, "account/sign_in.html", **(shared | context))


def provider(visit: Visit) -> Provider | None:
    """Who else signs people in, where somebody is configured."""
    found: Provider | None = visit.request.app.state.provider
    return found


def must_keep_cookie(visit: Visit) -> None:
    """Refuses to sign in where the browser could not stay signed in, and says why."""
    trouble = why_no_cookie(visit.request, visit.settings)
    if trouble:
        raise Invalid(*trouble)


def welcome(visit: Visit, account: Account, where: str) -> Response:
    """A fresh session for every sign-in, so that nobody can plant one beforehand."""
    old = session_token(visit.request)
    if old:
        accounts.close_session(visit.s, old)
    response = go(visit.request, quote(where, safe="/?=&%-_.~"))
    set_cookie(response, visit.request, accounts.open_session(visit.s, account.id))
    return response

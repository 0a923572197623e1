"""One's own account: the password, where one is signed in, the linked identity; and a lost password's link."""

from typing import Annotated

from fastapi import APIRouter, Form
from starlette.responses import Response

from app.core.errors import Invalid, NotFound
from app.store import accounts, credentials, identities, members, passwords
from app.store.models import Account
from app.web.access import Policy, Visit, may
from app.web.forms import BrowserForm, FormModel, PasswordForm, ResetForm
from app.web.pages import go, page, refusal
from app.web.routes.accounts import welcome
from app.web.security import client_of, session_token

router = APIRouter()
Public = Annotated[Visit, may(Policy.PUBLIC)]
SignedIn = Annotated[Visit, may(Policy.SIGNED_IN)]
# One answer for every link that sets nothing, so that trying tokens teaches nothing.
NO_LINK = NotFound("This link is not valid any more.", "It works once, for a day. Ask an admin for a new one.")


@router.get("/account")
def account(visit: SignedIn) -> Response:
    """Who one is here."""
    mine = session_token(visit.request) or ""
    return page(
        visit,
        "account/account.html",
        here="account",
        browsers=members.browsers(visit.s, visit.account.id),
        this=credentials.token_hash(mine).hex(),
        identities=identities.of_account(visit.s, visit.account.id),
        provider=visit.request.app.state.provider,
        passwords=may_use_password(visit, visit.account),
    )


@router.post("/account/password")
def change_password(visit: SignedIn, form: Annotated[PasswordForm, Form()]) -> Response:
    """Change the password with the current one. Every other browser is signed out, this one gets a fresh session."""
    if not may_use_password(visit, visit.account):
        raise Invalid("Passwords are switched off here.", "Sign in by the provider.")
    if passwords.change(visit.s, visit.account, form.current, form.password, client_of(visit.request)):
        return welcome(visit, visit.account, "/account")
    # Returned, not raised: the transaction must commit, for it counts the attempt.
    return refusal(visit.request, Invalid("The current password is not right.", "Nothing was changed."))


@router.post("/account/browsers/end")
def end_browsers(visit: SignedIn, form: Annotated[BrowserForm, Form()]) -> Response:
    """Sign out one of one's other browsers, or all of them."""
    mine = credentials.token_hash(session_token(visit.request) or "").hex()
    members.end_browsers(visit.s, visit.account.id, mine, form.browser)
    return go(visit.request, "/account")


@router.post("/account/unlink")
def unlink(visit: SignedIn, form: Annotated[FormModel, Form()]) -> Response:
    """Part one's account from who one is at the provider."""
    provider = visit.request.app.state.provider
    if provider is None:
        raise NotFound("There is no such page.")
    if not may_use_password(visit, visit.account):
        raise Invalid("Without it you could not sign in any more.", "Passwords are switched off here.")
    identities.unlink(visit.s, visit.account, provider.issuer)
    return go(visit.request, "/account")


@router.get("/reset/{token}")
def reset_page(visit: Public, token: str) -> Response:
    """The form that sets a new password."""
    whose = passwords.reset_of(visit.s, token)
    if whose is None:
        return refusal(visit.request, NO_LINK)
    return page(visit, "account/reset.html", token=token, whose=whose)


@router.post("/reset/{token}")
def reset(visit: Public, token: str, form: Annotated[ResetForm, Form()]) -> Response:
    """Set it, once.

    It signs nobody in: the link may have passed through other hands, and whoever types the new password shows that it
    is they who have it.
    """
    if passwords.use_reset(visit.s, token, form.password, client_of(visit.request)) is None:
        # Returned, not raised: the transaction must commit, for it counts the attempt.
        return refusal(visit.request, NO_LINK)
    return go(visit.request, "/sign-in?said=password")


def may_use_password(visit: Visit, account: Account) -> bool:
    """Whether this account may sign in by a password here."""
    return visit.settings.oidc_passwords or accounts.is_owner(visit.s, account.id)

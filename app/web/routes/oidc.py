"""Signing in by an OpenID Connect provider: the way there, and the way back."""

import hmac
from typing import Annotated

from fastapi import APIRouter, Form, Query
from starlette.responses import RedirectResponse, Response

from app.core.errors import Conflict, Forbidden, Invalid, NotFound, PairwrightError
from app.store import accounts, identities
from app.store.identities import Known
from app.store.models import Account
from app.web import oidc
from app.web.access import Policy, Visit, may, signed_in
from app.web.forms import FormModel
from app.web.oidc import Provider, Trip
from app.web.pages import base_address, local, page, refusal
from app.web.routes.accounts import must_keep_cookie, welcome

router = APIRouter()
Public = Annotated[Visit, may(Policy.PUBLIC)]
SignedIn = Annotated[Visit, may(Policy.SIGNED_IN)]
Text = Annotated[str, Query(max_length=4000)]


@router.get("/oidc/start")
def start(visit: Public, next: Text = "/", join: Text = "", setup: Text = "") -> Response:
    """To the provider, with what the person wants afterwards: a page, an invitation, or to own the installation."""
    must_keep_cookie(visit)
    return lead(visit, oidc.new_trip(next=local(next), join=join, setup=setup))


@router.post("/account/link")
def link(visit: SignedIn, form: Annotated[FormModel, Form()]) -> Response:
    """To the provider, to link who one is there. By POST: another site must not start this."""
    return lead(visit, oidc.new_trip(next="/account", link=str(visit.account.id)), posted=True)


@router.get("/oidc/callback")
def callback(visit: Public, state: Text = "", code: Text = "", error: Text = "", iss: Text = "") -> Response:
    """Back from the provider. The trip ends here, whatever comes of it."""
    provider_of(visit)
    try:
        response = arrive(visit, state, code, error, iss)
    except PairwrightError as refused:
        visit.s.rollback()
        response = refusal(visit.request, refused)
    oidc.end_trip(response, visit.settings)
    return response


def lead(visit: Visit, trip: Trip, posted: bool = False) -> Response:
    """Sends the browser to the provider. A form may lead nowhere else (form-action), so after one a link does."""
    provider = provider_of(visit)
    url = provider.way_there(trip, redirect_uri(visit))
    response: Response
    if visit.request.headers.get("hx-request"):
        response = Response(headers={"HX-Redirect": url})
    elif posted:
        response = page(visit, "account/go_on.html", url=url, provider=provider)
    else:
        response = RedirectResponse(url, 303)
    oidc.keep_trip(response, visit.request, trip)
    return response


def arrive(visit: Visit, state: str, code: str, error: str, iss: str) -> Response:
    """What an answer of the provider leads to."""
    provider, trip = provider_of(visit), oidc.trip_of(visit.request)
    if trip is None or not hmac.compare_digest(trip.state.encode(), state.encode()):
        raise Invalid(
            "This sign-in was not begun in this browser, or too long ago.", "Begin again at the sign-in page."
        )
    # An answer that another provider gave must not be taken for this one's.
    if (iss or provider.checks_sender()) and iss.rstrip("/") != provider.issuer.rstrip("/"):
        raise Forbidden("This answer came from another provider.", "Begin again at the sign-in page.")
    if error or not code:
        raise Forbidden(
            "You were not signed in by %(name)s.", "Nothing was changed. Begin again, or go back.", name=provider.name
        )
    return take(visit, trip, provider.who(trip, code, redirect_uri(visit)), provider)


def take(visit: Visit, trip: Trip, known: Known, provider: Provider) -> Response:
    """Links, signs in, or makes an account by an invitation: never by a name or an e-mail address that agrees."""
    s = visit.s
    if trip.link:
        me = signed_in(visit.request, s)
        if me is None or str(me.id) != trip.link:
            raise Conflict("Somebody else has signed in here since.", "Nothing was linked. Begin again.")
        identities.link(s, me.id, known)
        return RedirectResponse("/account", 303)
    account = identities.account_of(s, known)
    if account is not None:
        return let_in(visit, trip, account)
    if trip.setup:
        return welcome(visit, identities.own(s, trip.setup, known), "/")
    if trip.join:
        return welcome(visit, identities.join(s, trip.join, known), "/")
    raise Forbidden(
        "Nobody here is known by this account of %(name)s.",
        "Ask an admin for an invitation, open its link, and continue from there. If you have a password here, sign in "
        "with it and link the two on your account page.",
        name=provider.name,
    )


def let_in(visit: Visit, trip: Trip, account: Account) -> Response:
    """Signs somebody in who is known, and accepts the invitation that they came by."""
    if account.deactivated_at is not None:
        raise Forbidden("This account is deactivated.", "Ask an admin.")
    where = trip.next
    if trip.join:
        offer = accounts.invitation(visit.s, trip.join)
        where = "/"
        if accounts.membership(visit.s, offer.project_id, account.id) is None:
            accounts.accept_invitation(visit.s, trip.join, account_id=account.id)
    return welcome(visit, account, where)


def provider_of(visit: Visit) -> Provider:
    """The provider; where none is configured, none of this exists."""
    provider: Provider | None = visit.request.app.state.provider
    if provider is None:
        raise NotFound("There is no such page.")
    return provider


def redirect_uri(visit: Visit) -> str:
    """Where the provider leads back to; it must be registered there."""
    return f"{base_address(visit)}/oidc/callback"

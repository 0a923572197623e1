"""The web application. Importing it brings no torch: what trains and samples are other processes."""

import errno
import logging
from collections.abc import Mapping

import psycopg
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DataError, DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Scope

from app.core.errors import Forbidden, Invalid, NotFound, PairwrightError, Unavailable
from app.core.sampler import SamplerClient
from app.settings import Settings
from app.store import db, embedded
from app.web.forms import words_for
from app.web.oidc import Provider
from app.web.pages import STATIC, refusal, render
from app.web.routes import ROUTERS
from app.web.security import BrokenPage, RequestLog, SafeHeaders, SameSiteOnly, secure
from app.web.streams import Lanes

LARGEST_FORM = 1 << 20
DISK_FULL = Unavailable("The disk is full; nothing was stored.", "Free some space on the server, then try again.")


class KeptFiles(StaticFiles):
    """Static files that browsers keep for good under their hashed address, and ask about under the plain one."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """The file, or 404."""
        response = await super().get_response(path, scope)
        hashed = b"v=" in scope.get("query_string", b"")
        response.headers["cache-control"] = "public, max-age=31536000, immutable" if hashed else "no-cache"
        return response


class Broken(BrokenPage):
    """The page for what nobody foresaw."""

    def __call__(self, request: Request, request_id: str) -> ASGIApp:
        """A page for a person, a notice for a script."""
        error = PairwrightError(
            "Something broke on our side.", "What was saved before is safe. Try again; if it stays, tell an admin."
        )
        request.state.request_id = request_id
        response = refusal(request, error)
        if b"<html" in bytes(response.body):
            context = {"account": None, "project": None, "role": None, "here": "", "status": 500}
            text = {"message": error.message, "mend": error.mend, "request_id": request_id}
            return HTMLResponse(render("error.html", context | text), 500)
        response.status_code = 500
        return response


def create_app(settings: Settings) -> FastAPI:
    """The application over one database: the configured one, or the data folder's own, which must be running."""
    url = settings.database_url.get_secret_value() if settings.database_url else embedded.attach(settings.home)
    app = FastAPI(title="Pairwright", openapi_url=None, docs_url=None, redoc_url=None, max_body_size=LARGEST_FORM)
    app.state.settings = settings
    app.state.key = settings.signing_key()
    app.state.engine = db.make_engine(url, busy=True)
    app.state.provider = Provider(settings) if settings.oidc_issuer else None
    app.state.sessions = db.session_factory(app.state.engine)
    app.state.sampler = SamplerClient(settings.sampler_address)
    app.state.lanes = Lanes()
    for router in ROUTERS:
        app.include_router(router)
    app.mount("/static", GZipMiddleware(KeptFiles(directory=STATIC), minimum_size=1000), name="static")
    app.add_exception_handler(PairwrightError, on_refusal)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_malformed)
    for kind in (DBAPIError, psycopg.Error, PoolTimeout):
        app.add_exception_handler(kind, on_database_error)
    app.add_exception_handler(OSError, on_system_error)
    # The last added stands outermost.
    app.add_middleware(SameSiteOnly, public_url=settings.public_url)
    app.add_middleware(RequestLog, broken=Broken())
    app.add_middleware(SafeHeaders, https=secure(settings))
    logging.getLogger("pairwright.web").setLevel(settings.log_level.upper())
    return app


def on_refusal(request: Request, error: Exception) -> Response:
    """A refusal of the store, in its own words."""
    assert isinstance(error, PairwrightError)
    return refusal(request, error)


def on_http_error(request: Request, error: Exception) -> Response:
    """What the framework refuses: an unknown address, a method that is not there, a body that is too large."""
    assert isinstance(error, HTTPException)
    if disk_full(error.__cause__):
        return refusal(request, DISK_FULL)
    if error.status_code == 404:
        return refusal(request, NotFound("There is no such page.", "The address may be mistyped, or the thing gone."))
    told: Mapping[int, PairwrightError] = {
        405: Forbidden("This address does not take that kind of request."),
        413: Invalid("That is more than this form takes.", "Split the file and import the parts."),
    }
    response = refusal(request, told.get(error.status_code, Invalid("The request could not be read.")))
    response.status_code = error.status_code
    return response


def on_malformed(request: Request, error: Exception) -> Response:
    """A form or an address with something missing, misspelt or added. An id that is none is no page."""
    assert isinstance(error, RequestValidationError)
    if any(detail["loc"][0] == "path" for detail in error.errors()):
        return refusal(request, NotFound("There is no such page."))
    return refusal(request, Invalid(words_for(error.errors()), "Nothing was changed. Mend it and send it again."))


def on_database_error(request: Request, error: Exception) -> Response:
    """What the database refuses or cannot do: a full disk, a value that it cannot hold, an answer that does not come.

    Anything else is ours. A bulk copy raises the driver's own errors.
    """
    if disk_full(error):
        return refusal(request, DISK_FULL)
    if isinstance(error, DataError | psycopg.DataError):
        if any("\0" in str(value) for value in request.path_params.values()):
            return refusal(request, NotFound("There is no such page."))
        return refusal(request, Invalid("Something in this request cannot be stored.", "Nothing was changed."))
    away = OperationalError | psycopg.OperationalError | PoolTimeout
    gone = isinstance(error, away) or getattr(error, "connection_invalidated", False)
    if not gone:
        raise error
    message = "The database does not answer right now."
    return refusal(request, Unavailable(message, "Nothing was lost; this is tried again in a few seconds."))


def on_system_error(request: Request, error: Exception) -> Response:
    """A disk without room is said; anything else is ours."""
    if not disk_full(error):
        raise error
    return refusal(request, DISK_FULL)


def disk_full(error: BaseException | None) -> bool:
    """Whether an error, the driver's inside SQLAlchemy's or the system's own, says that the disk has no room."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return isinstance(getattr(error, "orig", error), psycopg.errors.DiskFull)

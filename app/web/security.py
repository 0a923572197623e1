"""What stands around every request: an id, a log line, safe headers, the refusal of other sites, the cookie."""

import hmac
import logging
import time
import traceback
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit

import uuid_utils.compat
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.settings import Settings, loopback
from app.store.accounts import SESSION_LASTS

log = logging.getLogger("pairwright.web")

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # Not "no-referrer": with that, browsers send "Origin: null" on our own forms.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}


class RequestLog:
    """Gives each request an id, logs one JSON line about it (never a text, a query or a token), answers what broke.

    It stands outermost, so that even an unforeseen error leaves with safe headers and a page in the house's voice.
    """

    def __init__(self, app: ASGIApp, broken: "BrokenPage") -> None:
        self.app = app
        self.broken = broken

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = uuid_utils.compat.uuid7().hex
        scope.setdefault("state", {})["request_id"] = request_id
        started = time.perf_counter()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except Exception as error:
            # Frames and the kind of error, not its message: messages of databases quote the values they refuse.
            frames = traceback.extract_tb(error.__traceback__)
            ours = [f for f in frames if "/app/" in f.filename] + frames[-2:]
            told = [f"{f.filename}:{f.lineno} {f.name}" for f in ours[-12:]]
            log.error({"request": request_id, "error": type(error).__name__, "frames": told})
            if status:
                raise
            await self.broken(Request(scope), request_id)(scope, receive, send_with_id)
        finally:
            route = scope.get("route")
            path = getattr(route, "path_format", None) or getattr(route, "path", None) or "-"
            line = {
                "request": request_id,
                "method": scope["method"],
                "route": path,
                "status": status,
                "ms": round((time.perf_counter() - started) * 1000, 1),
            }
            log.info(line)


class BrokenPage:
    """Makes the answer to an unforeseen error; told at start how the product renders it."""

    def __call__(self, request: Request, request_id: str) -> ASGIApp:
        raise NotImplementedError


class SafeHeaders:
    """Sets the safe headers on every answer; whatever says nothing of caching is not stored anywhere."""

    def __init__(self, app: ASGIApp, https: bool) -> None:
        self.app = app
        self.headers = dict(HEADERS)
        if https:
            self.headers["strict-transport-security"] = "max-age=31536000"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self.headers.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            await send(message)

        await self.app(scope, receive, send_safely if scope["type"] == "http" else send)


class SameSiteOnly:
    """Refuses every request that may change something and that another site has caused.

    Browsers say so in Sec-Fetch-Site; older ones in Origin. A program that sends neither is no browser, and has no
    cookie that anybody could abuse.
    """

    def __init__(self, app: ASGIApp, public_url: str | None) -> None:
        self.app = app
        self.public_host = urlsplit(public_url).netloc if public_url else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in SAFE_METHODS and self.foreign(Headers(scope=scope)):
            refusal = Response(
                "This request came from another site and was refused. Nothing was changed.",
                403,
                media_type="text/plain",
            )
            await refusal(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def foreign(self, headers: Headers) -> bool:
        """Whether these headers say that another site, or a page without an origin, is behind the request."""
        site = headers.get("sec-fetch-site")
        if site is not None:
            return site not in ("same-origin", "none")
        origin = headers.get("origin")
        if origin is None:
            return False
        return urlsplit(origin).netloc not in {headers.get("host"), self.public_host} - {None}


def cookie_name(settings: Settings) -> str:
    """`__Host-` binds the cookie to this very host and to https; browsers refuse the prefix on plain http."""
    return "__Host-pairwright" if secure(settings) else "pairwright"


def secure(settings: Settings) -> bool:
    """Whether people reach the product by https."""
    return (settings.public_url or "").startswith("https://")


def signed(key: str, token: str) -> str:
    """A session's token with its HMAC-SHA-256 under the installation's secret, as the cookie carries it."""
    return f"{token}.{hmac.digest(key.encode(), token.encode(), 'sha256').hex()}"


def session_token(request: Request) -> str | None:
    """The token in the request's cookie; None where there is none or we did not sign it, and no query is spent."""
    carried = request.cookies.get(cookie_name(request.app.state.settings), "")
    token = carried.rpartition(".")[0]
    genuine = hmac.compare_digest(signed(request.app.state.key, token).encode(), carried.encode())
    return token if token and genuine else None


def set_cookie(response: Response, request: Request, token: str) -> None:
    """Keeps a signed-in browser signed in."""
    settings: Settings = request.app.state.settings
    response.set_cookie(
        cookie_name(settings),
        signed(request.app.state.key, token),
        max_age=int(SESSION_LASTS.total_seconds()),
        path="/",
        secure=secure(settings),
        httponly=True,
        samesite="lax",
    )


def client_of(request: Request) -> str:
    """Whose attempts count together: the client's address, of IPv6 the /64 that one household or server owns."""
    host = request.client.host if request.client else ""
    try:
        address = ip_address(host)
    except ValueError:
        return host
    return str(ip_network((address, 64), strict=False)) if address.version == 6 else host


def drop_cookie(response: Response, settings: Settings) -> None:
    """Forgets the browser."""
    response.delete_cookie(cookie_name(settings), path="/", secure=secure(settings), httponly=True, samesite="lax")


def why_no_cookie(request: Request, settings: Settings) -> tuple[str, str] | None:
    """Why a sign-in at this address could not keep its cookie, and what to do; None where it can."""
    if secure(settings):
        origin = request.headers.get("origin", "")
        if origin.startswith("http://"):
            return (
                "This page was opened over plain http, where the browser will not keep the sign-in.",
                f"Open {settings.public_url}/sign-in instead.",
            )
        return None
    if settings.allow_plain_http or loopback(request.url.hostname or ""):
        return None
    return (
        "This address is plain http beyond the machine itself, so a sign-in here could be read on the way.",
        "Put https in front and set PAIRWRIGHT_PUBLIC_URL to its address; on a network that you trust, "
        "PAIRWRIGHT_ALLOW_PLAIN_HTTP=true allows it as it is.",
    )

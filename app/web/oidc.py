"""OpenID Connect, the relying party's side: the way to the provider and back, and what an ID token must prove.

Authorization code with PKCE. `state` and `nonce` are bound to the browser by a signed cookie of ten minutes. Nothing is
believed but an ID token that came from the token endpoint itself and carries a signature of the provider's keys.
"""

import base64
import hmac
import logging
import secrets
import ssl
import threading
import time
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import httpx2
from authlib.common.errors import AuthlibBaseError
from authlib.integrations.httpx_client import OAuth2Client
from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import BadSignatureError, InvalidKeyIdError, JoseError
from joserfc.jwk import KeySet
from joserfc.jws import JWSRegistry
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from app.core.errors import Forbidden, Unavailable
from app.settings import Settings, loopback
from app.store.identities import Known
from app.web.security import secure

log = logging.getLogger("pairwright.web")

TRIP_LASTS_S = 600
METADATA_LASTS_S = 600
TIMEOUT_S = 10
LEEWAY_S = 60
# Asymmetric ones only: with these, nobody but the provider can sign, and `none` is no algorithm.
ALGORITHMS = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"})
NAMES = ("preferred_username", "nickname", "name", "email")


class Trip(BaseModel):
    """One way to the provider and back: what binds the answer to this browser, and what the person wanted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: str
    nonce: str
    verifier: str
    until: float
    next: str = "/"
    join: str = ""
    setup: str = ""
    # The account that the identity is to be linked to.
    link: str = ""


def new_trip(**wanted: str) -> Trip:
    """A trip that begins now."""
    state, nonce, verifier = (secrets.token_urlsafe(48) for _ in range(3))
    return Trip(state=state, nonce=nonce, verifier=verifier, until=time.time() + TRIP_LASTS_S, **wanted)


def cookie_name(settings: Settings) -> str:
    """Bound to this very host on https, as the session's."""
    return "__Host-pairwright-oidc" if secure(settings) else "pairwright-oidc"


def keep_trip(response: Response, request: Request, trip: Trip) -> None:
    """Binds the trip to the browser."""
    settings: Settings = request.app.state.settings
    body = base64.urlsafe_b64encode(trip.model_dump_json().encode()).decode().rstrip("=")
    response.set_cookie(
        cookie_name(settings),
        f"{body}.{_mac(request, body)}",
        max_age=TRIP_LASTS_S,
        path="/",
        secure=secure(settings),
        httponly=True,
        # Lax: the provider leads back from another site.
        samesite="lax",
    )


def trip_of(request: Request) -> Trip | None:
    """The trip that this browser is on; None where there is none, it is not ours, or it took too long."""
    body, _, mac = request.cookies.get(cookie_name(request.app.state.settings), "").partition(".")
    if not body or not hmac.compare_digest(_mac(request, body).encode(), mac.encode()):
        return None
    try:
        trip = Trip.model_validate_json(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except ValidationError:
        return None
    return trip if trip.until > time.time() else None


def end_trip(response: Response, settings: Settings) -> None:
    """Each trip ends at its first answer, right or wrong."""
    response.delete_cookie(cookie_name(settings), path="/", secure=secure(settings), httponly=True, samesite="lax")


def _mac(request: Request, body: str) -> str:
    # The prefix keeps this signature apart from the session cookie's.
    return hmac.digest(request.app.state.key.encode(), b"oidc trip\0" + body.encode(), "sha256").hex()


@cache
def trusted() -> ssl.SSLContext:
    """The certificates that are trusted; reading them takes longer than a sign-in should."""
    return httpx2.create_ssl_context()


class Provider:
    """The configured provider: what it says of itself, its keys, and the two requests of a sign-in."""

    def __init__(self, settings: Settings) -> None:
        assert settings.oidc_issuer is not None
        assert settings.oidc_client_id is not None
        self.issuer, self.client_id, self.name = settings.oidc_issuer, settings.oidc_client_id, settings.oidc_name
        self.scopes = settings.oidc_scopes
        secret = settings.oidc_client_secret
        self.secret = secret.get_secret_value() if secret else None
        self.here = loopback(urlsplit(self.issuer).hostname or "")
        self._lock = threading.Lock()
        self._metadata: dict[str, Any] = {}
        self._keys: KeySet | None = None
        self._read_at = -float(METADATA_LASTS_S)

    def way_there(self, trip: Trip, redirect_uri: str) -> str:
        """The provider's address to send the browser to."""
        with self._client(redirect_uri) as client:
            url, _ = client.create_authorization_url(
                self._about()["authorization_endpoint"],
                state=trip.state,
                nonce=trip.nonce,
                code_verifier=trip.verifier,
                response_type="code",
            )
        return str(url)

    def who(self, trip: Trip, code: str, redirect_uri: str) -> Known:
        """Redeems the code and says who was signed in. Forbidden for an answer that proves nothing."""
        about = self._about()
        with self._client(redirect_uri) as client:
            try:
                token = client.fetch_token(
                    about["token_endpoint"], grant_type="authorization_code", code=code, code_verifier=trip.verifier
                )
                claims = self._proven(token.get("id_token"), trip.nonce, token.get("access_token"))
                subject = claims.get("sub")
                if not isinstance(subject, str) or not 0 < len(subject) <= 255:
                    raise Forbidden("sub")
                if not any(claims.get(name) for name in NAMES) and about.get("userinfo_endpoint"):
                    claims = claims | self._told(client, about["userinfo_endpoint"], subject)
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                raise self._away(error) from None
            except (AuthlibBaseError, JoseError, Forbidden, KeyError, TypeError, ValueError) as error:
                # The kind of failure only: tokens and names stay out of the log.
                log.warning({"oidc": "refused", "error": type(error).__name__})
                raise Forbidden(
                    "The answer of %(name)s could not be verified.", "Begin again.", name=self.name
                ) from None
        names = [claims[name] for name in NAMES if isinstance(claims.get(name), str)]
        return Known(self.issuer, subject, names)

    def checks_sender(self) -> bool:
        """Whether the provider promises to name itself in its answers (RFC 9207), so that a missing name is wrong."""
        return bool(self._about().get("authorization_response_iss_parameter_supported"))

    def _proven(self, id_token: object, nonce: str, access_token: object) -> dict[str, Any]:
        if not isinstance(id_token, str):
            raise Forbidden("id_token")
        offered = self._about().get("id_token_signing_alg_values_supported") or ["RS256"]
        registry = JWSRegistry(algorithms=sorted(ALGORITHMS & set(offered)), strict_check_header=False)
        try:
            token = jwt.decode(id_token, self._key_set(), registry=registry)
        except (InvalidKeyIdError, BadSignatureError):
            # The provider may have new keys since.
            self._forget()
            token = jwt.decode(id_token, self._key_set(), registry=registry)
        claims = CodeIDToken(
            token.claims,
            token.header,
            {
                "iss": {"essential": True, "value": self._about()["issuer"]},
                "aud": {"essential": True, "value": self.client_id},
                "nonce": {"essential": True},
            },
            {"nonce": nonce, "client_id": self.client_id, "access_token": access_token},
        )
        claims.validate(leeway=LEEWAY_S)
        return dict(claims)

    def _told(self, client: Any, url: str, subject: str) -> dict[str, Any]:
        """What the provider adds about the same subject; nothing where it says nothing usable."""
        response = client.get(self._safe(url))
        told = response.json() if response.status_code == 200 else {}
        return dict(told) if isinstance(told, dict) and told.get("sub") == subject else {}

    def _about(self) -> dict[str, Any]:
        """The provider's metadata, read anew every ten minutes."""
        with self._lock:
            if time.monotonic() - self._read_at < METADATA_LASTS_S:
                return self._metadata
            about = self._fetch(f"{self.issuer.rstrip('/')}/.well-known/openid-configuration")
            # Trailing slashes are mistyped by everybody; anything else means that somebody else answers.
            if str(about.get("issuer", "")).rstrip("/") != self.issuer.rstrip("/"):
                raise self._away(ValueError("issuer"))
            for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
                self._safe(about.get(name))
            self._metadata, self._keys, self._read_at = about, None, time.monotonic()
            return about

    def _key_set(self) -> KeySet:
        about = self._about()
        with self._lock:
            if self._keys is None:
                self._keys = KeySet.import_key_set(self._fetch(about["jwks_uri"]))  # type: ignore[arg-type]
            return self._keys

    def _forget(self) -> None:
        with self._lock:
            self._keys = None

    def _fetch(self, url: str) -> dict[str, Any]:
        try:
            with httpx2.Client(
                timeout=TIMEOUT_S, verify=trusted(), follow_redirects=False, trust_env=not self.here
            ) as client:
                response = client.get(url)
            found = response.json() if response.status_code == 200 else None
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
            raise self._away(error) from None
        if not isinstance(found, dict):
            raise self._away(ValueError("document"))
        return found

    def _safe(self, url: object) -> str:
        """An address of the provider's metadata: https, or this machine where the issuer is on it too."""
        parts = urlsplit(url if isinstance(url, str) else "")
        if parts.scheme == "https" or (parts.scheme == "http" and self.here and loopback(parts.hostname or "")):
            return str(url)
        raise self._away(ValueError("address"))

    def _client(self, redirect_uri: str) -> OAuth2Client:
        return OAuth2Client(
            client_id=self.client_id,
            client_secret=self.secret,
            token_endpoint_auth_method=self._auth_method(),
            scope=self.scopes,
            redirect_uri=redirect_uri,
            code_challenge_method="S256",
            **self._asks(),
        )

    def _asks(self) -> dict[str, Any]:
        """How the provider is asked: not for long, and wherever it would redirect to, nobody follows."""
        proxies = not self.here
        return {"timeout": TIMEOUT_S, "follow_redirects": False, "verify": trusted(), "trust_env": proxies}

    def _auth_method(self) -> str:
        if self.secret is None:
            return "none"
        offered = self._about().get("token_endpoint_auth_methods_supported") or ["client_secret_basic"]
        return "client_secret_basic" if "client_secret_basic" in offered else "client_secret_post"

    def _away(self, error: Exception) -> Unavailable:
        log.warning({"oidc": "no answer", "error": type(error).__name__})
        return Unavailable(
            "%(name)s does not answer as it should right now.",
            "Try again in a minute. Passwords go on working.",
            name=self.name[:1].upper() + self.name[1:],
        )

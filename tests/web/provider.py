"""A small complete OpenID Connect provider, a process of its own, for tests: `python -m tests.web.provider PORT_FD`.

Discovery, an authorization endpoint with a sign-in form, a token endpoint that checks client, redirect address, PKCE
and that a code is used once, RS256 keys that rotate, userinfo. PUT /twist with JSON makes it lie in one way at a time,
as an attacker who sits there would.
"""

import base64
import hashlib
import hmac
import html
import json
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
from joserfc import jwt
from joserfc.jwk import RSAKey
from joserfc.jws import JWSRegistry

CLIENT, SECRET = "pairwright", "a-secret-of-the-client"
ROOT = Path(__file__).parents[2]
PEOPLE = {
    "grace": {"sub": "sub-grace", "preferred_username": "grace", "name": "Grace Hopper", "email": "grace@example.org"},
    "alan": {"sub": "sub-alan", "name": "Alan Turing"},
    "bare": {"sub": "sub-bare"},
}


class Provider:
    """What the provider knows: its keys, the codes that it gave out, and how it lies."""

    def __init__(self, port: int) -> None:
        self.issuer = f"http://127.0.0.1:{port}"
        self.codes: dict[str, dict[str, str]] = {}
        self.access: dict[str, dict[str, Any]] = {}
        self.twist: dict[str, Any] = {}
        self.rotate()

    def rotate(self) -> None:
        """New keys; the old ones are gone."""
        self.key = RSAKey.generate_key(2048, {"kid": secrets.token_hex(4), "use": "sig", "alg": "RS256"})

    def metadata(self) -> dict[str, Any]:
        """The discovery document."""
        at = self.issuer
        return {
            "issuer": at,
            "authorization_endpoint": f"{at}/authorize",
            "token_endpoint": f"{at}/token",
            "userinfo_endpoint": f"{at}/userinfo",
            "jwks_uri": f"{at}/keys",
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "code_challenge_methods_supported": ["S256"],
            "authorization_response_iss_parameter_supported": True,
        } | self.twist.get("metadata", {})

    def id_token(self, given: dict[str, str]) -> str:
        """A signed ID token, or what the twist makes of it."""
        now = int(time.time())
        claims: dict[str, Any] = {"iss": self.issuer, "aud": CLIENT, "iat": now, "exp": now + 300}
        claims |= {"nonce": given["nonce"], "sub": PEOPLE[given["login"]]["sub"]}
        if given["login"] != "bare":
            claims |= PEOPLE[given["login"]]
        claims |= self.twist.get("claims", {})
        claims = {name: value for name, value in claims.items() if value is not None}
        how = self.twist.get("sign", "RS256")
        if how in ("none", "HS256"):
            head = {"alg": how, "kid": self.key.kid}
            signed = ".".join(plain(json.dumps(part).encode()) for part in (head, claims))
            if how == "none":
                return f"{signed}."
            # The public key, taken for a shared secret.
            return f"{signed}.{plain(hmac.digest(self.key.as_pem(private=False), signed.encode(), 'sha256'))}"
        key = RSAKey.generate_key(2048, {"kid": self.key.kid}) if how == "stranger" else self.key
        registry = JWSRegistry(algorithms=["RS256"])
        return jwt.encode({"alg": "RS256", "kid": self.key.kid}, claims, key, registry=registry)


def plain(raw: bytes) -> str:
    """base64url without padding."""
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


class Handler(BaseHTTPRequestHandler):
    """The endpoints."""

    provider: Provider

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def say(self, status: int, body: object, kind: str = "application/json", **headers: str) -> None:
        text = body if isinstance(body, str) else json.dumps(body)
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(text.encode())))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(text.encode())

    def form(self) -> dict[str, str]:
        raw = self.rfile.read(int(self.headers.get("content-length", 0))).decode()
        return {name: values[0] for name, values in parse_qs(raw).items()}

    def do_GET(self) -> None:
        p, url = self.provider, urlsplit(self.path)
        asked = {name: values[0] for name, values in parse_qs(url.query).items()}
        if url.path == "/.well-known/openid-configuration":
            if p.twist.get("moved"):
                self.say(302, "", location=p.twist["moved"])
            else:
                self.say(200, p.metadata())
        elif url.path == "/keys":
            self.say(200, {"keys": [p.key.as_dict(private=False)]})
        elif url.path == "/userinfo":
            token = self.headers.get("authorization", "").removeprefix("Bearer ")
            told = p.access.get(token)
            self.say(200 if told else 401, (told or {}) | p.twist.get("userinfo", {}))
        elif url.path == "/authorize":
            fields = "".join(
                f'<input type="hidden" name="{html.escape(name)}" value="{html.escape(value)}">'
                for name, value in asked.items()
            )
            page = (
                '<!doctype html><html lang="en"><title>Provider</title><form method="post" action="/authorize">'
                f"{fields}"
                '<label>Login <input name="login"></label><button>Allow</button>'
                '<button name="deny" value="1">Deny</button></form></html>'
            )
            self.say(200, page, "text/html")
        else:
            self.say(404, {})

    def do_POST(self) -> None:
        p, form = self.provider, self.form()
        if urlsplit(self.path).path == "/authorize":
            back = {"state": form["state"], "iss": p.twist.get("answer_iss", p.issuer)}
            if form.get("deny"):
                back["error"] = "access_denied"
            elif form.get("response_type") != "code" or "openid" not in form.get("scope", "").split():
                back["error"] = "invalid_request"
            else:
                back["code"] = secrets.token_urlsafe(24)
                p.codes[back["code"]] = form
            self.say(303, "", location=f"{form['redirect_uri']}?{urlencode({k: v for k, v in back.items() if v})}")
        elif self.path == "/token":
            self.token(form)
        else:
            self.say(404, {})

    def token(self, form: dict[str, str]) -> None:
        p = self.provider
        kept = base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
        if self.headers.get("authorization") != f"Basic {kept}":
            self.say(401, {"error": "invalid_client"})
            return
        given = p.codes.pop(form.get("code", ""), None)
        challenge = plain(hashlib.sha256(form.get("code_verifier", "").encode()).digest())
        if (
            given is None
            or given["redirect_uri"] != form.get("redirect_uri")
            or given.get("code_challenge_method") != "S256"
            or given.get("code_challenge") != challenge
        ):
            self.say(400, {"error": "invalid_grant"})
            return
        access = secrets.token_urlsafe(24)
        p.access[access] = PEOPLE[given["login"]] | ({"name": "Bare Name"} if given["login"] == "bare" else {})
        answer = {"access_token": access, "token_type": "Bearer", "expires_in": 300, "id_token": p.id_token(given)}
        self.say(200, answer | p.twist.get("token", {}), cache_control="no-store")

    def do_PUT(self) -> None:
        self.provider.twist = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.provider.twist.get("rotate"):
            self.provider.rotate()
        self.say(200, {})


class Running:
    """The provider's process, from outside."""

    def __init__(self, address: str) -> None:
        self.address = address

    def lie(self, **twist: Any) -> None:
        """From now on, lie in this way; nothing: be honest."""
        httpx.put(f"{self.address}/twist", json=twist, trust_env=False).raise_for_status()

    def sign_in(self, way: str, login: str, **changed: str) -> str:
        """What a person does there, without a browser: allow. Returns the address that leads back."""
        asked = {name: values[0] for name, values in parse_qs(urlsplit(way).query).items()}
        form = asked | {"login": login} | changed
        answer = httpx.post(f"{self.address}/authorize", data=form, trust_env=False, follow_redirects=False)
        return answer.headers["location"]


@contextmanager
def running() -> Iterator[Running]:
    """A fresh provider on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.web.provider", str(listener.fileno())], cwd=ROOT, pass_fds=[listener.fileno()]
        )
        try:
            # The listener is open already: the first request waits until the process takes it.
            httpx.get(f"http://127.0.0.1:{port}/keys", timeout=30, trust_env=False).raise_for_status()
            yield Running(f"http://127.0.0.1:{port}")
        finally:
            process.terminate()
            process.wait(10)


def main() -> None:
    """Serve on a socket that was handed over."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    Handler.provider = Provider(listener.getsockname()[1])
    server.serve_forever()


if __name__ == "__main__":
    main()

"""Passwords and one-time tokens: what is stored can never be used to get in."""

import hashlib
import secrets
import threading
import unicodedata

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from app.core.errors import Invalid

MIN_PASSWORD, MAX_PASSWORD = 10, 256

# 19 MiB and two passes: OWASP's minimum for argon2id. The semaphore bounds what a burst of sign-ins can take.
_hasher = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
_at_once = threading.BoundedSemaphore(2)

# What an unknown name is checked against, so that it costs as much as a known one.
_NOBODY = _hasher.hash(secrets.token_hex(16))


def new_token() -> str:
    """256 random bits, safe in a URL and in a cookie."""
    return secrets.token_urlsafe(32)


def token_hash(token: str) -> bytes:
    """What is stored of a token; SHA-256 is enough for 256 random bits."""
    return hashlib.sha256(token.encode()).digest()


def hash_password(password: str) -> str:
    """The argon2id hash to store; Invalid for a password that is too short or absurdly long."""
    if len(password) < MIN_PASSWORD:
        raise Invalid(
            "The password needs at least %(least)s characters.", "A short sentence works well.", least=MIN_PASSWORD
        )
    if len(password) > MAX_PASSWORD:
        raise Invalid("The password may have at most %(most)s characters.", most=MAX_PASSWORD)
    with _at_once:
        return _hasher.hash(password)


def password_matches(stored: str | None, password: str) -> bool:
    """Whether this is the password; None (nobody of that name) costs the same and is never right."""
    with _at_once:
        try:
            right = _hasher.verify(stored or _NOBODY, password[: MAX_PASSWORD + 1])
        except (VerificationError, InvalidHashError):
            return False
    return right and stored is not None


def username_key(username: str) -> str:
    """Names that look alike to a careless reader are one name: NFKC and case folded."""
    return unicodedata.normalize("NFKC", username).casefold().strip()


def clean_username(username: str) -> str:
    """A username as it will be shown; Invalid for an empty, long or unprintable one."""
    name = unicodedata.normalize("NFKC", username).strip()
    if not 2 <= len(name) <= 64 or not name.isprintable() or any(letter.isspace() for letter in name):
        raise Invalid("A username has 2 to 64 visible characters and no spaces.")
    return name

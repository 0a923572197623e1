"""Who somebody is at an OpenID Connect provider, and which account that is here."""

import unicodedata
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import delete, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.core.errors import Conflict, Invalid
from app.store import accounts, audit, credentials
from app.store.models import Account, Identity

LONGEST_NAME = 64


@dataclass(frozen=True)
class Known:
    """What a provider vouches for: the issuer and its subject, and the names that it suggests, best first.

    Names only suggest a username. No account is ever found by one, nor by an e-mail address: those change hands.
    """

    issuer: str
    subject: str
    names: Sequence[str] = ()


def account_of(s: Session, known: Known) -> Account | None:
    """The account that this identity is linked to, deactivated or not."""
    return s.scalars(
        select(Account)
        .join(Identity, Identity.account_id == Account.id)
        .where(Identity.issuer == known.issuer, Identity.subject == known.subject)
    ).one_or_none()


def of_account(s: Session, account_id: uuid.UUID) -> list[Identity]:
    """The identities that sign in as this account."""
    return list(s.scalars(select(Identity).where(Identity.account_id == account_id).order_by(Identity.created_at)))


def link(s: Session, account_id: uuid.UUID, known: Known) -> None:
    """Let this identity sign in as this account. Conflict where it, or another of its issuer, is linked already."""
    held = [one for one in of_account(s, account_id) if one.issuer == known.issuer]
    if held and held[0].subject == known.subject:
        return
    if held:
        raise Conflict("Another account of the same provider is linked already.", "Unlink it first.")
    made = s.execute(
        insert(Identity)
        .values(issuer=known.issuer, subject=known.subject, account_id=account_id)
        .on_conflict_do_nothing()
        .returning(Identity.account_id)
    ).one_or_none()
    if made is None:
        raise Conflict("This account at the provider belongs to somebody else here.", "Nothing was changed.")
    audit.record(s, None, account_id, "identity.link", str(account_id))


def unlink(s: Session, account: Account, issuer: str) -> None:
    """End signing in by this issuer. Invalid where no other way in would be left."""
    if account.password_hash is None:
        raise Invalid("Without it you could not sign in any more.", "Ask an admin for a link that sets a password.")
    s.execute(delete(Identity).where(Identity.account_id == account.id, Identity.issuer == issuer))
    audit.record(s, None, account.id, "identity.unlink", str(account.id))


def join(s: Session, token: str, known: Known) -> Account:
    """Accept an invitation by a new account that this identity signs in as. Raises as `accounts.invitation`."""
    account = accounts.accept_invitation(s, token, free_username(s, known.names), None)
    link(s, account.id, known)
    return account


def own(s: Session, token: str, known: Known) -> Account:
    """Make the owner, who signs in by this identity. Raises as `accounts.create_owner`."""
    account = accounts.create_owner(s, token, free_username(s, known.names), None)
    link(s, account.id, known)
    return account


def free_username(s: Session, names: Sequence[str]) -> str:
    """The first usable name, made to fit and told apart from those that are taken by a number."""
    wished = next((name for name in map(fit, names) if len(name) >= 2), "person")
    taken = set(
        s.scalars(
            select(Account.username_key).where(
                Account.username_key.startswith(credentials.username_key(wished)[: LONGEST_NAME - 8], autoescape=True)
            )
        )
    )
    name, number = wished, 1
    while credentials.username_key(name) in taken:
        number += 1
        name = f"{wished[: LONGEST_NAME - 8]}-{number}"
    return name


def fit(name: str) -> str:
    """A name as a username can be: without what follows an @, printable, words joined by dots, not too long."""
    plain = unicodedata.normalize("NFKC", name).strip().partition("@")[0]
    kept = "".join(letter if letter.isprintable() else " " for letter in plain)
    return ".".join(kept.split())[:LONGEST_NAME].strip(".")

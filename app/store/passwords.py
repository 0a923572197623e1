"""New passwords: by one's own, or by a link that an admin makes."""

import uuid
from datetime import timedelta

from sqlalchemy import delete, func, select, text, update
from sqlalchemy.orm import Session

from app.core.errors import Conflict, Forbidden, Invalid, NotFound, TooMany
from app.store import accounts, audit, credentials
from app.store.models import Account, AccountKind, PasswordReset, SignInThrottle

RESET_LASTS = timedelta(days=1)
# A token has 256 bits, so this hinders no guessing: it bounds the hashing that strangers can cause.
THROTTLE_RESETS = 20

# Whose password somebody may have set anew. The owner: everybody's. An admin: of people who are in no project that this
# admin does not administer, and who are neither the owner nor an admin anywhere. Else one project's admin could become
# somebody with more rights. Memberships that are closed count: they can be opened again.
_RESETTABLE = text(
    """
    SELECT a.id FROM account a JOIN account me ON me.id = :by AND me.deactivated_at IS NULL
    WHERE a.kind = 'person' AND a.erased_at IS NULL AND (
        EXISTS (SELECT FROM owner o WHERE o.account_id = me.id)
        OR (
            NOT EXISTS (SELECT FROM owner o WHERE o.account_id = a.id)
            AND EXISTS (SELECT FROM membership m WHERE m.account_id = a.id)
            AND NOT EXISTS (
                SELECT FROM membership m
                WHERE m.account_id = a.id AND (m.role = 'admin' OR NOT EXISTS (
                    SELECT FROM membership mine
                    WHERE mine.account_id = me.id AND mine.project_id = m.project_id
                        AND mine.role = 'admin' AND mine.deactivated_at IS NULL
                ))
            )
        )
    ) AND a.id = :account
    """
)


def may_reset(s: Session, by: uuid.UUID | None, account_id: uuid.UUID) -> bool:
    """Whether `by` may have this account's password set anew; None stands for the machine's operator, who may."""
    if by is None:
        return True
    return s.execute(_RESETTABLE, {"by": by, "account": account_id}).first() is not None


def make_reset(s: Session, account_id: uuid.UUID, by: uuid.UUID | None, project_id: uuid.UUID | None = None) -> str:
    """A one-time token that sets a new password within a day; earlier ones of this account are void."""
    account = s.scalars(select(Account).where(Account.id == account_id).with_for_update()).one_or_none()
    if account is None or account.kind is not AccountKind.PERSON or account.erased_at is not None:
        raise NotFound("There is no such person.")
    if not may_reset(s, by, account_id):
        raise Forbidden(
            "This person's password is not yours to reset.",
            "They are an admin, or also belong to a project that is not yours: ask the owner of the installation.",
        )
    if account.deactivated_at is not None:
        raise Conflict("This account is deactivated.", "Reactivate it first.")
    token = credentials.new_token()
    s.execute(delete(PasswordReset).where(PasswordReset.account_id == account_id, PasswordReset.used_at.is_(None)))
    expires = func.clock_timestamp() + RESET_LASTS
    s.add(
        PasswordReset(
            token_hash=credentials.token_hash(token), account_id=account_id, created_by=by, expires_at=expires
        )
    )
    s.flush()
    audit.record(s, project_id, by, "password.reset_link", str(account_id))
    return token


def reset_of(s: Session, token: str) -> Account | None:
    """Whose password a token sets; None alike for one that is unknown, used, void, expired or not anyone's to give."""
    found = _open_reset(s, token)
    return found[1] if found else None


def _open_reset(s: Session, token: str, *, lock: bool = False) -> tuple[PasswordReset, Account] | None:
    query = (
        select(PasswordReset, Account)
        .join(Account, Account.id == PasswordReset.account_id)
        .where(
            PasswordReset.token_hash == credentials.token_hash(token),
            PasswordReset.used_at.is_(None),
            PasswordReset.expires_at > func.now(),
            Account.deactivated_at.is_(None),
            Account.erased_at.is_(None),
        )
        .execution_options(populate_existing=True)
    )
    row = s.execute(query.with_for_update() if lock else query).one_or_none()
    # Asked again at use: since the link was made, they may have become an admin, or joined somebody else's project.
    if row is None or not may_reset(s, row[0].created_by, row[1].id):
        return None
    return row[0], row[1]


def use_reset(s: Session, token: str, password: str, address: str = "") -> Account | None:
    """Set the password, use the token up and sign every browser of the account out; None as `reset_of`.

    Raises Invalid for a password that will not do, and TooMany. Commit even when it returns None: it counts attempts.
    """
    counted = credentials.token_hash(f"reset\0{address}")
    if accounts.attempts(s, counted) > THROTTLE_RESETS:
        raise TooMany("Too many attempts from this address.", "Wait five minutes and try again.")
    # Hashed before anything is looked up: the same work for every token.
    hashed = credentials.hash_password(password)
    found = _open_reset(s, token, lock=True)
    if found is None:
        return None
    reset, account = found
    reset.used_at = accounts.now(s)
    _set(s, account, hashed)
    s.execute(delete(SignInThrottle).where(SignInThrottle.name_hash == counted))
    audit.record(s, None, account.id, "password.reset", str(account.id))
    return account


def change(s: Session, account: Account, current: str, new: str, address: str = "") -> bool:
    """Change one's own password and sign every browser of the account out; False where `current` is not it.

    Raises Invalid, and TooMany as signing in does. Commit even when it returns False.
    """
    if account.username is None or account.password_hash is None:
        raise Invalid("This account has no password.", "An admin can make a link that sets one.")
    if accounts.authenticate(s, account.username, current, address) is None:
        return False
    _set(s, account, credentials.hash_password(new))
    audit.record(s, None, account.id, "password.change", str(account.id))
    return True


def _set(s: Session, account: Account, hashed: str) -> None:
    s.execute(update(Account).where(Account.id == account.id).values(password_hash=hashed))
    s.execute(delete(PasswordReset).where(PasswordReset.account_id == account.id, PasswordReset.used_at.is_(None)))
    # Who guessed at the old password does not keep the new one out.
    key = credentials.token_hash(account.username_key or "")
    s.execute(delete(SignInThrottle).where(SignInThrottle.name_hash == key))
    accounts.close_all_sessions(s, account.id)

"""People and how they prove who they are."""

import uuid
from datetime import datetime
from enum import StrEnum

from sqlalchemy import CheckConstraint, ForeignKey, Index, LargeBinary, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from app.store.models.base import Base, Created, Id, words


class AccountKind(StrEnum):
    """A `person` signs in; an `imported` annotator is only a name for judgments that were made elsewhere."""

    PERSON = "person"
    IMPORTED = "imported"


class Account(Base):
    """Somebody who judges or runs projects. Deactivated, never deleted: the judgments stay.

    `username_key` is the case-folded username. Erasure clears both and the password, and keeps the row. Without a
    password somebody signs in by an `Identity` only.
    """

    __tablename__ = "account"
    __table_args__ = (
        CheckConstraint("(username IS NULL) = (username_key IS NULL)", name="username_with_key"),
        CheckConstraint("username IS NOT NULL OR password_hash IS NULL", name="password_with_username"),
        CheckConstraint("kind = 'person' OR username IS NULL", name="imported_cannot_sign_in"),
        CheckConstraint("kind = 'imported' OR username IS NOT NULL OR erased_at IS NOT NULL", name="person_signs_in"),
    )

    id: Mapped[Id]
    kind: Mapped[AccountKind] = mapped_column(words(AccountKind, "kind"), default=AccountKind.PERSON)
    username: Mapped[str | None] = mapped_column(Text)
    username_key: Mapped[str | None] = mapped_column(Text, unique=True)
    password_hash: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[Created]
    deactivated_at: Mapped[datetime | None]
    erased_at: Mapped[datetime | None]


class Owner(Base):
    """The one row that says whose installation this is; a second row cannot exist."""

    __tablename__ = "owner"
    __table_args__ = (CheckConstraint("singleton", name="only_one"),)

    singleton: Mapped[bool] = mapped_column(primary_key=True, default=True)
    account_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("account.id"), unique=True)
    created_at: Mapped[Created]


class Identity(Base):
    """Who somebody is at an OpenID Connect provider: its issuer and the subject that it names them by."""

    __tablename__ = "identity"
    __table_args__ = (Index(None, "account_id"),)

    issuer: Mapped[str] = mapped_column(Text, primary_key=True)
    subject: Mapped[str] = mapped_column(Text, primary_key=True)
    account_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("account.id"))
    created_at: Mapped[Created]


class PasswordReset(Base):
    """A one-time link that sets a new password; only the hash of its token is kept."""

    __tablename__ = "password_reset"
    __table_args__ = (Index(None, "account_id"),)

    token_hash: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    account_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("account.id"))
    created_by: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("account.id"))
    created_at: Mapped[Created]
    expires_at: Mapped[datetime]
    used_at: Mapped[datetime | None]


class SetupToken(Base):
    """The hash of the one-time token that makes the owner; at most one is valid."""

    __tablename__ = "setup_token"
    __table_args__ = (CheckConstraint("singleton", name="only_one"),)

    singleton: Mapped[bool] = mapped_column(primary_key=True, default=True)
    token_hash: Mapped[bytes] = mapped_column(LargeBinary)
    expires_at: Mapped[datetime]
    created_at: Mapped[Created]


class SignIn(Base):
    """A signed-in browser: the hash of a 256-bit random token that only its cookie holds."""

    __tablename__ = "sign_in"
    __table_args__ = (Index(None, "account_id"), Index(None, "expires_at"))

    token_hash: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    account_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("account.id"))
    created_at: Mapped[Created]
    expires_at: Mapped[datetime]


class SignInThrottle(Base):
    """How often one name was tried since `since`, from everywhere or from one address.

    `name_hash` is of the name, or of the name and the address: people type passwords into that field.
    """

    __tablename__ = "sign_in_throttle"

    name_hash: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    attempts: Mapped[int] = mapped_column(server_default=text("0"))
    since: Mapped[Created]

"""Every setting of an installation: environment variables named PAIRWRIGHT_*, typed, with safe defaults.

`docs/settings.md` is generated from this file (`python -m app settings`).
"""

import os
import secrets
import stat
import tempfile
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

# sockaddr_un holds 108 bytes on Linux and 104 on macOS, with the closing zero.
LONGEST_SOCKET_PATH = 100


class SettingsError(ValueError):
    """A setting, or the data folder it names, that cannot be used: what is wrong, and what mends it."""

    def __init__(self, message: str, mend: str) -> None:
        super().__init__(message)
        self.message = message
        self.mend = mend


class Settings(BaseSettings):
    """The settings of one installation; read once a process by `get_settings`."""

    model_config = SettingsConfigDict(env_prefix="PAIRWRIGHT_", frozen=True, extra="ignore", env_ignore_empty=True)

    home: Path = Field(
        Path(".pairwright"),
        description="The data folder: embedded database, runs, checkpoints, the generated secret. Made with mode 0700.",
    )
    database_url: SecretStr | None = Field(
        None,
        description="Any Postgres, as postgresql://user:password@host:port/name. "
        "Unset: an embedded Postgres in the data folder.",
    )
    host: str = Field("127.0.0.1", description="The address the web process listens on.")
    port: int = Field(8000, ge=1, le=65535, description="The port the web process listens on.")
    web_processes: int = Field(
        1, ge=1, le=64, description="How many web processes `serve` runs on that port; two serve a few dozen people."
    )
    public_url: str | None = Field(
        None, description="The address that people type, where it differs, as https://judge.example.org behind a proxy."
    )
    secret_key: SecretStr | None = Field(
        None,
        description="Keys what the product signs: 32 characters or more, not a few repeated ones. "
        "Unset: generated into the data folder, mode 0600.",
    )
    oidc_issuer: str | None = Field(
        None,
        description="Single sign-on by OpenID Connect beside passwords: the provider's issuer address, https. "
        "Register PUBLIC_URL/oidc/callback there as the redirect address.",
    )
    oidc_client_id: str | None = Field(None, description="The client that the provider knows this installation by.")
    oidc_client_secret: SecretStr | None = Field(
        None, description="The client's secret. Unset: a public client, by PKCE alone."
    )
    oidc_name: str = Field(
        "single sign-on",
        description="What people call the provider: the button reads Continue with NAME.",
        max_length=40,
    )
    oidc_scopes: str = Field(
        "openid profile email", description="What the provider is asked for; openid must be there."
    )
    oidc_passwords: bool = Field(
        True, description="off: with single sign-on set, only the owner may still sign in by a password."
    )
    allow_plain_http: bool = Field(
        False, description="Keep people signed in over plain http beyond this machine. Only for a network you trust."
    )
    starter: Literal["standard", "tiny"] = Field(
        "standard", description="The size of the starter policy; tiny trains in seconds and writes nonsense, for tests."
    )
    policy: str | None = Field(
        None, description="A hub id or a folder of a causal language model to start from instead of the starter policy."
    )
    heldout_share: float = Field(0.1, gt=0, lt=1, description="The share of prompts held out, for a new project.")
    pool_target: int = Field(64, ge=1, le=10_000, description="How many pairs wait ready, for a new project.")
    lease_seconds: int = Field(
        600, ge=10, le=86_400, description="How long a served pair is kept for one person, for a new project."
    )
    sampler_url: str | None = Field(
        None,
        description="An OpenAI-compatible server that holds the policies. Unset: our own sampler, on a Unix socket.",
    )
    worker_poll_s: float = Field(
        0.5, gt=0, le=60, description="Seconds between two looks of the worker at the queue and the pool."
    )
    training_threads: int = Field(
        0, ge=0, le=1024, description="CPU threads of a training process; 0: one for each core."
    )
    sampler_threads: int = Field(0, ge=0, le=1024, description="CPU threads of the sampler; 0: one for each core.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="What the processes log. Logs hold ids, never texts or secrets, at every level."
    )

    @field_validator("home", mode="after")
    @classmethod
    def _absolute(cls, home: Path) -> Path:
        return home.expanduser().resolve()

    @field_validator("public_url", "sampler_url", mode="after")
    @classmethod
    def _is_address(cls, url: str | None) -> str | None:
        if url is not None and not url.startswith(("http://", "https://", "unix:")):
            raise ValueError("must start with http:// or https://")
        return url.rstrip("/") if url else url

    @field_validator("database_url", mode="after")
    @classmethod
    def _is_postgres(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and not url.get_secret_value().startswith(
            ("postgresql://", "postgres://", "postgresql+psycopg://")
        ):
            raise ValueError("must be a Postgres address, postgresql://user:password@host:port/name")
        return url

    @field_validator("secret_key", mode="after")
    @classmethod
    def _is_strong(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None and not strong(key.get_secret_value()):
            raise ValueError("is weak: give 32 characters or more, at least 10 of them different, or leave it unset")
        return key

    @field_validator("oidc_issuer", mode="after")
    @classmethod
    def _is_issuer(cls, url: str | None) -> str | None:
        parts = urlsplit(url or "")
        if url is not None and not parts.hostname:
            raise ValueError("must be the provider's address, as https://login.example.org/realm")
        if (
            url is not None
            and parts.scheme != "https"
            and not (parts.scheme == "http" and loopback(parts.hostname or ""))
        ):
            raise ValueError("must start with https://, for who answers there decides who signs in here")
        return url

    @field_validator("oidc_scopes", mode="after")
    @classmethod
    def _asks_who(cls, scopes: str) -> str:
        if "openid" not in scopes.split():
            raise ValueError("must name openid")
        return scopes

    @model_validator(mode="after")
    def _single_sign_on_is_whole(self) -> Self:
        if self.oidc_issuer is not None and self.oidc_client_id is None:
            raise ValueError("PAIRWRIGHT_OIDC_ISSUER needs PAIRWRIGHT_OIDC_CLIENT_ID beside it")
        if self.oidc_client_id is not None and self.oidc_issuer is None:
            raise ValueError("PAIRWRIGHT_OIDC_CLIENT_ID needs PAIRWRIGHT_OIDC_ISSUER beside it")
        if self.oidc_issuer is None and not self.oidc_passwords:
            raise ValueError("PAIRWRIGHT_OIDC_PASSWORDS can be off only where PAIRWRIGHT_OIDC_ISSUER is set")
        return self

    @model_validator(mode="after")
    def _public_host_is_meant(self) -> Self:
        if self.public_url is not None and self.public_url.startswith("unix:"):
            raise ValueError("public_url must start with http:// or https://")
        return self

    @property
    def runs_dir(self) -> Path:
        """One folder a run: what its training process reads and writes."""
        return self.home / "runs"

    @property
    def checkpoints_dir(self) -> Path:
        """One folder a checkpoint, named by its id; immutable."""
        return self.home / "checkpoints"

    @property
    def address(self) -> str:
        """Where people reach the product, without a closing slash."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        if self.host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
            host = "127.0.0.1"
        return self.public_url or f"http://{host}:{self.port}"

    @property
    def sampler_address(self) -> str:
        """What the sampler's client connects to: the configured server, else our own Unix socket."""
        return self.sampler_url or f"unix:{self.sampler_socket}"

    @property
    def sampler_socket(self) -> Path:
        """The sampler's Unix socket: in the data folder, or where that path is too long, in a private folder."""
        inside = self.home / "sampler.sock"
        if len(os.fsencode(inside)) <= LONGEST_SOCKET_PATH:
            return inside
        return self._private_temporary_folder() / "sampler.sock"

    def make_home(self) -> Self:
        """Makes the data folder and what stands in it, for the owner's eyes only; raises what a person can mend."""
        try:
            self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in (self.runs_dir, self.checkpoints_dir):
                folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise SettingsError(
                f"The data folder {self.home} cannot be made: {error.strerror}.",
                "Set PAIRWRIGHT_HOME to a folder that you may write.",
            ) from None
        if self.home.stat().st_uid == os.geteuid() and stat.S_IMODE(self.home.stat().st_mode) & 0o077:
            self.home.chmod(0o700)
        return self

    def signing_key(self) -> str:
        """The configured secret, else the one of this data folder, made on first use with mode 0600."""
        if self.secret_key is not None:
            return self.secret_key.get_secret_value()
        path = self.home / "secret"
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            key = path.read_text().strip()
            if not strong(key):
                raise SettingsError(
                    f"The secret in {path} is weak.",
                    "Delete the file; the next start makes a new one, and everyone signs in again.",
                ) from None
            return key
        key = secrets.token_urlsafe(48)
        with os.fdopen(descriptor, "w") as file:
            file.write(key + "\n")
        return key

    def _private_temporary_folder(self) -> Path:
        """A 0700 folder of our own under the system's temporary folder, remembered in the data folder."""
        note = self.home / "socket-folder"
        if note.exists():
            folder = Path(note.read_text().strip())
            if folder.is_dir() and not folder.is_symlink():
                held = folder.stat()
                if held.st_uid == os.geteuid() and not held.st_mode & 0o077:
                    return folder
        folder = Path(tempfile.mkdtemp(prefix="pairwright-"))
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        note.write_text(f"{folder}\n")
        return folder


def loopback(host: str) -> bool:
    """Whether this host name is the machine itself."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def strong(secret: str) -> bool:
    """Long enough, and not a few characters over and over."""
    return len(secret) >= 32 and len(set(secret)) >= 10


@cache
def get_settings() -> Settings:
    """The settings of this process; a `SettingsError` names the first variable that is wrong."""
    try:
        # A folder of files named pairwright_database_url and so on, as container secrets are mounted.
        return Settings(_secrets_dir=os.environ.get("PAIRWRIGHT_SECRETS_DIR"))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        # What is wrong with several together names them itself.
        name = "".join(f"PAIRWRIGHT_{str(part).upper()}: " for part in first["loc"][:1])
        reason = first["msg"].removeprefix("Value error, ")
        raise SettingsError(f"{name}{reason}.", "docs/settings.md describes each setting.") from None

"""`pairwright doctor`: what is wrong with an installation, and what mends it."""

import os
import shutil
import stat
import sys
from collections.abc import Generator, Iterator
from importlib.metadata import PackageNotFoundError, version

import typer
from sqlalchemy import text

from app.cli.settings_page import OTHERS
from app.core.errors import PairwrightError
from app.jobs import database
from app.settings import Settings, SettingsError, get_settings
from app.store import embedded, migrate
from app.store.db import make_engine

ENOUGH_DISK = 2 << 30

Finding = tuple[str, str | None]
"""What was looked at, and what is wrong with it with its mend; None where it is well."""


def add_to(cli: typer.Typer) -> None:
    """Hang the commands of this file into the command line."""
    cli.command()(doctor)


def doctor() -> None:
    """Look at everything the product needs; one line each. Exit code 1 when something is wrong."""
    sick = False
    for name, wrong in findings():
        typer.echo(f"{'ok   ' if wrong is None else 'WRONG'} {name}{'' if wrong is None else ': ' + wrong}")
        sick = sick or wrong is not None
    raise typer.Exit(1 if sick else 0)


def findings() -> Iterator[Finding]:
    """Every check in order. Later ones are left out where an earlier one makes them senseless."""
    yield "Python 3.11 or newer", None if sys.version_info >= (3, 11) else "Make .venv anew with a newer Python."
    yield _torch()
    try:
        settings = get_settings()
    except SettingsError as error:
        yield "settings", f"{error.message} {error.mend}"
        return
    known = {f"PAIRWRIGHT_{name.upper()}" for name in Settings.model_fields} | set(OTHERS)
    unknown = sorted(name for name in os.environ if name.startswith("PAIRWRIGHT_") and name not in known)
    yield "settings", f"{', '.join(unknown)}: no such setting; docs/settings.md lists them." if unknown else None
    yield from _home(settings)
    url = yield from _database(settings)
    yield "sampler", _sampler(settings)
    if url is not None:
        yield "worker", _worker(url)


def _torch() -> Finding:
    try:
        return f"torch {version('torch')}", None
    except PackageNotFoundError:
        return "torch", "It is not installed. `make run` installs it."


def _home(settings: Settings) -> Iterator[Finding]:
    name = f"data folder {settings.home}"
    if not settings.home.is_dir():
        yield name, "It is not there yet. The first `pairwright serve` makes it."
        return
    mode = stat.S_IMODE(settings.home.stat().st_mode)
    if mode & 0o077:
        yield name, f"Others may read it (mode {mode:o}). Run chmod 700 on it."
    elif not os.access(settings.home, os.W_OK | os.X_OK):
        yield name, "This user may not write it. Run as its owner, or set PAIRWRIGHT_HOME."
    else:
        yield name, None
    free = shutil.disk_usage(settings.home).free
    wrong = (
        f"Only {free >> 20} MB are free; training needs about {ENOUGH_DISK >> 20} MB." if free < ENOUGH_DISK else None
    )
    yield f"disk ({free >> 30} GB free)", wrong


def _database(settings: Settings) -> Generator[Finding, None, str | None]:
    try:
        if settings.database_url is None:
            url = embedded.attach(settings.home)
        else:
            url = settings.database_url.get_secret_value()
            database.check(url)
    except PairwrightError as error:
        yield "database", f"{error.message} {error.mend}"
        return None
    yield "database", None
    try:
        wrong = {
            "current": None,
            "empty": "It is empty. Run `pairwright migrate`.",
            "behind": "It has an older schema. Run `pairwright migrate`.",
            "ahead": "It was made by a newer version of Pairwright. Install that one.",
        }[migrate.state(url)]
        yield "schema", wrong
    finally:
        if settings.database_url is None:
            embedded.stop(settings.home)
    return url if wrong is None else None


def _sampler(settings: Settings) -> str | None:
    from app.core.sampler import SamplerClient

    if SamplerClient(settings.sampler_address).healthy():
        return None
    return "It does not answer. It runs with `pairwright serve`, or `pairwright worker`."


def _worker(url: str) -> str | None:
    """A run whose lease ran out has no worker; one that waits while nothing runs has none either."""
    engine = make_engine(url, pool_size=1)
    try:
        with engine.connect() as connection:
            stuck = connection.execute(
                text("SELECT count(*) FROM run WHERE status = 'running' AND lease_expires_at < now()")
            ).scalar_one()
    finally:
        engine.dispose()
    return (
        f"{stuck} runs have no worker. Start `pairwright worker`; they go on from their checkpoints." if stuck else None
    )

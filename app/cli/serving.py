"""Commands that run the product: serve, web, worker, migrate, settings, version."""

import os
import socket
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer

from app.cli.settings_page import settings_page
from app.core import logs
from app.core.errors import Conflict, PairwrightError
from app.settings import Settings, get_settings


def add_to(cli: typer.Typer) -> None:
    """Hang the commands of this file into the command line."""
    for command in (serve, web, worker, migrate):
        cli.command()(command)
    cli.command("owner-link")(owner_link)
    cli.command("settings")(show_settings)
    cli.command("version")(show_version)


def serve(
    host: Annotated[str | None, typer.Option(help="The address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="The port to listen on.")] = None,
    policy: Annotated[str | None, typer.Option(help="A hub id or folder to start from, not our starter.")] = None,
    home: Annotated[Path | None, typer.Option(help="The data folder.")] = None,
) -> None:
    """Run everything: database, web, worker and sampler. Ctrl-C stops all of it in order."""
    given = {"HOST": host, "PORT": port, "POLICY": policy, "HOME": home}
    os.environ.update({f"PAIRWRIGHT_{name}": str(value) for name, value in given.items() if value is not None})
    get_settings.cache_clear()
    settings = _ready("serve")
    from app.jobs import supervisor

    if not supervisor.serve(settings, say=typer.echo):
        raise typer.Exit(1)


def web(
    migrate: Annotated[
        bool, typer.Option("--migrate", help="Bring the database to this version's schema first.")
    ] = False,
    fd: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run the web process alone, on the configured database."""
    settings = _ready("web")
    if fd is not None:
        with socket.socket(fileno=fd) as listener:
            _serve_web(settings, listener)
        return
    from app.jobs import database, supervisor

    with supervisor.listening(settings) as listener, database.opened(settings) as url:
        if migrate:
            database.migrated(url)
        os.environ["PAIRWRIGHT_DATABASE_URL"] = url
        get_settings.cache_clear()
        _serve_web(get_settings(), listener)


def worker() -> None:
    """Run a worker alone, on the configured database: it samples, fills the pool and trains."""
    settings = _ready("worker")
    from app.jobs import database, supervisor
    from app.jobs.worker import work

    try:
        with database.opened(settings) as url:
            work(settings, url)
    except PairwrightError as error:
        typer.echo(f"error: {error.message} {error.mend}".rstrip(), err=True)
        # A database that has just died comes back: whoever started this worker starts it again.
        raise typer.Exit(1 if isinstance(error, database.NoAnswer) else supervisor.CANNOT_GO_ON) from None


def migrate() -> None:
    """Bring the database to the schema of this version."""
    settings = _ready("migrate")
    from app.jobs import database

    with database.opened(settings) as url:
        database.migrated(url)
    typer.echo("The database has the schema of this version.")


def owner_link() -> None:
    """Print a new one-time link that makes the owner, while nobody owns the installation."""
    settings = get_settings()
    from app.jobs import database, supervisor

    with database.opened(settings) as url:
        link = supervisor.owner_link(settings, url)
    if link is None:
        raise Conflict("This installation has its owner.", "They invite others with `pairwright invite`.")
    typer.echo(link)


def show_settings() -> None:
    """Print docs/settings.md, made from the settings' own descriptions."""
    typer.echo(settings_page(), nl=False)


def show_version() -> None:
    """Print the version."""
    try:
        typer.echo(version("pairwright"))
    except PackageNotFoundError:
        typer.echo("not installed: run from a clone")


def _ready(process: str) -> Settings:
    """What every long-lived process does first: its files are for its own user alone, its logs hold ids only."""
    os.umask(0o077)
    settings = get_settings()
    logs.set_up(process, settings.log_level)
    return settings


def _serve_web(settings: Settings, listener: socket.socket) -> None:
    import uvicorn

    from app.web.main import create_app

    config = uvicorn.Config(
        create_app(settings),
        log_config=None,
        access_log=False,
        server_header=False,
        # Behind a proxy the public address says what people typed; headers are believed from this machine only.
        proxy_headers=settings.public_url is not None,
        # People read for longer than the usual five seconds: a judgment then costs one round trip, not two.
        timeout_keep_alive=75,
        timeout_graceful_shutdown=8,
    )
    uvicorn.Server(config).run(sockets=[listener])

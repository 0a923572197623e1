"""Commands about people: invite, reset-password, and what annotators are asked to go by."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from app.cli.opening import ProjectOption, acting, project_named, store
from app.core.errors import Invalid, NotFound
from app.core.vocabulary import Role
from app.settings import get_settings
from app.store import accounts, passwords, projects


def add_to(cli: typer.Typer) -> None:
    """Hang the commands of this file into the command line."""
    cli.command()(invite)
    cli.command("reset-password")(reset_password)
    cli.command()(guidelines)


def invite(
    role: Annotated[Role, typer.Argument(help="What the person will be.")], project: ProjectOption = None
) -> None:
    """Print a one-time link by which one person joins a project; it works for a week."""
    with store() as sessions, sessions.begin() as session:
        found = project_named(session, project)
        token = accounts.invite(session, found.id, role, by=acting(session))
        name = found.name
    typer.echo(f"For one {role} of {name}, once, within a week:\n  {get_settings().address}/join/{token}")


def guidelines(
    file: Annotated[
        Path | None, typer.Argument(help="Markdown to make the new version, or - for standard input.")
    ] = None,
    project: ProjectOption = None,
) -> None:
    """Print a project's guidelines, or make a file the new version, which everybody is then asked to read."""
    if file is not None and str(file) != "-" and not file.is_file():
        raise NotFound(f"There is no file {file}.", "Give the path of a text file.")
    with store() as sessions, sessions.begin() as session:
        found = project_named(session, project)
        if file is None:
            typer.echo(projects.guidelines(session, found.id))
            return
        try:
            body = (sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()).decode()
        except UnicodeDecodeError:
            raise Invalid("The guidelines are not UTF-8 text.", "Save the file as UTF-8, then try again.") from None
        before = found.guideline_version
        version = projects.revise_guidelines(session, found.id, body, acting(session))
        name = found.name
    typer.echo(f"Nothing has changed: version {version}." if version == before else f"{name}: version {version}.")


def reset_password(name: Annotated[str, typer.Argument(help="Whose password was lost; the owner's too.")]) -> None:
    """Print a one-time link that sets a new password; it works for a day. Earlier ones of this person are void."""
    with store() as sessions, sessions.begin() as session:
        account = accounts.account_named(session, name)
        token = passwords.make_reset(session, account.id, None)
        known = account.username
    typer.echo(f"For {known}, once, within a day:\n  {get_settings().address}/reset/{token}")

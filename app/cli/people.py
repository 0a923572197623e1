"""Commands about people: invite, reset-password."""

from typing import Annotated

import typer

from app.cli.opening import ProjectOption, acting, project_named, store
from app.core.vocabulary import Role
from app.settings import get_settings
from app.store import accounts, passwords


def add_to(cli: typer.Typer) -> None:
    """Hang the commands of this file into the command line."""
    cli.command()(invite)
    cli.command("reset-password")(reset_password)


def invite(
    role: Annotated[Role, typer.Argument(help="What the person will be.")], project: ProjectOption = None
) -> None:
    """Print a one-time link by which one person joins a project; it works for a week."""
    with store() as sessions, sessions.begin() as session:
        found = project_named(session, project)
        token = accounts.invite(session, found.id, role, by=acting(session))
        name = found.name
    typer.echo(f"For one {role} of {name}, once, within a week:\n  {get_settings().address}/join/{token}")


def reset_password(name: Annotated[str, typer.Argument(help="Whose password was lost; the owner's too.")]) -> None:
    """Print a one-time link that sets a new password; it works for a day. Earlier ones of this person are void."""
    with store() as sessions, sessions.begin() as session:
        account = accounts.account_named(session, name)
        token = passwords.make_reset(session, account.id, None)
        known = account.username
    typer.echo(f"For {known}, once, within a day:\n  {get_settings().address}/reset/{token}")

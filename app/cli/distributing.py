"""Commands about who is asked what: votes, prioritise."""

import uuid
from typing import Annotated

import typer
from sqlalchemy import select

from app.cli.opening import ProjectOption, acting, project_named, store
from app.core.errors import Invalid
from app.core.vocabulary import CheckpointKind
from app.store import comparisons
from app.store.models import Checkpoint, Comparison


def add_to(cli: typer.Typer) -> None:
    """Hang the commands of this file into the command line."""
    cli.command()(votes)
    cli.command()(prioritise)


def votes(
    wanted: Annotated[int, typer.Argument(min=1, max=comparisons.MOST_VOTES, help="Votes for each comparison.")],
    project: ProjectOption = None,
) -> None:
    """Change how many votes each comparison is to have, those that are open included, while people judge."""
    with store() as sessions, sessions.begin() as session:
        found = project_named(session, project)
        comparisons.want_votes(session, found.id, wanted, by=acting(session))
        name = found.name
    typer.echo(f"{name} now wants {wanted} {'vote' if wanted == 1 else 'votes'} for each comparison.")


def prioritise(
    priority: Annotated[int, typer.Argument(help="Higher is judged first; 0 is usual. After -- it may be negative.")],
    policy: Annotated[str | None, typer.Option(help="The comparisons of this policy, by its name.")] = None,
    comparison: Annotated[list[uuid.UUID] | None, typer.Option(help="This comparison; may be repeated.")] = None,
    project: ProjectOption = None,
) -> None:
    """Have some open comparisons judged before, or after, the others."""
    if (policy is None) == (not comparison):
        raise Invalid("Say which comparisons.", "Give either --policy or --comparison.")
    with store() as sessions, sessions.begin() as session:
        found = project_named(session, project)
        named = select(Checkpoint.id).where(
            Checkpoint.project_id == found.id, Checkpoint.kind == CheckpointKind.POLICY, Checkpoint.name == policy
        )
        which = Comparison.checkpoint_id.in_(named) if policy else Comparison.id.in_(comparison or [])
        count = comparisons.prioritise(session, found.id, which, priority)
    typer.echo(f"{count} open {'comparison has' if count == 1 else 'comparisons have'} priority {priority} now.")

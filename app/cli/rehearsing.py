"""Commands that use the product from outside, as people do: simulate, rehearse."""

import json
from pathlib import Path
from typing import Annotated

import typer

from app.core.errors import PairwrightError
from app.core.folders import write_file
from app.settings import get_settings


def add_to(cli: typer.Typer) -> None:
    """Hang the commands of this file into the command line."""
    cli.command()(simulate)
    cli.command()(rehearse)


def simulate(
    username: Annotated[str, typer.Option(help="An admin of the project, who invites the simulated people.")],
    password: Annotated[
        str, typer.Option(prompt=True, hide_input=True, envvar="PAIRWRIGHT_PASSWORD", help="Their password.")
    ],
    project: Annotated[str, typer.Option("--project", "-p", help="The project's short name.")] = "support",
    judgments: Annotated[int, typer.Option(min=1, help="How many in all.")] = 100,
    people: Annotated[int, typer.Option(min=1, help="How many annotators.")] = 3,
    rate: Annotated[float, typer.Option(min=0, help="Judgments a second over all people; 0: no pauses.")] = 0.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same people.")] = 0,
    url: Annotated[str | None, typer.Option(help="Where the product is; otherwise this installation.")] = None,
) -> None:
    """Let simulated annotators sign in and judge over HTTP, by a hidden taste with noise."""
    from app.rehearsal.annotators import Person, simulate
    from app.rehearsal.browser import RehearsalError

    address = url or get_settings().address
    try:
        reports = simulate(address, project, Person(username, password), people, judgments, seed, rate)
    except RehearsalError as error:
        raise PairwrightError(str(error)) from None
    done = sum(report.judgments for report in reports)
    seconds = max((report.seconds for report in reports), default=0.0)
    typer.echo(f"{len(reports)} people judged {done} pairs in {seconds:.0f} s.")


def rehearse(
    judgments: Annotated[int, typer.Option(min=40, help="How many the simulated people give.")] = 300,
    people: Annotated[int, typer.Option(min=1, help="How many they are.")] = 3,
    seed: Annotated[int, typer.Option(help="The same seed gives the same rehearsal.")] = 0,
    out: Annotated[Path | None, typer.Option("--json", help="Where the figures go; otherwise the console.")] = None,
) -> None:
    """Run the whole loop unattended in a fresh data folder, and measure what it made."""
    from app.rehearsal.browser import RehearsalError
    from app.rehearsal.rehearse import rehearse

    try:
        figures = rehearse(judgments=judgments, seed=seed, people=people, say=lambda line: typer.echo(line, err=True))
    except RehearsalError as error:
        raise PairwrightError(str(error)) from None
    text = json.dumps(figures, indent=1) + "\n"
    if out is None:
        typer.echo(text, nl=False)
    else:
        write_file(out, text)

"""Commands about a project's settings and its gold: project show, project set, gold."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.cli.opening import ProjectOption, acting, project_named, store
from app.core.errors import Invalid, NotFound, PairwrightError
from app.core.project_settings import ProjectSettings
from app.store import configuring
from app.store.gold import write_gold

LONGEST_LINE = 1 << 20


def add_to(cli: typer.Typer) -> None:
    """Hang the commands of this file into the command line."""
    project = typer.Typer(no_args_is_help=True, help="A project's settings.")
    project.command("show")(show)
    project.command("set")(change)
    cli.add_typer(project, name="project")
    cli.command("gold")(import_gold)


def show(project: ProjectOption = None) -> None:
    """Print the settings, each with what it does."""
    with store() as sessions, sessions.begin() as session:
        found = project_named(session, project)
        name, now = found.name, configuring.settings_of(found)
    typer.echo(name)
    for field, value in now.model_dump(mode="json").items():
        written = "" if value is None else json.dumps(value).strip('"')
        typer.echo(f"  {field}={written}  # {ProjectSettings.model_fields[field].description}")


def change(
    changes: Annotated[list[str], typer.Argument(help="NAME=VALUE, as `project show` prints them; several at once.")],
    project: ProjectOption = None,
) -> None:
    """Change settings: all that are named, or none of them."""
    given = {}
    for one in changes:
        name, separator, value = one.partition("=")
        if not separator or name not in ProjectSettings.model_fields:
            raise Invalid(f"There is no setting {name}.", "`pairwright project show` lists them.")
        given[name] = value
    with store() as sessions, sessions.begin() as session:
        found = project_named(session, project)
        now = configuring.settings_of(found).model_dump(mode="json")
        try:
            wanted = ProjectSettings.model_validate(now | given)
        except ValidationError as error:
            raise _refusal(error, "Nothing was changed.") from None
        changed = configuring.configure(session, found.id, wanted, acting(session))
    typer.echo(f"Changed: {', '.join(changed.fields)}." if changed.fields else "Nothing was different.")
    if changed.retired:
        typer.echo(f"{changed.retired} waiting comparisons have another number of answers and are handed out no more.")


class GoldLine(BaseModel):
    """One line of a file of gold; `best` counts from 0."""

    model_config = ConfigDict(extra="forbid")

    prompt: str
    answers: list[str] = Field(min_length=2, max_length=9)
    best: int = Field(0, ge=0, le=8)
    explanation: str
    qualification: bool = False


def import_gold(
    file: Annotated[Path, typer.Argument(help="JSONL: prompt, answers, best, explanation, qualification.")],
    project: ProjectOption = None,
) -> None:
    """Add gold comparisons from JSONL: the whole file, or nothing of it."""
    if str(file) != "-" and not file.is_file():
        raise NotFound(f"There is no file {file}.", "Give the path of a JSONL file.")
    stream = sys.stdin.buffer if str(file) == "-" else file.open("rb")
    added = 0
    with stream, store() as sessions, sessions.begin() as session:
        found, by = project_named(session, project), acting(session)
        for number, line in enumerate(iter(lambda: stream.readline(LONGEST_LINE + 1), b""), 1):
            if not line.strip():
                continue
            try:
                if len(line) > LONGEST_LINE:
                    raise Invalid(f"A line has at most {LONGEST_LINE:,} bytes.")
                one = GoldLine.model_validate_json(line)
                write_gold(session, found.id, one.prompt, one.answers, one.best, one.explanation, one.qualification, by)
            except ValidationError as error:
                raise _refusal(error, f"Line {number}. Nothing was added.") from None
            except PairwrightError as error:
                raise Invalid(f"Line {number}: {error.message}", "Nothing was added.") from None
            added += 1
    typer.echo(f"Gold comparisons added: {added}.")


def _refusal(error: ValidationError, mend: str) -> Invalid:
    """The first thing that is wrong, without quoting what was given."""
    first = error.errors(include_input=False, include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    said = str(first["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    return Invalid(f"{where}: {said}." if where else f"{said[:1].upper()}{said[1:]}.", mend)

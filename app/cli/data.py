"""Commands that move data: import and export."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from app.cli.opening import ProjectOption, acting, project_named, store
from app.core.errors import NotFound
from app.core.folders import sync
from app.store import exports, imports


class Kind(StrEnum):
    """What a file to import holds."""

    PROMPTS = "prompts"
    DEMONSTRATIONS = "demonstrations"
    PREFERENCES = "preferences"


class Format(StrEnum):
    """How judgments are written out."""

    TRL = "trl"
    FULL = "full"


def add_to(cli: typer.Typer) -> None:
    """Hang the commands of this file into the command line."""
    cli.command("import")(import_file)
    cli.command()(export)


def import_file(
    kind: Annotated[Kind, typer.Argument(help="What each line is.")],
    file: Annotated[Path, typer.Argument(help="A JSONL file, or - for standard input.")],
    project: ProjectOption = None,
) -> None:
    """Add prompts, demonstrations or preference pairs from JSONL: the whole file, or nothing of it."""
    if str(file) != "-" and not file.is_file():
        raise NotFound(f"There is no file {file}.", "Give the path of a JSONL file.")
    stream = sys.stdin.buffer if str(file) == "-" else file.open("rb")
    with stream, store() as sessions, sessions.begin() as session:
        found = project_named(session, project)
        report = imports.import_jsonl(session, found.id, kind.value, stream, by=acting(session), name=file.name)
    typer.echo(f"{report.rows} lines read, {report.added} added.")
    for line, reason in report.skipped[:10]:
        typer.echo(f"  line {line} was left out: {reason}")
    if len(report.skipped) > 10:
        typer.echo(f"  and {len(report.skipped) - 10} more")


def export(
    format: Annotated[Format, typer.Option(help="trl: prompt, chosen, rejected; full: with provenance.")] = Format.TRL,
    out: Annotated[Path | None, typer.Option(help="The file to write; otherwise standard output.")] = None,
    project: ProjectOption = None,
) -> None:
    """Write the counted judgments as JSONL. A file is there whole or not at all."""
    with store() as sessions, sessions.begin() as session:
        found = project_named(session, project)
        lines = (exports.export_trl if format is Format.TRL else exports.export_full)(session, found.id)
        if out is None:
            for line in lines:
                sys.stdout.buffer.write(line)
            return
        partial = out.with_name(f".{out.name}.partial")
        try:
            with partial.open("wb") as file:
                file.writelines(lines)
            sync(partial)
            partial.replace(out)
        finally:
            partial.unlink(missing_ok=True)

"""Commands that use the product as people do: simulate, rehearse."""

import typer


def add_to(cli: typer.Typer) -> None:
    """Hang the commands of this file into the command line."""

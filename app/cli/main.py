"""The commands, put together."""

import typer

from app.cli import configuring, data, distributing, doctor, evaluating, people, rehearsing, serving, training

cli = typer.Typer(
    name="pairwright",
    help="People compare answers, a reward model learns from them, PPO trains the policy that writes the next answers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for commands in (serving, people, configuring, distributing, training, evaluating, data, rehearsing, doctor):
    commands.add_to(cli)

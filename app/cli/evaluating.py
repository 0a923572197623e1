"""`pairwright evaluate`: policies side by side on held-out prompts, by a reward model."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from sqlalchemy.orm import Session

from app.cli.opening import ProjectOption, project_named, store
from app.cli.training import named
from app.core.configs import SamplingSettings
from app.core.errors import Invalid, NotFound
from app.core.folders import write_file
from app.jobs.environment import without_secrets
from app.settings import Settings, get_settings
from app.store import checkpoints, snapshots
from app.store.models import Checkpoint, Project

BEST_OF = (4, 16)
CAUTION = "A policy trained on this reward model, and answers that it chose, score what they maximise: ask people, too."


def add_to(cli: typer.Typer) -> None:
    """Hang the commands of this file into the command line."""
    cli.command()(evaluate)


@dataclass(frozen=True)
class Contest:
    """What is compared: names and folders of policies, the reward model's, and the prompts' file."""

    base: tuple[str, Path]
    others: list[tuple[str, Path]]
    reward_model: tuple[str, Path]
    prompts: Path
    sampling: SamplingSettings


def evaluate(
    policies: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[POLICY]...",
            help="Policies by name, as v2, or by folder; otherwise every policy that was trained from the base.",
        ),
    ] = None,
    base: Annotated[str | None, typer.Option(help="What they are compared with; otherwise the current policy.")] = None,
    reward_model: Annotated[str | None, typer.Option(help="Name or folder; otherwise the newest.")] = None,
    best_of: Annotated[
        list[int] | None,
        typer.Option("--best-of", min=1, help="Also the best of so many answers of the base; otherwise 4 and 16."),
    ] = None,
    count: Annotated[int, typer.Option("--prompts", min=2, help="How many held-out prompts.")] = 200,
    file: Annotated[
        Path | None, typer.Option(help="Prompts from a file like a run's data/prompts.jsonl, not the project's.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same prompts and answers.")] = 0,
    out: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
    project: ProjectOption = None,
) -> None:
    """Compare policies on held-out prompts by a reward model, beside the best of n answers of their base.

    Names are those of a project; where everything is a folder and the prompts are a file, no project is needed.
    """
    settings = get_settings()
    if file is not None and not file.is_file():
        raise NotFound(f"There is no file {file}.", "Give the path of a JSONL file of prompts.")
    with tempfile.TemporaryDirectory(prefix="pairwright-") as scratch:
        sizes = [n for n in best_of or BEST_OF if n > 1]
        words = [word for word in (base, reward_model, *(policies or [])) if word is not None]
        if file and base and reward_model and all(Path(word).is_dir() for word in words):
            others = [_folder(word) for word in policies or []]
            contest = Contest(_folder(base), others, _folder(reward_model), file, SamplingSettings())
        else:
            with store() as sessions, sessions.begin() as session:
                found = project_named(session, project)
                contest = _contest(session, settings, found, base, reward_model, policies or [], file, Path(scratch))
        if not contest.others and not sizes:
            raise Invalid(f"Nothing was trained from {contest.base[0]} yet.", "Name policies, or ask for --best-of 4.")
        figures = _compared(contest, sizes, count, seed, settings.training_threads)
    figures = {"base": contest.base[0], "reward_model": contest.reward_model[0], **figures}
    if out is not None:
        write_file(out, json.dumps(figures, indent=1) + "\n")
    _show(figures)


def _folder(word: str) -> tuple[str, Path]:
    folder = Path(word).resolve()
    return folder.name, folder


def _contest(
    session: Session,
    settings: Settings,
    project: Project,
    base: str | None,
    reward_model: str | None,
    policies: Sequence[str],
    file: Path | None,
    scratch: Path,
) -> Contest:
    """Names of the project as folders, and its prompts as a file."""

    def place(model: Checkpoint) -> tuple[str, Path]:
        return model.name, settings.checkpoints_dir / model.folder_name

    def of(known: Sequence[Checkpoint], word: str) -> tuple[str, Path]:
        return _folder(word) if Path(word).is_dir() else place(named(known, word))

    every, judges = checkpoints.policies(session, project.id), checkpoints.reward_models(session, project.id)
    if base is None and project.current_policy_id is None:
        raise Invalid("This project has no policy yet.", "Wait for the first one, or name a folder with --base.")
    if reward_model is None and not judges:
        raise Invalid("This project has no reward model to compare by.", "Train one, or name a folder.")
    current = next((one for one in every if one.id == project.current_policy_id), None)
    start = named(every, base) if base is not None and not Path(base).is_dir() else None if base else current
    trained = [one for one in reversed(every) if start is not None and one.parent_id == start.id]
    prompts = file or scratch / "prompts.jsonl"
    if file is None:
        snapshots.write_prompts(session, project.id, prompts)
    return Contest(
        base=place(start) if start is not None else _folder(str(base)),
        others=[of(every, word) for word in policies] or [place(one) for one in trained],
        reward_model=of(judges, reward_model) if reward_model is not None else place(judges[0]),
        prompts=prompts,
        sampling=SamplingSettings.model_validate(project.sampling),
    )


def _compared(contest: Contest, best_of: Sequence[int], count: int, seed: int, threads: int) -> dict[str, Any]:
    """The figures, from a process of its own that knows no secret: it loads models that strangers may have made."""
    words = ["--base", "=".join(map(str, contest.base)), "--reward-model", str(contest.reward_model[1])]
    for other in contest.others:
        words += ["--policy", "=".join(map(str, other))]
    for n in best_of:
        words += ["--best-of", str(n)]
    words += ["--prompts", str(contest.prompts), "--count", str(count), "--seed", str(seed)]
    words += ["--sampling", contest.sampling.model_dump_json()]
    done = subprocess.run(  # noqa: S603 - no shell; names and folders are arguments of their own
        [sys.executable, "-m", "app.policy.compare", *words],
        env=without_secrets(threads),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        check=False,
    )
    try:
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise Invalid(
            f"The comparison ended with code {done.returncode} and no reason.",
            "A model that does not fit into memory ends like this; the lines above may say more.",
        ) from None
    if "lines" not in answer:
        raise Invalid(answer["message"], answer["mend"])
    return answer


def _show(figures: dict[str, Any]) -> None:
    """The figures as a table, each with its 95 % interval."""
    table = Table("policy", "reward", "wins against " + figures["base"], "KL, nats", "tokens", "cut off", box=None)
    for line in figures["lines"]:
        wins = "–" if line["win_rate"] is None else _interval(line["win_rate"], line["win_low"], line["win_high"])
        bound = f"at most {line['kl_bound']:.2f}" if line["kl_bound"] is not None else "–"
        table.add_row(
            line["name"],
            _interval(line["reward"], line["reward_low"], line["reward_high"]),
            wins,
            f"{line['kl']:.2f}" if line["kl"] is not None else bound,
            f"{line['length']:.0f}",
            f"{100 * line['truncated_share']:.0f} %",
        )
    console = Console()
    console.print(table)
    prompts = figures["lines"][0]["prompts"]
    console.print(f"By {figures['reward_model']} on {prompts} held-out prompts, 95 % intervals. {CAUTION}")


def _interval(value: float, low: float, high: float) -> str:
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"

"""Changing a project's settings: one set of checks for the page and the command line."""

import uuid
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.core.configs import SamplingSettings
from app.core.errors import Invalid
from app.core.project_settings import ProjectSettings
from app.core.vocabulary import CheckpointKind, Mode
from app.store import audit, comparisons, gold
from app.store.models import Checkpoint, Project

RANKED = 4  # what the page proposes where nothing is ranked yet


@dataclass(frozen=True)
class Changed:
    """What a change did: the names of the settings, and how many waiting comparisons no longer fit."""

    fields: list[str]
    retired: int


def settings_of(project: Project) -> ProjectSettings:
    """A project's settings as they are."""
    sampling = SamplingSettings.model_validate(project.sampling)
    return ProjectSettings(
        mode=project.mode,
        answers=project.answers if project.mode is Mode.RANK else RANKED,
        allow_tie=project.allow_tie,
        allow_both_bad=project.allow_both_bad,
        ask_strength=project.ask_strength,
        ask_flags=project.ask_flags,
        ask_ratings=project.ask_ratings,
        ask_rationale=project.ask_rationale,
        ask_ideal=project.ask_ideal,
        votes_wanted=project.votes_wanted,
        cap=project.cap,
        admins_judge=project.admins_judge,
        lease_seconds=project.lease_seconds,
        gold_percent=_percent(project.gold_rate),
        repeat_percent=_percent(project.repeat_rate),
        qualify_on=project.qualify_on,
        qualify_percent=_percent(project.qualify_at),
        chat_turns=project.chat_turns,
        chat_policy_id=project.chat_policy_id,
        pool_target=project.pool_target,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=sampling.max_tokens,
    )


def _percent(share: float) -> float:
    return round(100 * share, 6)


def configure(s: Session, project_id: uuid.UUID, wanted: ProjectSettings, by: uuid.UUID | None) -> Changed:
    """Make these the project's settings; nothing changes where one of them cannot be. Audited when one changes.

    What is leased is finished as it was handed out. Waiting comparisons that have another number of answers than the
    project now asks for are retired.
    """
    project = s.get_one(Project, project_id, with_for_update=True, populate_existing=True)
    before = settings_of(project)
    answers = wanted.answers if wanted.mode is Mode.RANK else 2
    _check(s, project, wanted, answers)
    values = _columns(wanted, answers)
    changed = [name for name, value in _values(before).items() if _values(wanted)[name] != value]
    if wanted.mode is not Mode.RANK and "answers" in changed:
        changed.remove("answers")
    if not changed:
        return Changed([], 0)
    for name, value in values.items():
        setattr(project, name, value)
    s.flush()
    if "votes_wanted" in changed:
        comparisons.want_votes(s, project_id, wanted.votes_wanted, by)
    asks = wanted.mode in (Mode.PAIR, Mode.RANK)
    retired = comparisons.retire_others(s, project_id, answers) if asks and {"mode", "answers"} & set(changed) else 0
    told: dict[str, Any] = {name: _values(wanted)[name] for name in changed}
    audit.record(
        s, project_id, by, "project.settings", str(project_id), told | ({"retired": retired} if retired else {})
    )
    return Changed(changed, retired)


def _values(settings: ProjectSettings) -> dict[str, Any]:
    return settings.model_dump(mode="json")


def _columns(wanted: ProjectSettings, answers: int) -> dict[str, Any]:
    """The project's columns; the wanted votes have a function of their own, for the slots follow them."""
    sampling = SamplingSettings(temperature=wanted.temperature, top_p=wanted.top_p, max_tokens=wanted.max_tokens)
    apart = {
        "votes_wanted",
        "answers",
        "gold_percent",
        "repeat_percent",
        "qualify_percent",
        "temperature",
        "top_p",
        "max_tokens",
    }
    return wanted.model_dump(exclude=apart) | {
        "answers": answers,
        "gold_rate": wanted.gold_percent / 100,
        "repeat_rate": wanted.repeat_percent / 100,
        "qualify_at": wanted.qualify_percent / 100,
        "sampling": sampling.model_dump(),
    }


def _check(s: Session, project: Project, wanted: ProjectSettings, answers: int) -> None:
    mend = "Make gold on the page ‘Quality’ first. Nothing was changed."
    checked = wanted.mode in (Mode.PAIR, Mode.RANK)
    if not checked and (wanted.qualify_on or wanted.gold_percent or wanted.repeat_percent):
        raise Invalid(
            "Gold, repeats and the qualification round are comparisons: they go with pairs and rankings only.",
            "Set their shares and the round to 0 for this mode. Nothing was changed.",
        )
    if wanted.qualify_on:
        there = gold.usable(s, project.id, answers, qualification=True)
        if there < wanted.qualify_on:
            many = f"{there} gold comparison{'' if there == 1 else 's'} of {answers} answers for it"
            raise Invalid(f"A qualification round of {wanted.qualify_on} is not possible: there are only {many}.", mend)
    if wanted.gold_percent and not gold.usable(s, project.id, answers, qualification=False):
        raise Invalid(f"There is no gold of {answers} answers to mix in.", mend)
    if wanted.chat_policy_id is not None:
        policy = select(Checkpoint.id).where(
            Checkpoint.project_id == project.id,
            Checkpoint.id == wanted.chat_policy_id,
            Checkpoint.kind == CheckpointKind.POLICY,
        )
        if s.scalars(policy).one_or_none() is None:
            raise Invalid("There is no such policy in this project.", "Choose one of the list. Nothing was changed.")

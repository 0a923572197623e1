"""What a project asks of its people, set by its admins."""

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Form
from starlette.responses import Response

from app.core.project_settings import ProjectSettings
from app.core.vocabulary import Mode
from app.store import checkpoints, configuring
from app.store.configuring import Changed
from app.web.access import Policy, Visit, may
from app.web.pages import page, wants_page

router = APIRouter(prefix="/p/{slug}/settings")
Admin = Annotated[Visit, may(Policy.ADMIN)]


@dataclass(frozen=True)
class Section:
    """Settings that belong together. `lede` is one sentence, `only` names the mode that they are for."""

    title: str
    lede: str
    fields: tuple[str, ...]
    only: str = ""


MODES = {
    Mode.PAIR: ("Pair", "Two answers side by side; the better one is chosen by a key."),
    Mode.RANK: ("Rank", "Three to nine answers are brought into order; the pairs follow from it."),
    Mode.CHAT: ("Chat", "People lead a conversation, and pick the better of two answers at each turn."),
    Mode.DEMONSTRATE: ("Demonstrate", "People write the ideal answer; SFT learns from it."),
}
SECTIONS = (
    Section(
        "Comparing",
        "What a judgment may say.",
        ("answers", "allow_tie", "allow_both_bad", "ask_strength"),
    ),
    Section(
        "Beside the choice",
        "Optional for whoever judges; none of it keeps the next comparison waiting.",
        ("ask_flags", "ask_ratings", "ask_rationale", "ask_ideal"),
    ),
    Section(
        "Who gets what",
        "Changes hold from the next comparison on.",
        ("votes_wanted", "cap", "admins_judge", "lease_seconds"),
    ),
    Section(
        "Checks",
        "Gold and repeats are mixed in unmarked and never count as votes; a few in a hundred are enough.",
        ("gold_percent", "repeat_percent", "qualify_on", "qualify_percent"),
    ),
    Section("Chat", "Used when people lead conversations.", ("chat_turns", "chat_policy_id")),
    Section(
        "Sampling",
        "How the current policy writes what people compare. What is written already stays.",
        ("pool_target", "temperature", "top_p", "max_tokens"),
    ),
)
LABELS = {
    "answers": "Answers to rank",
    "allow_tie": "Ties",
    "allow_both_bad": "Both bad",
    "ask_strength": "Strength",
    "ask_flags": "Flags",
    "ask_ratings": "Ratings",
    "ask_rationale": "Reasons",
    "ask_ideal": "A better answer",
    "votes_wanted": "Votes wanted",
    "cap": "Cap for each person",
    "admins_judge": "Admins judge",
    "lease_seconds": "Lease, in seconds",
    "gold_percent": "Gold, in percent",
    "repeat_percent": "Repeats, in percent",
    "qualify_on": "Qualification round",
    "qualify_percent": "Needed to pass, in percent",
    "chat_turns": "Turns",
    "chat_policy_id": "Second policy",
    "pool_target": "Written ahead",
    "temperature": "Temperature",
    "top_p": "Top-p",
    "max_tokens": "Longest answer, in tokens",
}


@dataclass(frozen=True)
class Field:
    """One setting as an input: a switch, a number, or a choice among (value, label)."""

    name: str
    label: str
    hint: str
    value: str
    on: bool
    choices: tuple[tuple[str, str], ...] | None


@router.get("")
def settings(visit: Admin) -> Response:
    """The settings as they are."""
    return settings_page(visit)


@router.post("")
def change(visit: Admin, form: Annotated[ProjectSettings, Form()]) -> Response:
    """Make these the settings, all of them or none."""
    changed = configuring.configure(visit.s, visit.project.id, form, visit.account.id)
    if wants_page(visit.request):
        return settings_page(visit, changed)
    return page(visit, "project/_saved.html", changed=changed, labels=LABELS)


def settings_page(visit: Visit, changed: Changed | None = None) -> Response:
    """The page, after a change with what it did."""
    now = configuring.settings_of(visit.project)
    policies = checkpoints.policies(visit.s, visit.project.id)
    second = (("", "The current policy answers twice"), *((str(one.id), one.name) for one in policies))
    fields = {name: field_of(name, getattr(now, name), second) for name in LABELS}
    return page(
        visit,
        "project/settings.html",
        here="settings",
        modes=MODES,
        mode=now.mode,
        sections=[(section, [fields[name] for name in section.fields]) for section in SECTIONS],
        changed=changed,
        labels=LABELS,
    )


def field_of(name: str, value: Any, second: tuple[tuple[str, str], ...]) -> Field:
    """A setting as an input, by its type."""
    hint = ProjectSettings.model_fields[name].description or ""
    shown = "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    switch = isinstance(value, bool)
    choices = second if name == "chat_policy_id" else None
    return Field(name, LABELS[name], hint, "true" if switch else shown, switch and value, choices)

"""Numbers, times and names as the pages say them."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime

from app.core.messages import mark as _
from app.core.vocabulary import Flag, Role, RunKind, RunStatus, SkipReason
from app.web.language import gettext, ngettext

KINDS = {RunKind.SFT: "SFT", RunKind.REWARD: "Reward model", RunKind.PPO: "PPO", RunKind.DPO: "DPO"}
STATUSES = {
    RunStatus.QUEUED: "waiting for the worker",
    RunStatus.RUNNING: "training",
    RunStatus.PAUSED: "paused",
    RunStatus.FINISHED: "done",
    RunStatus.CANCELLED: "cancelled",
    RunStatus.FAILED: "failed",
}
ACRONYMS = {"kl": "KL", "gae": "GAE", "eos": "end-of-sequence", "sft": "SFT", "approx": "approximate"}
# Each with the key that stands for it on the judge page.
FLAGS = {
    Flag.UNSAFE: ("u", "Unsafe"),
    Flag.WRONG: ("w", "Factually wrong"),
    Flag.OFF_TOPIC: ("o", "Off topic"),
    Flag.IDENTITY_LEAK: ("i", "Identity leak"),
    Flag.BROKEN: ("b", "Broken"),
}
SKIP_REASONS = {
    SkipReason.UNSURE: "I cannot tell",
    SkipReason.TOO_LONG: "Too long",
    SkipReason.NOT_MY_FIELD: "Not my field",
    SkipReason.UNPLEASANT: "Unpleasant",
    SkipReason.OTHER: "Something else",
}
TONES = {RunStatus.RUNNING: "good", RunStatus.PAUSED: "warning", RunStatus.FAILED: "error"}


def number(value: float) -> str:
    """Thousands apart; whole numbers without decimals."""
    return f"{value:,.0f}"


def percent(share: float | None) -> str:
    """A share as a percentage with one decimal, or a dash where there is none."""
    return "–" if share is None else f"{100 * share:.1f} %"


def whole_percent(share: float | None) -> str:
    """A share as a whole percentage, or a dash where there is none."""
    return "–" if share is None else f"{100 * share:.0f} %"


def figure(value: object) -> str:
    """A metric of any size in three significant digits; words stay as they are."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–" if value is None else str(value)
    if not math.isfinite(value):
        return str(value)
    if float(value).is_integer() or abs(value) >= 1000:
        return f"{value:,.0f}".replace("-", "−")
    return f"{value:.3g}".replace("-", "−")


def score(value: float) -> str:
    """A reward, in two decimals."""
    return f"{value:.2f}".replace("-", "−")


def seconds(milliseconds: float) -> str:
    """Milliseconds as seconds, with a decimal only where it matters."""
    value = milliseconds / 1000
    return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"


def duration(value: float | None) -> str:
    """Seconds in the unit a person would use."""
    if value is None:
        return gettext("a while")
    if value < 90:
        return gettext("%(n)s s") % {"n": max(0, round(value))}
    if value < 5400:
        return gettext("%(n)s min") % {"n": round(value / 60)}
    if value < 36 * 3600:
        hours, minutes = divmod(round(value / 60), 60)
        words = gettext("%(h)s h %(m)s min") if minutes else gettext("%(h)s h")
        return words % {"h": hours, "m": minutes}
    days = round(value / 86400)
    return ngettext("%(n)s day", "%(n)s days", days) % {"n": days}


def age(moment: datetime) -> str:
    """How long something has been. For the eye only: nothing is decided by it."""
    return duration((datetime.now(UTC) - moment).total_seconds())


def ago(moment: datetime | None) -> str:
    """How long ago something was."""
    if moment is None:
        return "–"
    if (datetime.now(UTC) - moment).total_seconds() < 20:
        return gettext("just now")
    return gettext("%(age)s ago") % {"age": age(moment)}


def left(moment: datetime) -> str:
    """How long something still lasts. For the eye only: nothing is decided by it."""
    return duration(max(0.0, (moment - datetime.now(UTC)).total_seconds()))


ROLES = {Role.ANNOTATOR: _("annotator"), Role.RESEARCHER: _("researcher"), Role.ADMIN: _("admin")}


def role(value: str) -> str:
    """What somebody is in a project."""
    return gettext(ROLES[Role(value)])


def upper_first(words: str) -> str:
    """A capital at the beginning, and nothing else changed."""
    return words[:1].upper() + words[1:]


def speaker(role: str, turns: int) -> str:
    """The name over a turn of a conversation."""
    if role == "user":
        return "Prompt" if turns == 1 else "User"
    return role.capitalize()


def whose(policies: Sequence[str | None]) -> str:
    """Who wrote the answers, by name and not by side, so that it favours neither; empty where nobody is known."""
    return " and ".join(sorted({name for name in policies if name}))


def kind(value: str) -> str:
    """The name of a kind of run."""
    return KINDS.get(RunKind(value), value)


def state(value: str) -> str:
    """The state of a run in a word or two."""
    return STATUSES[RunStatus(value)]


def tone(value: str) -> str:
    """The style class of a run's state."""
    return TONES.get(RunStatus(value), "")


def setting(name: str) -> str:
    """The name of a configuration field as a label."""
    words = " ".join(ACRONYMS.get(word, word) for word in name.split("_"))
    return words[:1].upper() + words[1:]


FILTERS = {
    "number": number,
    "percent": percent,
    "whole_percent": whole_percent,
    "figure": figure,
    "score": score,
    "seconds": seconds,
    "duration": duration,
    "age": age,
    "ago": ago,
    "left": left,
    "role": role,
    "upper_first": upper_first,
    "speaker": speaker,
    "whose": whose,
    "kind": kind,
    "state": state,
    "tone": tone,
    "setting": setting,
}

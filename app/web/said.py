"""What somebody said of a comparison, in words; sides and ranks are those that they saw."""

from collections.abc import Sequence

from app.core.records import Message
from app.core.vocabulary import Verdict
from app.store.history import Saying

STRENGTHS = {1: "barely better", 2: "slightly better", 3: "better", 4: "much better"}
STATES = {
    "counted": "counts",
    "surplus": "came late: kept, not counted",
    "withdrawn": "withdrawn",
}
WHY_NOT = {
    "paused": ("You are paused here", "An admin of this project has paused your work. What you did is kept."),
    "failed": ("The first round did not go well", "An admin of this project can look at it with you."),
    "cap": ("You have done all that was asked of you", "This project wants only so much from one person. Thank you."),
    "admins": ("Admins do not write here", "This project leaves the work to its annotators."),
}
EXCERPT = 160


def side(position: int, answers: int) -> str:
    """The name of the answer that was shown at this place."""
    return ("Left", "Right")[position] if answers == 2 else f"Answer {position + 1}"


def choice(said: Saying) -> str:
    """What was chosen: a side, a tie, or the order of a ranking."""
    if said.withdrawn or said.tiers is None or said.order is None:
        return "Taken back" if said.withdrawn else _without_order(said)
    answers = len(said.order)
    if said.both_bad:
        return "Both bad" if answers == 2 else "All bad"
    if len(said.tiers) == 1:
        return "About the same" if answers == 2 else "All about the same"
    places = [sorted(said.order.index(position) for position in tier) for tier in said.tiers]
    if answers == 2:
        words = STRENGTHS.get(said.strength or 0, "better")
        return f"{side(places[0][0], 2)} {words}"
    return " > ".join(" = ".join(str(place + 1) for place in tier) for tier in places)


def _without_order(said: Saying) -> str:
    """A judgment from elsewhere, whose sides are not known."""
    if said.verdict in (Verdict.LEFT, Verdict.RIGHT):
        return f"{said.verdict.value.capitalize()} better"
    return "Both bad" if said.both_bad else "Judged"


def chosen(said: Saying | None) -> set[int]:
    """The canonical positions that came first; none where nothing did."""
    if said is None or said.tiers is None or len(said.tiers) < 2:
        return set()
    return set(said.tiers[0])


def question(prompt: Sequence[Message]) -> str:
    """The last thing that was asked, in one line."""
    return excerpt(prompt[-1]["content"])


def excerpt(text: str) -> str:
    """The beginning of a text, in one line."""
    line = " ".join(text[: EXCERPT * 4].split())
    return line if len(line) <= EXCERPT else f"{line[:EXCERPT].rstrip()} …"


def standing(state: str) -> str:
    """Whether an entry counts, in words."""
    return STATES[state]


FILTERS = {"choice": choice, "chosen": chosen, "question": question, "excerpt": excerpt, "standing": standing}

"""What an annotator says of a comparison: its shape, what no page of ours would send, and how it is stored."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Row

from app.core.errors import Invalid
from app.core.pairing import side_order
from app.core.vocabulary import Flag, Verdict

LONGEST_MS = 24 * 60 * 60 * 1000
LONGEST_RATIONALE = 4_000
LONGEST_IDEAL = 20_000


@dataclass(frozen=True)
class Submission:
    """What an annotator's page sends: `order` as it was shown, times in milliseconds since it was shown.

    Two answers take a verdict; more take `tiers`, the canonical positions from best to worst, or the verdicts 'tie' and
    'both bad' for all of them. Flags and ratings go by canonical position. `ideal` is a better answer, `edited_from`
    the position of the one that it began as.
    """

    comparison_id: uuid.UUID
    key: uuid.UUID
    verdict: Verdict | None
    order: list[int]
    strength: int | None = None
    first_key_ms: int | None = None
    active_ms: int | None = None
    guideline_version: int | None = None
    tiers: Sequence[Sequence[int]] | None = None
    flags: Mapping[int, Sequence[Flag]] = field(default_factory=dict)
    ratings: Mapping[int, int] = field(default_factory=dict)
    rationale: str | None = None
    ideal: str | None = None
    edited_from: int | None = None


@dataclass(frozen=True)
class Said:
    """A submission as it is stored: a ranking has no verdict, tiers are sorted within, what is empty is null."""

    verdict: Verdict | None
    tiers: list[list[int]]
    both_bad: bool
    strength: int | None
    flags: dict[str, list[str]] | None
    ratings: dict[str, int] | None
    rationale: str | None
    ideal: str | None
    edited_from: int | None


def said(submission: Submission) -> Said:
    """What the submission comes to. It has been checked, or is compared with what was."""
    ideal = submission.ideal if submission.ideal and submission.ideal.strip() else None
    return Said(
        verdict=submission.verdict if len(submission.order) == 2 else None,
        tiers=_tiers(submission),
        both_bad=submission.verdict == Verdict.BOTH_BAD,
        strength=submission.strength,
        flags={str(i): sorted({Flag(f).value for f in flags}) for i, flags in submission.flags.items() if flags}
        or None,
        ratings={str(i): rating for i, rating in submission.ratings.items()} or None,
        rationale=(submission.rationale or "").strip() or None,
        ideal=ideal,
        edited_from=submission.edited_from if ideal else None,
    )


def _tiers(submission: Submission) -> list[list[int]]:
    """The canonical positions sorted into tiers, best first."""
    if submission.tiers is not None:
        return [sorted(tier) for tier in submission.tiers]
    if submission.verdict == Verdict.LEFT:
        return [[position] for position in submission.order]
    if submission.verdict == Verdict.RIGHT:
        return [[position] for position in submission.order[::-1]]
    return [sorted(submission.order)]


def check(submission: Submission, account_id: uuid.UUID, seen: Row[Any]) -> None:
    """Invalid for anything that a page of ours would not send. `seen` has the project's switches and `answers`."""
    if submission.order != side_order(str(submission.comparison_id), str(account_id), seen.answers):
        raise Invalid("The answers were not shown in this order.", "Reload the page.")
    _check_choice(submission, seen)
    if submission.strength is not None:
        if not seen.ask_strength or submission.verdict not in (Verdict.LEFT, Verdict.RIGHT):
            raise Invalid("No strength is asked for here.", "Reload the page.")
        if not 1 <= submission.strength <= 4:
            raise Invalid("Strength runs from 1 to 4.")
    _check_extras(submission, seen)
    for duration in (submission.first_key_ms, submission.active_ms):
        if duration is not None and not 0 <= duration <= LONGEST_MS:
            raise Invalid("The times of this judgment make no sense.", "Reload the page.")
    if submission.guideline_version is not None and not 1 <= submission.guideline_version <= seen.guideline_version:
        raise Invalid("There is no such version of the guidelines.", "Reload the page.")


def _check_choice(submission: Submission, seen: Row[Any]) -> None:
    """A verdict for two answers, a whole order for more, and only what the project offers."""
    if seen.answers > 2:
        if submission.verdict in (Verdict.LEFT, Verdict.RIGHT) or (submission.verdict is None) == (
            submission.tiers is None
        ):
            raise Invalid("This comparison has more than two answers and wants a ranking.", "Put them in order.")
    elif submission.verdict is None or submission.tiers is not None:
        raise Invalid("This comparison has two answers and wants a side.", "Choose the better side.")
    if submission.tiers is not None:
        listed = [position for tier in submission.tiers for position in tier]
        if sorted(listed) != list(range(seen.answers)) or not all(submission.tiers):
            raise Invalid("The order leaves out an answer, or has one twice.", "Put them in order again.")
        if len(submission.tiers) < seen.answers and not seen.allow_tie:
            raise Invalid("This project takes no ties.", "Put one of them first.")
    if submission.verdict == Verdict.TIE and not seen.allow_tie:
        raise Invalid("This project takes no ties.", "Choose the better side.")
    if submission.verdict == Verdict.BOTH_BAD and not seen.allow_both_bad:
        raise Invalid("This project does not offer 'both bad'.", "Choose the better side.")


def _check_extras(submission: Submission, seen: Row[Any]) -> None:
    """Flags, ratings, a rationale and a better answer: where the project asks, about answers that there are."""
    asked = (
        (seen.ask_flags, submission.flags, "flags"),
        (seen.ask_ratings, submission.ratings, "ratings"),
        (seen.ask_rationale, submission.rationale, "reasons"),
        (seen.ask_ideal, submission.ideal, "better answers"),
    )
    for asks, given, name in asked:
        if given and not asks:
            raise Invalid(f"This project does not ask for {name} any more.", "Take yours out, then judge again.")
    named = [*submission.flags, *submission.ratings]
    if submission.edited_from is not None:
        named.append(submission.edited_from)
    if any(not 0 <= position < seen.answers for position in named):
        raise Invalid("This comparison has no such answer.", "Reload the page.")
    if any(not 1 <= rating <= 5 for rating in submission.ratings.values()):
        raise Invalid("Ratings run from 1 to 5.")
    for text, most, name in (
        (submission.rationale, LONGEST_RATIONALE, "reason"),
        (submission.ideal, LONGEST_IDEAL, "better answer"),
    ):
        if text and len(text) > most:
            raise Invalid(f"A {name} has at most {most:,} characters; this one has {len(text):,}.", "Shorten it.")
        if text and "\0" in text:
            raise Invalid(f"The {name} holds a character that cannot be stored.", "Take it out.")

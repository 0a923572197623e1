"""Taking judgments: each one acknowledged exactly once, changed only by further revisions."""

import uuid
from dataclasses import dataclass

from sqlalchemy.orm import Session

from app.core.vocabulary import Verdict
from app.store.claims import Task


@dataclass(frozen=True)
class Submission:
    """What an annotator's page sends: `order` as it was shown, times in milliseconds since it was shown."""

    comparison_id: uuid.UUID
    key: uuid.UUID
    verdict: Verdict
    order: list[int]
    strength: int | None = None
    first_key_ms: int | None = None
    active_ms: int | None = None
    guideline_version: int | None = None


@dataclass(frozen=True)
class Receipt:
    """What was stored. `counted` is False for surplus; `replayed` is True when the same submission came before."""

    judgment_id: uuid.UUID
    revision: int
    counted: bool
    replayed: bool


@dataclass(frozen=True)
class Tally:
    """One person's own count; the median is over their last 200 judgments."""

    total: int
    today: int
    median_active_ms: float | None


@dataclass(frozen=True)
class Summary:
    """Where a project's judging stands. `pairs` are the judgments that count; agreement is raw, over pairs of votes."""

    pairs: int
    train: int
    heldout: int
    ties: int
    both_bad: int
    surplus: int
    people: int
    agreement: float | None
    agreement_pairs: int


def submit(s: Session, project_id: uuid.UUID, account_id: uuid.UUID, submission: Submission) -> Receipt:
    """Store a judgment, or a changed one, of a comparison that was handed to this person.

    The same key and body again give the same receipt; the same key with another body is a Conflict. A late judgment
    takes a free slot, else it is kept as surplus. NotFound for a comparison that is not of this project or was never
    handed to this person, Conflict for a skipped one, Invalid for a verdict that the project does not offer.
    """
    raise NotImplementedError


def skip(
    s: Session, project_id: uuid.UUID, account_id: uuid.UUID, comparison_id: uuid.UUID, reason: str | None = None
) -> None:
    """Give a leased comparison back for somebody else; this person never meets it again. Skipping twice changes nothing."""
    raise NotImplementedError


def undo(s: Session, project_id: uuid.UUID, account_id: uuid.UUID) -> Task:
    """Withdraw this person's newest judgment and lease its comparison to them again; at most ten can be open like that.

    Conflict when there is nothing (more) to take back.
    """
    raise NotImplementedError


def tally(s: Session, project_id: uuid.UUID, account_id: uuid.UUID) -> Tally:
    """How much this person has judged; `today` is the database's day in UTC."""
    raise NotImplementedError


def summary(s: Session, project_id: uuid.UUID) -> Summary:
    """The counted judgments of a project, its people and how far they agree."""
    raise NotImplementedError

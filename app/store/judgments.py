"""Taking judgments: each one acknowledged exactly once, changed only by further revisions."""

import json
import uuid
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, text, update
from sqlalchemy.orm import Session

from app.core.errors import Conflict, Invalid, NotFound
from app.core.pairing import side_order
from app.core.vocabulary import AssignmentState, Verdict
from app.store.claims import Task, lock_member, release_slots, tasks
from app.store.db import quickly
from app.store.models import Assignment, new_id

UNDO_DEPTH = 10
LONGEST_MS = 24 * 60 * 60 * 1000
LONGEST_REASON = 500


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
    """One person's own count; the median is over their last 50 judgments."""

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


# Whoever touches a meeting of a person with a comparison holds its row first. What follows sees what the last one did.
_LOCK = text(
    """
    SELECT state, leased_at FROM assignment
    WHERE comparison_id = :comparison AND account_id = :account AND project_id = :project
    FOR UPDATE
    """
)

_SEE = text(
    """
    SELECT p.allow_tie, p.allow_both_bad, p.ask_strength, p.guideline_version,
        (SELECT count(*) FROM candidate k WHERE k.comparison_id = :comparison) AS answers,
        EXISTS (SELECT FROM slot s WHERE s.comparison_id = :comparison AND s.holder_id = :account) AS has_slot,
        r.judgment_id, r.revision, r.counted, r.verdict, r.strength, r.first_key_ms, r.active_ms,
        r.guideline_version AS key_guideline_version, j.comparison_id AS key_comparison
    FROM project p
    LEFT JOIN judgment_revision r ON r.account_id = :account AND r.key = :key
    LEFT JOIN judgment j ON j.id = r.judgment_id
    WHERE p.id = :project
    """
)

# Waits for whoever holds the row right now and looks again: a free slot is never missed, never taken twice.
_TAKE_FREE_SLOT = text(
    """
    UPDATE slot SET state = 'leased', holder_id = :account
    WHERE comparison_id = :comparison AND position = (
        SELECT position FROM slot WHERE comparison_id = :comparison AND state = 'free'
        ORDER BY position LIMIT 1 FOR UPDATE
    )
    RETURNING position
    """
)

_STORE = text(
    """
    WITH head AS (
        INSERT INTO judgment AS j (id, project_id, comparison_id, account_id, revision, withdrawn)
        VALUES (:new_id, :project, :comparison, :account, 1, false)
        ON CONFLICT (comparison_id, account_id)
            DO UPDATE SET revision = j.revision + 1, withdrawn = false, judged_at = clock_timestamp()
        RETURNING id, revision
    ), met AS (
        UPDATE assignment SET state = 'judged', lease_expires_at = NULL
        WHERE comparison_id = :comparison AND account_id = :account
    ), filled AS (
        UPDATE slot SET state = 'filled'
        WHERE comparison_id = :comparison AND holder_id = :account AND state = 'leased'
    )
    INSERT INTO judgment_revision (
        judgment_id, revision, account_id, key, withdrawn, verdict, tiers, both_bad, strength, shown_order,
        guideline_version, counted, served_at, first_key_ms, active_ms
    )
    SELECT id, revision, :account, :key, false, :verdict, CAST(:tiers AS jsonb), :both_bad, :strength,
        CAST(:shown AS jsonb), :guideline_version, :counted, :served_at, :first_key_ms, :active_ms
    FROM head
    ON CONFLICT (account_id, key) DO NOTHING
    RETURNING judgment_id, revision
    """
)


def submit(s: Session, project_id: uuid.UUID, account_id: uuid.UUID, submission: Submission) -> Receipt:
    """Store a judgment, or a changed one, of a comparison that was handed to this person.

    The same key and body again give the same receipt; the same key with another body is a Conflict. A late judgment
    takes a free slot, else it is kept as surplus. NotFound for a comparison that is not of this project or was never
    handed to this person, Conflict for a skipped one, Invalid for a verdict that the project does not offer.
    """
    who = {"project": project_id, "account": account_id, "comparison": submission.comparison_id}
    meeting = quickly(s, _LOCK, who).one_or_none()
    if meeting is None:
        raise NotFound("This comparison was not handed to you.", "Reload the page for the next one.")
    seen = quickly(s, _SEE, who | {"key": submission.key}).one()
    if seen.judgment_id is not None:
        return _replay(submission, seen)
    if meeting.state == AssignmentState.SKIPPED:
        raise Conflict("You skipped this comparison.", "Nothing was stored; go on with the next one.")
    _check(submission, account_id, seen)
    counted = seen.has_slot or quickly(s, _TAKE_FREE_SLOT, who).one_or_none() is not None
    tiers, both_bad = _tiers(submission)
    stored = quickly(
        s,
        _STORE,
        who
        | {
            "new_id": new_id(),
            "key": submission.key,
            "verdict": submission.verdict.value,
            "tiers": json.dumps(tiers),
            "both_bad": both_bad,
            "strength": submission.strength,
            "shown": json.dumps(submission.order),
            "guideline_version": submission.guideline_version or seen.guideline_version,
            "counted": counted,
            "served_at": meeting.leased_at,
            "first_key_ms": submission.first_key_ms,
            "active_ms": submission.active_ms,
        },
    ).one_or_none()
    if stored is None:  # the key came in another request, on another comparison, in this very moment
        raise _another_body()
    return Receipt(stored.judgment_id, stored.revision, counted, replayed=False)


def _check(submission: Submission, account_id: uuid.UUID, seen: Row[Any]) -> None:
    """Invalid for anything that a page of ours would not send."""
    if seen.answers != 2:
        raise Invalid("This comparison has more than two answers and wants a ranking.")
    if submission.order != side_order(str(submission.comparison_id), str(account_id), seen.answers):
        raise Invalid("The answers were not shown in this order.", "Reload the page.")
    if submission.verdict == Verdict.TIE and not seen.allow_tie:
        raise Invalid("This project takes no ties.", "Choose the better side.")
    if submission.verdict == Verdict.BOTH_BAD and not seen.allow_both_bad:
        raise Invalid("This project does not offer 'both bad'.", "Choose the better side.")
    if submission.strength is not None:
        if not seen.ask_strength or submission.verdict not in (Verdict.LEFT, Verdict.RIGHT):
            raise Invalid("No strength is asked for here.")
        if not 1 <= submission.strength <= 4:
            raise Invalid("Strength runs from 1 to 4.")
    for duration in (submission.first_key_ms, submission.active_ms):
        if duration is not None and not 0 <= duration <= LONGEST_MS:
            raise Invalid("The times of this judgment make no sense.", "Reload the page.")
    if submission.guideline_version is not None and not 1 <= submission.guideline_version <= seen.guideline_version:
        raise Invalid("There is no such version of the guidelines.", "Reload the page.")


def _tiers(submission: Submission) -> tuple[list[list[int]], bool]:
    """The canonical positions sorted into tiers, best first, and whether neither was any good."""
    left, right = submission.order
    if submission.verdict == Verdict.LEFT:
        return [[left], [right]], False
    if submission.verdict == Verdict.RIGHT:
        return [[right], [left]], False
    return [[0, 1]], submission.verdict == Verdict.BOTH_BAD


def _replay(submission: Submission, seen: Row[Any]) -> Receipt:
    stored = (seen.key_comparison, seen.verdict, seen.strength, seen.first_key_ms, seen.active_ms)
    sent = (
        submission.comparison_id,
        submission.verdict,
        submission.strength,
        submission.first_key_ms,
        submission.active_ms,
    )
    if stored != sent or submission.guideline_version not in (None, seen.key_guideline_version):
        raise _another_body()
    return Receipt(seen.judgment_id, seen.revision, seen.counted, replayed=True)


def _another_body() -> Conflict:
    return Conflict("This key was already used for another judgment.", "Reload the page; the first one is stored.")


def skip(
    s: Session, project_id: uuid.UUID, account_id: uuid.UUID, comparison_id: uuid.UUID, reason: str | None = None
) -> None:
    """Give a leased comparison back for somebody else; this person never meets it again. Twice changes nothing."""
    if reason is not None and len(reason) > LONGEST_REASON:
        raise Invalid(f"A reason has at most {LONGEST_REASON} characters.")
    who = {"project": project_id, "account": account_id, "comparison": comparison_id}
    meeting = quickly(s, _LOCK, who).one_or_none()
    if meeting is None:
        raise NotFound("This comparison was not handed to you.", "Reload the page for the next one.")
    if meeting.state == AssignmentState.JUDGED:
        raise Conflict("You have judged this comparison.", "Undo takes the judgment back.")
    if meeting.state == AssignmentState.SKIPPED:
        return
    s.execute(
        update(Assignment)
        .where(Assignment.comparison_id == comparison_id, Assignment.account_id == account_id)
        .values(state=AssignmentState.SKIPPED, lease_expires_at=None, skip_reason=reason),
        execution_options={"synchronize_session": False},
    )
    release_slots(s, [(comparison_id, account_id)])


# The judgments that undo has opened again and that wait for a new answer.
_OPENED = text(
    """
    SELECT count(*) FROM assignment a JOIN judgment j USING (comparison_id, account_id)
    WHERE a.project_id = :project AND a.account_id = :account AND a.state = 'leased' AND j.withdrawn
    """
)

_NEWEST = text(
    """
    SELECT id, comparison_id FROM judgment
    WHERE project_id = :project AND account_id = :account AND NOT withdrawn
    ORDER BY judged_at DESC, id DESC LIMIT 1
    """
)

_WITHDRAW = text(
    """
    WITH head AS (
        UPDATE judgment SET revision = revision + 1, withdrawn = true, judged_at = clock_timestamp()
        WHERE id = :judgment
        RETURNING id, revision
    ), met AS (
        UPDATE assignment
        SET state = 'leased', leased_at = now(), lease_expires_at = now() + make_interval(secs => :lease)
        WHERE comparison_id = :comparison AND account_id = :account
    ), opened AS (
        UPDATE slot SET state = 'leased' WHERE comparison_id = :comparison AND holder_id = :account
    )
    INSERT INTO judgment_revision (judgment_id, revision, account_id, key, withdrawn, both_bad, counted)
    SELECT id, revision, :account, :key, true, false, false FROM head
    """
)


def undo(s: Session, project_id: uuid.UUID, account_id: uuid.UUID) -> Task:
    """Withdraw this person's newest judgment and lease its comparison to them again; at most ten can be open like that.

    Conflict when there is nothing (more) to take back.
    """
    who = {"project": project_id, "account": account_id, "lease": lock_member(s, project_id, account_id)}
    if quickly(s, _OPENED, who).scalar_one() >= UNDO_DEPTH:
        raise Conflict(f"The last {UNDO_DEPTH} judgments are open again.", "Answer them first.")
    newest = quickly(s, _NEWEST, who).one_or_none()
    if newest is None:
        raise Conflict("There is nothing to undo.")
    quickly(s, _LOCK, who | {"comparison": newest.comparison_id})
    quickly(s, _WITHDRAW, who | {"comparison": newest.comparison_id, "judgment": newest.id, "key": new_id()})
    return tasks(s, project_id, account_id, [newest.comparison_id])[0]


_TALLY = text(
    """
    SELECT count(*) AS total,
        count(*) FILTER (WHERE judged_at >= date_trunc('day', now(), 'UTC')) AS today,
        (
            SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY last.active_ms) FROM (
                SELECT r.active_ms FROM judgment j
                JOIN judgment_revision r ON r.judgment_id = j.id AND r.revision = j.revision
                WHERE j.project_id = :project AND j.account_id = :account AND NOT j.withdrawn
                ORDER BY j.judged_at DESC LIMIT 50
            ) last
        ) AS median
    FROM judgment
    WHERE project_id = :project AND account_id = :account AND NOT withdrawn
    """
)


def tally(s: Session, project_id: uuid.UUID, account_id: uuid.UUID) -> Tally:
    """How much this person has judged; `today` is the database's day in UTC."""
    row = quickly(s, _TALLY, {"project": project_id, "account": account_id}).one()
    return Tally(row.total, row.today, row.median)


_SUMMARY = text(
    """
    SELECT count(*) FILTER (WHERE counted) AS pairs,
        count(*) FILTER (WHERE counted AND split = 'train') AS train,
        count(*) FILTER (WHERE counted AND split = 'heldout') AS heldout,
        count(*) FILTER (WHERE counted AND jsonb_array_length(tiers) = 1 AND NOT both_bad) AS ties,
        count(*) FILTER (WHERE counted AND both_bad) AS both_bad,
        count(*) FILTER (WHERE NOT counted) AS surplus,
        count(DISTINCT account_id) AS people
    FROM (
        SELECT j.account_id, r.tiers, r.both_bad, p.split, EXISTS (
            SELECT FROM slot s
            WHERE s.comparison_id = j.comparison_id AND s.holder_id = j.account_id AND s.state = 'filled'
        ) AS counted
        FROM judgment j
        JOIN judgment_revision r ON r.judgment_id = j.id AND r.revision = j.revision
        JOIN comparison c ON c.id = j.comparison_id
        JOIN prompt p ON p.id = c.prompt_id
        WHERE j.project_id = :project AND NOT j.withdrawn
    ) judged
    """
)

# For each comparison and each answer in words, how many counted votes: enough for the pairs of votes that agree.
_VOTES = text(
    """
    SELECT coalesce(sum(same), 0) AS agreeing, coalesce(sum(votes * (votes - 1) / 2), 0) AS pairs
    FROM (
        SELECT sum(n) AS votes, sum(n * (n - 1) / 2) AS same
        FROM (
            SELECT j.comparison_id, r.tiers, count(*) AS n
            FROM judgment j
            JOIN judgment_revision r ON r.judgment_id = j.id AND r.revision = j.revision
            JOIN slot s ON s.comparison_id = j.comparison_id AND s.holder_id = j.account_id AND s.state = 'filled'
            WHERE j.project_id = :project AND NOT j.withdrawn
            GROUP BY j.comparison_id, r.tiers
        ) answer
        GROUP BY comparison_id
        HAVING sum(n) > 1
    ) comparison
    """
)


def summary(s: Session, project_id: uuid.UUID) -> Summary:
    """The counted judgments of a project, its people and how far they agree."""
    row = s.execute(_SUMMARY, {"project": project_id}).one()
    votes = s.execute(_VOTES, {"project": project_id}).one()
    return Summary(
        pairs=row.pairs,
        train=row.train,
        heldout=row.heldout,
        ties=row.ties,
        both_bad=row.both_bad,
        surplus=row.surplus,
        people=row.people,
        agreement=float(votes.agreeing) / float(votes.pairs) if votes.pairs else None,
        agreement_pairs=int(votes.pairs),
    )

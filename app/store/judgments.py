"""Taking judgments: each one acknowledged exactly once, changed only by further revisions."""

import json
import uuid
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Row, text, update
from sqlalchemy.orm import Session

from app.core.errors import Conflict, Invalid, NotFound
from app.core.vocabulary import AssignmentState, Origin
from app.store.answers import Said, check, said
from app.store.answers import Submission as Submission
from app.store.claims import Task, lock_member, release_slots, tasks
from app.store.db import quickly
from app.store.models import Assignment, new_id
from app.store.revising import EXTRAS, look_again

UNDO_DEPTH = 10
LONGEST_REASON = 500


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
    SELECT p.allow_tie, p.allow_both_bad, p.ask_strength, p.ask_flags, p.ask_ratings, p.ask_rationale, p.ask_ideal,
        p.guideline_version,
        (SELECT count(*) FROM candidate k WHERE k.comparison_id = :comparison) AS answers,
        EXISTS (SELECT FROM slot s WHERE s.comparison_id = :comparison AND s.holder_id = :account) AS has_slot,
        r.judgment_id, r.revision, r.counted, r.verdict, r.tiers, r.both_bad, r.strength, r.flags, r.ratings,
        r.rationale, r.first_key_ms, r.active_ms, r.guideline_version AS key_guideline_version,
        j.comparison_id AS key_comparison, o.text AS ideal, (
            SELECT k.position FROM candidate k
            WHERE k.comparison_id = j.comparison_id AND k.completion_id = o.edited_from_id
        ) AS edited_from
    FROM project p
    LEFT JOIN judgment_revision r ON r.account_id = :account AND r.key = :key
    LEFT JOIN judgment j ON j.id = r.judgment_id
    LEFT JOIN completion o ON o.id = r.ideal_id
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

# A better answer that was written before for the same comparison is replaced as a demonstration, or kept if it is the
# same one.
_STORE_IDEAL = text(
    """
    WITH asked AS (
        SELECT c.prompt_id, (
            SELECT k.completion_id FROM candidate k WHERE k.comparison_id = c.id AND k.position = :edited_from
        ) AS edited_from_id
        FROM comparison c WHERE c.id = :comparison
    ), before AS (
        SELECT o.id, d.id AS demonstration_id, o.text = :ideal AND o.edited_from_id IS NOT DISTINCT FROM (
            SELECT edited_from_id FROM asked
        ) AS same
        FROM judgment j
        JOIN judgment_revision r ON r.judgment_id = j.id
        JOIN completion o ON o.id = r.ideal_id
        JOIN demonstration d ON d.project_id = o.project_id AND d.completion_id = o.id
        WHERE j.comparison_id = :comparison AND j.account_id = :account
        ORDER BY r.revision DESC LIMIT 1
    ), written AS (
        INSERT INTO completion (id, project_id, prompt_id, origin, text, author_id, edited_from_id)
        SELECT :ideal_id, :project, prompt_id, :origin, :ideal, :account, edited_from_id
        FROM asked WHERE NOT EXISTS (SELECT FROM before WHERE same)
        RETURNING id, prompt_id
    ), shown AS (
        INSERT INTO demonstration (id, project_id, prompt_id, completion_id, replaces_id, guideline_version)
        SELECT :demonstration_id, :project, prompt_id, id, (SELECT demonstration_id FROM before), :guideline_version
        FROM written
    )
    SELECT id FROM written UNION ALL SELECT id FROM before WHERE same
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
    ), dropped AS (
        DELETE FROM draft WHERE account_id = :account AND task_id = :comparison
    ), filled AS (
        UPDATE slot SET state = 'filled'
        WHERE comparison_id = :comparison AND holder_id = :account AND state = 'leased'
    )
    INSERT INTO judgment_revision (
        judgment_id, revision, account_id, key, withdrawn, verdict, tiers, both_bad, strength, shown_order,
        flags, ratings, rationale, ideal_id, guideline_version, counted, served_at, first_key_ms, active_ms
    )
    SELECT id, revision, :account, :key, false, :verdict, CAST(:tiers AS jsonb), :both_bad, :strength,
        CAST(:shown AS jsonb), CAST(:flags AS jsonb), CAST(:ratings AS jsonb), :rationale, CAST(:ideal_id AS uuid),
        :guideline_version, :counted, :served_at, :first_key_ms, :active_ms
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
    check(submission, account_id, seen)
    answer = said(submission)
    counted = seen.has_slot or quickly(s, _TAKE_FREE_SLOT, who).one_or_none() is not None
    guideline_version = submission.guideline_version or seen.guideline_version
    ideal_id = None if answer.ideal is None else _store_ideal(s, who, answer, guideline_version)
    stored = quickly(
        s,
        _STORE,
        who
        | {
            "new_id": new_id(),
            "key": submission.key,
            "verdict": answer.verdict,
            "tiers": json.dumps(answer.tiers),
            "both_bad": answer.both_bad,
            "strength": answer.strength,
            "shown": json.dumps(submission.order),
            "flags": answer.flags and json.dumps(answer.flags),
            "ratings": answer.ratings and json.dumps(answer.ratings),
            "rationale": answer.rationale,
            "ideal_id": ideal_id,
            "guideline_version": guideline_version,
            "counted": counted,
            "served_at": meeting.leased_at,
            "first_key_ms": submission.first_key_ms,
            "active_ms": submission.active_ms,
        },
    ).one_or_none()
    if stored is None:  # the key came in another request, on another comparison, in this very moment
        raise _another_body()
    return Receipt(stored.judgment_id, stored.revision, counted, replayed=False)


def _store_ideal(s: Session, who: dict[str, uuid.UUID], answer: Said, guideline_version: int) -> uuid.UUID:
    """Keep the better answer as a completion and hold it up as a demonstration; returns the completion's id."""
    values = {
        "ideal": answer.ideal,
        "edited_from": answer.edited_from,
        "origin": (Origin.WRITTEN if answer.edited_from is None else Origin.EDITED).value,
        "ideal_id": new_id(),
        "demonstration_id": new_id(),
        "guideline_version": guideline_version,
    }
    return uuid.UUID(str(s.execute(_STORE_IDEAL, who | values).scalar_one()))


def _replay(submission: Submission, seen: Row[Any]) -> Receipt:
    stored = Said(
        seen.verdict,
        seen.tiers,
        seen.both_bad,
        seen.strength,
        seen.flags,
        seen.ratings,
        seen.rationale,
        seen.ideal,
        seen.edited_from,
    )
    same = stored == said(submission) and (seen.key_comparison, seen.first_key_ms, seen.active_ms) == (
        submission.comparison_id,
        submission.first_key_ms,
        submission.active_ms,
    )
    if not same or submission.guideline_version not in (None, seen.key_guideline_version):
        raise _another_body()
    return Receipt(seen.judgment_id, seen.revision, seen.counted, replayed=True)


def _another_body() -> Conflict:
    return Conflict("This key was already used for another judgment.", "Reload the page; the first one is stored.")


_DROP_DRAFT = text("DELETE FROM draft WHERE account_id = :account AND task_id = :comparison")


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
    s.execute(_DROP_DRAFT, who)
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

    What was said beside the verdict comes with it as a draft. Conflict when there is nothing (more) to take back.
    """
    who = {"project": project_id, "account": account_id, "lease": lock_member(s, project_id, account_id)}
    if quickly(s, _OPENED, who).scalar_one() >= UNDO_DEPTH:
        raise Conflict(f"The last {UNDO_DEPTH} judgments are open again.", "Answer them first.")
    newest = quickly(s, _NEWEST, who).one_or_none()
    if newest is None:
        raise Conflict("There is nothing to undo.")
    quickly(s, _LOCK, who | {"comparison": newest.comparison_id})
    said_before = look_again(s, project_id, account_id, newest.comparison_id).said
    quickly(s, _WITHDRAW, who | {"comparison": newest.comparison_id, "judgment": newest.id, "key": new_id()})
    [task] = tasks(s, project_id, account_id, [newest.comparison_id])
    return replace(task, draft={name: said_before[name] for name in EXTRAS if said_before[name] is not None} or None)


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

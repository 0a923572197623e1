"""Checks on the annotator, mixed in unmarked: gold, repeats, and the qualification round that comes before all else.

A check is a comparison without slots: it is leased, answered and undone like any other, and never counted as a vote.
"""

import random
import uuid
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Row, text, update
from sqlalchemy.orm import Session

from app.core.pairing import agrees
from app.core.vocabulary import ComparisonState, DrawReason, Role
from app.store.models import Candidate, Comparison, Membership, Project, new_id

LEAST_BETWEEN = 10  # judgments between a comparison and its repeat
LOOK_BACK = 200  # of one person's judgments, how many are looked at for something to repeat


@dataclass(frozen=True)
class Round:
    """How far somebody is in the qualification round: how many of its gold they have met, and had right."""

    met: int
    right: int


@dataclass(frozen=True)
class Lesson:
    """What somebody learns after one qualification comparison. `side` is where the better answer stood, from 0.

    `answers` are the texts as they were shown. `outcome` is set by the answer that ended the round.
    """

    right: bool
    skipped: bool
    side: int | None
    prompt: str
    answers: list[str]
    explanation: str
    met: int
    wanted: int
    had_right: int
    outcome: Literal["passed", "failed"] | None


def qualifies(project: Project, member: Membership) -> bool:
    """Whether this person still has to pass the qualification round; admins, who wrote the gold, do not."""
    return project.qualify_on > 0 and member.qualified_at is None and member.role is not Role.ADMIN


def must_qualify(s: Session, project_id: uuid.UUID, account_id: uuid.UUID) -> bool:
    """The same by ids: such a person is handed no other work."""
    return qualifies(s.get_one(Project, project_id), s.get_one(Membership, (project_id, account_id)))


def draw_check(s: Session, project_id: uuid.UUID, account_id: uuid.UUID, held: list[uuid.UUID]) -> uuid.UUID | None:
    """Lease a check to this person, if it is time for one: its comparison, else None.

    While somebody qualifies there is nothing but the round's gold, and None when all of it is held or met. `held` is
    what they hold already: no check asks the same prompt beside it.
    """
    project = s.get_one(Project, project_id)
    member = s.get_one(Membership, (project_id, account_id))
    if qualifies(project, member):
        if member.failed_at is not None or _out(s, project, member) >= project.qualify_on:
            return None
        return _draw_gold(s, project, account_id, held, qualification=True)
    found = None
    # Admins know the gold.
    if member.role is not Role.ADMIN and random.random() < project.gold_rate:  # noqa: S311 - nothing is hidden by it
        found = _draw_gold(s, project, account_id, held, qualification=False)
    if found is None and random.random() < project.repeat_rate:  # noqa: S311
        found = _draw_repeat(s, project, account_id, held)
    return found


# What was handed out in this round: judged, even if taken back, skipped, or held right now.
_OUT = text(
    """
    SELECT count(*) FROM gold g
    JOIN assignment a ON a.comparison_id = g.comparison_id AND a.account_id = :account
    LEFT JOIN judgment j ON j.comparison_id = a.comparison_id AND j.account_id = a.account_id
    LEFT JOIN judgment_revision r ON r.judgment_id = j.id AND r.revision = 1
    WHERE g.project_id = :project AND g.qualification
        AND coalesce(r.submitted_at, a.leased_at) > coalesce(:since, '-infinity'::timestamptz)
        AND (j.id IS NOT NULL OR a.state = 'skipped' OR (a.state = 'leased' AND a.lease_expires_at > now()))
    """
)


def _out(s: Session, project: Project, member: Membership) -> int:
    who = {"project": project.id, "account": member.account_id, "since": member.retried_at}
    return int(s.execute(_OUT, who).scalar_one())


# Nobody meets gold whose answers they have compared before: what they said there would only be said again.
_UNMET = """
        g.project_id = :project AND g.retired_at IS NULL AND g.qualification = :qualification
        AND (SELECT count(*) FROM candidate k WHERE k.comparison_id = c.id) = :answers
        AND NOT EXISTS (
            SELECT FROM comparison o
            JOIN assignment met ON met.comparison_id = o.id AND met.account_id = :account
            JOIN candidate theirs ON theirs.comparison_id = o.id
            JOIN candidate ours ON ours.comparison_id = c.id AND ours.completion_id = theirs.completion_id
            WHERE o.project_id = c.project_id AND o.prompt_id = c.prompt_id AND o.id <> c.id
        )
"""

# A lease that ran out before an answer is no meeting yet.
_GOLD = text(
    f"""
    SELECT g.comparison_id FROM gold g
    JOIN comparison c ON c.id = g.comparison_id
    LEFT JOIN assignment a ON a.comparison_id = g.comparison_id AND a.account_id = :account
    WHERE {_UNMET}
        AND (a.state IS NULL OR a.state = 'expired' OR (a.state = 'leased' AND a.lease_expires_at <= now()))
        AND c.prompt_id NOT IN (SELECT prompt_id FROM comparison WHERE id = ANY(:held))
    ORDER BY random() LIMIT 1
    """  # noqa: S608 - constants of this file
)

_UNMET_COUNT = text(
    f"""
    SELECT count(*) FROM gold g JOIN comparison c ON c.id = g.comparison_id
    WHERE {_UNMET} AND NOT EXISTS (
        SELECT FROM assignment a WHERE a.comparison_id = g.comparison_id AND a.account_id = :account
    )
    """  # noqa: S608
)


def unmet(s: Session, project: Project, account_id: uuid.UUID, qualification: bool = True) -> int:
    """How much gold this person has never met."""
    who = {"project": project.id, "account": account_id, "answers": project.answers, "qualification": qualification}
    return int(s.execute(_UNMET_COUNT, who).scalar_one())


def _draw_gold(
    s: Session, project: Project, account_id: uuid.UUID, held: list[uuid.UUID], qualification: bool
) -> uuid.UUID | None:
    who = {"project": project.id, "account": account_id, "held": held}
    drawn = s.execute(_GOLD, who | {"qualification": qualification, "answers": project.answers}).scalar_one_or_none()
    return None if drawn is None else _lease(s, project, account_id, drawn)


# The clearest first: others who met it agree, it was strongly said, many said it. A person who contradicts themselves
# there tells something; on a toss-up nobody does. Never the newest ten, never twice.
_REPEAT = text(
    """
    WITH old AS MATERIALIZED (
        SELECT j.comparison_id, j.id, j.revision FROM judgment j
        WHERE j.project_id = :project AND j.account_id = :account AND NOT j.withdrawn
        ORDER BY j.judged_at DESC OFFSET :between LIMIT :look
    ), decided AS MATERIALIZED (
        SELECT old.comparison_id, c.prompt_id, r.tiers, r.strength
        FROM old
        JOIN comparison c ON c.id = old.comparison_id AND c.reason IN ('random', 'uncertain')
        JOIN judgment_revision r ON r.judgment_id = old.id AND r.revision = old.revision
        WHERE jsonb_array_length(r.tiers) > 1
            AND (SELECT count(*) FROM candidate k WHERE k.comparison_id = c.id) = :answers
            AND c.prompt_id NOT IN (SELECT prompt_id FROM comparison WHERE id = ANY(:held))
            AND NOT EXISTS (
                SELECT FROM comparison again
                JOIN assignment a ON a.comparison_id = again.id AND a.account_id = :account
                WHERE again.project_id = c.project_id AND again.prompt_id = c.prompt_id AND again.repeat_of = c.id
            )
    )
    SELECT decided.comparison_id
    FROM decided CROSS JOIN LATERAL (
        SELECT count(*) FILTER (WHERE r.tiers = decided.tiers) AS same,
            count(*) FILTER (WHERE r.tiers <> decided.tiers) AS other
        FROM judgment j JOIN judgment_revision r ON r.judgment_id = j.id AND r.revision = j.revision
        WHERE j.comparison_id = decided.comparison_id AND j.account_id <> :account AND NOT j.withdrawn
    ) votes
    ORDER BY votes.other, decided.strength DESC NULLS LAST, votes.same DESC, random()
    LIMIT 1
    """
)


def _draw_repeat(s: Session, project: Project, account_id: uuid.UUID, held: list[uuid.UUID]) -> uuid.UUID | None:
    who = {"project": project.id, "account": account_id, "held": held, "answers": project.answers}
    found = s.execute(_REPEAT, who | {"between": LEAST_BETWEEN, "look": LOOK_BACK}).scalar_one_or_none()
    if found is None:
        return None
    original = s.get_one(Comparison, found)
    again = copy_of(s, original, DrawReason.REPEAT)
    return _lease(s, project, account_id, again.id)


def copy_of(s: Session, original: Comparison, reason: DrawReason) -> Comparison:
    """The same answers as a new comparison without slots; its new id shuffles the sides anew."""
    made = Comparison(
        # With the original's moment in the id, which a page shows: a check is not told by its age.
        id=uuid.UUID(bytes=original.id.bytes[:6] + new_id().bytes[6:]),
        project_id=original.project_id,
        prompt_id=original.prompt_id,
        # No policy of its own: a promotion retires what the policy before it wrote.
        checkpoint_id=None,
        reason=reason,
        probability=1.0,
        state=ComparisonState.OPEN,
        votes_wanted=0,
        repeat_of=original.id if reason is DrawReason.REPEAT else None,
    )
    s.add(made)
    s.flush()
    for one in s.query(Candidate).filter_by(comparison_id=original.id):
        s.add(
            Candidate(
                comparison_id=made.id,
                position=one.position,
                project_id=made.project_id,
                prompt_id=made.prompt_id,
                completion_id=one.completion_id,
            )
        )
    s.flush()
    return made


_LEASE = text(
    """
    INSERT INTO assignment AS a (comparison_id, account_id, project_id, state, lease_expires_at)
    VALUES (:comparison, :account, :project, 'leased', now() + make_interval(secs => :lease))
    ON CONFLICT (comparison_id, account_id) DO UPDATE
        SET state = 'leased', leased_at = now(), lease_expires_at = now() + make_interval(secs => :lease)
        WHERE a.state IN ('leased', 'expired')
    RETURNING comparison_id
    """
)


def _lease(s: Session, project: Project, account_id: uuid.UUID, comparison_id: uuid.UUID) -> uuid.UUID | None:
    who = {"project": project.id, "account": account_id, "comparison": comparison_id, "lease": project.lease_seconds}
    return s.execute(_LEASE, who).scalar_one_or_none()


# The first answer is the one that qualifies: the second was given with the explanation in mind.
_MET = text(
    """
    SELECT g.comparison_id, g.tiers, r.tiers AS said FROM gold g
    JOIN assignment a ON a.comparison_id = g.comparison_id AND a.account_id = :account
    LEFT JOIN judgment j ON j.comparison_id = a.comparison_id AND j.account_id = a.account_id
    LEFT JOIN judgment_revision r ON r.judgment_id = j.id AND r.revision = 1
    WHERE g.project_id = :project AND g.qualification AND (j.id IS NOT NULL OR a.state = 'skipped')
        AND coalesce(r.submitted_at, a.leased_at) > coalesce(:since, '-infinity'::timestamptz)
    """
)


def progress(s: Session, member: Membership) -> Round:
    """How far somebody is in their present round. What they skipped is met, and not right."""
    who = {"project": member.project_id, "account": member.account_id, "since": member.retried_at}
    rows = s.execute(_MET, who).all()
    return Round(met=len(rows), right=sum(row.said is not None and agrees(row.tiers, row.said) for row in rows))


_LESSON = text(
    """
    SELECT g.tiers, g.explanation, a.state, j.revision, r.tiers AS said, r.shown_order,
        p.messages -> -1 ->> 'content' AS prompt, (
            SELECT array_agg(o.text ORDER BY k.position)
            FROM candidate k JOIN completion o ON o.id = k.completion_id WHERE k.comparison_id = c.id
        ) AS texts
    FROM gold g
    JOIN comparison c ON c.id = g.comparison_id
    JOIN prompt p ON p.id = c.prompt_id
    JOIN assignment a ON a.comparison_id = g.comparison_id AND a.account_id = :account
    LEFT JOIN judgment j ON j.comparison_id = a.comparison_id AND j.account_id = a.account_id
    LEFT JOIN judgment_revision r ON r.judgment_id = j.id AND r.revision = 1
    WHERE g.comparison_id = :comparison AND g.project_id = :project AND g.qualification
    """
)


def after(s: Session, project_id: uuid.UUID, account_id: uuid.UUID, comparison_id: uuid.UUID) -> Lesson | None:
    """What to tell somebody who has just answered or skipped a comparison; None outside the qualification round.

    Settles the round when it is over: enough of its gold is met, or there is no more.
    """
    project = s.get_one(Project, project_id)
    if not project.qualify_on:
        return None
    member = s.get_one(Membership, (project_id, account_id))
    if member.role is Role.ADMIN:
        return None
    who = {"project": project_id, "account": account_id, "comparison": comparison_id}
    row = s.execute(_LESSON, who).one_or_none()
    if row is None or (row.said is None and row.state != "skipped") or (row.revision or 1) > 1:
        return None
    settled = None if member.qualified_at is None and member.failed_at is None else member
    done = progress(s, member)
    if settled is None and (done.met >= project.qualify_on or not _more_to_come(s, project, member)):
        passed = done.right >= needed(project, done.met)
        _settle(s, member, passed)
        settled = member
    return _lesson(row, project, done, settled)


def needed(project: Project, met: int) -> int:
    """How many of so many gold comparisons must be right."""
    exact = project.qualify_at * met
    return max(1, int(exact) + (exact - int(exact) > 1e-9))


def _more_to_come(s: Session, project: Project, member: Membership) -> bool:
    if _out(s, project, member) > progress(s, member).met:
        return True
    who = {"project": project.id, "account": member.account_id, "held": [], "qualification": True}
    return s.execute(_GOLD, who | {"answers": project.answers}).first() is not None


def _settle(s: Session, member: Membership, passed: bool) -> None:
    column = Membership.qualified_at if passed else Membership.failed_at
    s.execute(
        update(Membership)
        .where(Membership.project_id == member.project_id, Membership.account_id == member.account_id)
        .values({column: text("clock_timestamp()")}),
        execution_options={"synchronize_session": False},
    )
    s.refresh(member)


def _lesson(row: Row[Any], project: Project, done: Round, settled: Membership | None) -> Lesson:
    order = row.shown_order or list(range(len(row.texts)))
    best = row.tiers[0][0] if len(row.tiers) > 1 else None
    outcome: Literal["passed", "failed"] | None = None
    if settled is not None:
        outcome = "passed" if settled.qualified_at is not None else "failed"
    return Lesson(
        right=row.said is not None and agrees(row.tiers, row.said),
        skipped=row.said is None,
        side=None if best is None else order.index(best),
        prompt=row.prompt or "",
        answers=[row.texts[position] for position in order],
        explanation=row.explanation,
        met=done.met,
        wanted=project.qualify_on,
        had_right=done.right,
        outcome=outcome,
    )

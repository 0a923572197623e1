"""Handing out comparisons: slots, assignments, leases, all on the database's clock.

The statements here and in `judgments` run for every judgment, so they are few, and written out.
"""

import random
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, select, text, update
from sqlalchemy.orm import Session

from app.core.errors import NotFound
from app.core.pairing import side_order
from app.core.records import Message
from app.core.vocabulary import AssignmentState
from app.store import checks
from app.store.db import quickly
from app.store.models import Assignment

MOST_AT_ONCE = 5000  # leases ended by one call; the next one takes the rest


@dataclass(frozen=True)
class Task:
    """One comparison as one person is shown it.

    `answers` are in the order of serving; `order[i]` is the canonical position of `answers[i]`. `policies` names the
    policy of each answer, in the same order (None: not ours), for admins only. `draft` is what this person has typed or
    chosen for it and not yet submitted.
    """

    comparison_id: uuid.UUID
    prompt: list[Message]
    answers: list[str]
    order: list[int]
    lease_expires_at: datetime
    policies: list[str | None]
    draft: dict[str, Any] | None = None
    leased_at: datetime | None = None


# The lock lets a person's two tabs claim one after the other, so that they share leases instead of doubling them. Whom
# `stopped` names is handed nothing new (app.store.standing says why, in words).
_LOCK_MEMBER = text(
    """
    SELECT p.lease_seconds, p.cap, p.gold_rate > 0 OR p.repeat_rate > 0 AS checked,
        m.paused_at IS NOT NULL OR (m.role = 'admin' AND NOT p.admins_judge)
            OR (p.qualify_on > 0 AND m.failed_at IS NOT NULL) AS stopped,
        p.qualify_on > 0 AND m.qualified_at IS NULL AND m.role <> 'admin' AS qualifying
    FROM membership m JOIN project p ON p.id = m.project_id
    WHERE m.project_id = :project AND m.account_id = :account AND m.deactivated_at IS NULL
    FOR NO KEY UPDATE OF m
    """
)

# What was taken back by undo comes first, then the longest held. What was given already is counted by the same
# statement: a judgment that another tab is about to commit is either a lease here or given, never both or neither.
_LIVE = text(
    """
    SELECT live.comparison_id, live.old, CASE WHEN :capped THEN (
        SELECT count(*) FROM judgment WHERE project_id = :project AND account_id = :account AND NOT withdrawn
    ) + (
        SELECT count(*) FROM writing WHERE project_id = :project AND account_id = :account AND state = 'written'
    ) ELSE 0 END AS given
    FROM (VALUES (1)) always LEFT JOIN LATERAL (
        SELECT a.comparison_id, a.lease_expires_at < now() + make_interval(secs => :lease) / 2 AS old,
            row_number() OVER (ORDER BY j.judged_at DESC NULLS LAST, a.leased_at, a.comparison_id) AS place
        FROM assignment a LEFT JOIN judgment j ON j.comparison_id = a.comparison_id AND j.account_id = a.account_id
        WHERE a.project_id = :project AND a.account_id = :account AND a.state = 'leased' AND a.lease_expires_at > now()
    ) live ON live.place <= :count
    ORDER BY live.place
    """
)

# What another tab is submitting this very moment needs no longer lease, and is not waited for.
_RENEW = text(
    """
    UPDATE assignment SET lease_expires_at = now() + make_interval(secs => :lease)
    WHERE account_id = :account AND comparison_id IN (
        SELECT comparison_id FROM assignment
        WHERE account_id = :account AND comparison_id = ANY(:held) AND state = 'leased'
        FOR UPDATE SKIP LOCKED
    )
    """
)

# How many free slots one claim looks at. It is written into the statement, and what is looked up by key is written as
# such: then the plan for any parameters is as good as one for these, and Postgres need not plan for each judgment.
LOOK = 16
_UNMET = f"""
                SELECT s.comparison_id, s.position, s.draw_key, s.draw_key < :start AS around FROM slot s
                WHERE s.project_id = :project AND s.state = 'free' AND s.priority = level.priority
                    AND s.draw_key {{side}} :start AND NOT EXISTS (
                        SELECT FROM assignment a WHERE a.comparison_id = s.comparison_id AND a.account_id = :account
                        OFFSET 0
                    )
                ORDER BY s.draw_key LIMIT {LOOK}
"""  # noqa: S608 - constants of this file

# From the highest priority down, look along the free slots from a random point and around, prefer prompts of which this
# person holds nothing yet, lock only what is taken. Whoever else looks at the same slots skips the locked ones. The
# unique indexes guarantee what this only filters.
_TAKE = text(
    f"""
    WITH RECURSIVE level AS (
        SELECT max(s.priority) AS priority FROM slot s WHERE s.project_id = :project AND s.state = 'free'
        UNION ALL
        SELECT (
            SELECT max(s.priority) FROM slot s
            WHERE s.project_id = :project AND s.state = 'free' AND s.priority < level.priority
        ) FROM level WHERE level.priority IS NOT NULL
    ), near AS MATERIALIZED (
        SELECT level.priority, unmet.*
        FROM level CROSS JOIN LATERAL (
            ({_UNMET.format(side=">=")}) UNION ALL ({_UNMET.format(side="<")})
        ) unmet
        LIMIT {LOOK}
    ), one AS MATERIALIZED (
        SELECT DISTINCT ON (comparison_id) near.*,
            (SELECT c.prompt_id FROM comparison c WHERE c.id = near.comparison_id) AS prompt_id
        FROM near ORDER BY comparison_id, around, draw_key
    ), spread AS MATERIALIZED (
        SELECT one.*, (prompt_id IN (SELECT prompt_id FROM comparison WHERE id = ANY(CAST(:held AS uuid[]))))::int
            + row_number() OVER (PARTITION BY priority, prompt_id ORDER BY around, draw_key) AS met
        FROM one
    ), taken AS MATERIALIZED (
        SELECT s.comparison_id, s.position
        FROM spread JOIN slot s ON s.comparison_id = spread.comparison_id AND s.position = spread.position
        WHERE s.state = 'free'
        ORDER BY spread.priority DESC, spread.met, spread.around, spread.draw_key
        LIMIT :count
        FOR UPDATE OF s SKIP LOCKED
    ), leased AS (
        INSERT INTO assignment (comparison_id, account_id, project_id, state, lease_expires_at)
        SELECT comparison_id, :account, :project, 'leased', now() + make_interval(secs => :lease) FROM taken
        RETURNING comparison_id
    )
    UPDATE slot SET state = 'leased', holder_id = :account
    FROM taken JOIN leased ON leased.comparison_id = taken.comparison_id
    WHERE slot.comparison_id = taken.comparison_id AND slot.position = taken.position
    RETURNING slot.comparison_id
    """  # noqa: S608 - constants of this file
)

# Nothing new is left, but this person once let a lease run out on something that still wants a vote. The meeting is
# locked before the slot, as a late judgment of it does.
_TAKE_AGAIN = text(
    """
    WITH mine AS MATERIALIZED (
        SELECT a.comparison_id, a.leased_at FROM assignment a
        WHERE a.project_id = :project AND a.account_id = :account AND a.state = 'expired'
            AND EXISTS (SELECT FROM slot s WHERE s.comparison_id = a.comparison_id AND s.state = 'free')
        ORDER BY a.leased_at LIMIT 16
        FOR UPDATE OF a SKIP LOCKED
    ), open AS MATERIALIZED (
        SELECT DISTINCT ON (mine.comparison_id) mine.comparison_id, s.position, s.priority, mine.leased_at
        FROM mine JOIN slot s ON s.comparison_id = mine.comparison_id WHERE s.state = 'free'
        ORDER BY mine.comparison_id, s.position
    ), taken AS MATERIALIZED (
        SELECT s.comparison_id, s.position
        FROM open JOIN slot s ON s.comparison_id = open.comparison_id AND s.position = open.position
        WHERE s.state = 'free'
        ORDER BY open.priority DESC, open.leased_at
        LIMIT :count
        FOR UPDATE OF s SKIP LOCKED
    ), leased AS (
        UPDATE assignment a
        SET state = 'leased', leased_at = now(), lease_expires_at = now() + make_interval(secs => :lease)
        FROM taken
        WHERE a.comparison_id = taken.comparison_id AND a.account_id = :account AND a.state = 'expired'
        RETURNING a.comparison_id
    )
    UPDATE slot SET state = 'leased', holder_id = :account
    FROM taken JOIN leased ON leased.comparison_id = taken.comparison_id
    WHERE slot.comparison_id = taken.comparison_id AND slot.position = taken.position
    RETURNING slot.comparison_id
    """
)

# The answers to comparison c in canonical order, and who wrote each.
ANSWERS = """
    CROSS JOIN LATERAL (
        SELECT array_agg(o.text ORDER BY k.position) AS texts, array_agg(v.name ORDER BY k.position) AS policies
        FROM candidate k
        JOIN completion o ON o.id = k.completion_id
        LEFT JOIN checkpoint v ON v.id = o.checkpoint_id
        WHERE k.comparison_id = c.id
    ) answer
"""

_TASKS = text(
    f"""
    SELECT a.comparison_id, a.leased_at, a.lease_expires_at, p.messages, answer.texts, answer.policies, d.body AS draft
    FROM assignment a
    JOIN comparison c ON c.id = a.comparison_id
    JOIN prompt p ON p.id = c.prompt_id
    LEFT JOIN draft d ON d.account_id = a.account_id AND d.task_id = a.comparison_id
    {ANSWERS}
    WHERE a.project_id = :project AND a.account_id = :account AND a.comparison_id = ANY(:comparisons)
        AND a.state = 'leased'
    """  # noqa: S608 - constants
)


def claim(s: Session, project_id: uuid.UUID, account_id: uuid.UUID, count: int = 2) -> list[Task]:
    """Up to `count` comparisons leased to this person: first those that already are (two tabs share), then new ones.

    New ones of the highest priority come first. Nothing new goes to somebody who may not judge right now, nor past the
    cap, under which what is held counts as given. An empty list means that nothing waits for this person. NotFound for
    somebody who is not, or no longer, a member.
    """
    member = _lock(s, project_id, account_id)
    who = {"project": project_id, "account": account_id, "lease": member.lease_seconds}
    live = quickly(s, _LIVE, who | {"count": count, "capped": member.cap is not None}).all()
    held = [row.comparison_id for row in live if row.comparison_id is not None]
    if any(row.old for row in live):
        quickly(s, _RENEW, who | {"held": held})
    wanted = len(held) if member.stopped else count
    if member.cap is not None:
        # Fewer than `count` held means that these are all that this person holds.
        wanted = min(wanted, max(member.cap - live[0].given, len(held)))
    if len(held) < wanted and (member.qualifying or member.checked):
        held = _with_checks(s, who, held, wanted)
    if len(held) < wanted and not member.qualifying:
        held = _take(s, who, held, wanted)
    found = tasks(s, project_id, account_id, held)
    kept = sum(row.comparison_id is not None for row in live)
    # New ones in the order in which the next call gives them again: a page that is loaded anew shows the same.
    return found[:kept] + sorted(found[kept:], key=lambda one: (one.leased_at, one.comparison_id))


def _with_checks(s: Session, who: dict[str, Any], held: list[uuid.UUID], count: int) -> list[uuid.UUID]:
    """What is held, with the checks among the tasks that are about to be drawn."""
    for _ in range(count - len(held)):
        check = checks.draw_check(s, who["project"], who["account"], held)
        if check is not None:
            held = [*held, check]
    return held


def _take(s: Session, who: dict[str, Any], held: list[uuid.UUID], count: int) -> list[uuid.UUID]:
    """What is held, and new leases up to `count` in all; reopens run-out leases only when nothing else is free."""
    for _ in range(2):  # where others hold all that lies near the first point, another point
        held = held + _more(s, who, held, count)
        if len(held) == count:
            return held
    if expire_leases(s, who["project"]):
        held = held + _more(s, who, held, count)
    if len(held) < count:
        held = [*held, *quickly(s, _TAKE_AGAIN, who | {"count": count - len(held)}).scalars()]
    return held


def _more(s: Session, who: dict[str, Any], held: list[uuid.UUID], count: int) -> list[uuid.UUID]:
    start = random.random()  # noqa: S311 - it spreads people, it hides nothing
    parameters = who | {"count": count - len(held), "held": held, "start": start}
    return list(quickly(s, _TAKE, parameters).scalars())


def lock_member(s: Session, project_id: uuid.UUID, account_id: uuid.UUID) -> int:
    """Make this person's claims and undos wait for each other; returns the lease in seconds. NotFound for no member."""
    return int(_lock(s, project_id, account_id).lease_seconds)


def _lock(s: Session, project_id: uuid.UUID, account_id: uuid.UUID) -> Row[Any]:
    member = quickly(s, _LOCK_MEMBER, {"project": project_id, "account": account_id}).one_or_none()
    if member is None:
        raise NotFound("You are not a member of this project.")
    return member


def tasks(s: Session, project_id: uuid.UUID, account_id: uuid.UUID, comparison_ids: list[uuid.UUID]) -> list[Task]:
    """The texts of comparisons that this person holds a lease on, in the order given; others are left out."""
    if not comparison_ids:
        return []
    found = {}
    for row in quickly(s, _TASKS, {"project": project_id, "account": account_id, "comparisons": comparison_ids}):
        order = side_order(str(row.comparison_id), str(account_id), len(row.texts))
        found[row.comparison_id] = Task(
            comparison_id=row.comparison_id,
            prompt=row.messages,
            answers=[row.texts[i] for i in order],
            order=order,
            lease_expires_at=row.lease_expires_at,
            policies=[row.policies[i] for i in order],
            draft=row.draft,
            leased_at=row.leased_at,
        )
    return [found[one] for one in comparison_ids if one in found]


def expire_leases(s: Session, project_id: uuid.UUID | None = None) -> int:
    """Reopen the slots of leases that have run out, in one project or in all; returns how many leases that were."""
    run_out = [Assignment.lease_expires_at <= text("now()")]
    if project_id is not None:
        run_out.append(Assignment.project_id == project_id)
    return reopen_leases(s, *run_out)


def reopen_leases(s: Session, *which: ColumnElement[bool]) -> int:
    """End these leases and reopen their slots; what is being judged this very moment is left alone."""
    due = (
        select(Assignment.comparison_id, Assignment.account_id)
        .where(Assignment.state == AssignmentState.LEASED, *which)
        .limit(MOST_AT_ONCE)
        .with_for_update(skip_locked=True)
        .cte("due")
    )
    ended = s.execute(
        update(Assignment)
        .where(Assignment.comparison_id == due.c.comparison_id, Assignment.account_id == due.c.account_id)
        .values(state=AssignmentState.EXPIRED, lease_expires_at=None)
        .returning(Assignment.comparison_id, Assignment.account_id),
        execution_options={"synchronize_session": False},
    ).all()
    release_slots(s, [(row.comparison_id, row.account_id) for row in ended])
    return len(ended)


# Whoever changes how many slots of a comparison are open holds its row, so that two releases do not both retire one.
_HOLD = text("SELECT FROM comparison WHERE id = ANY(:comparisons) ORDER BY id FOR NO KEY UPDATE")

_RELEASE = text(
    """
    WITH given AS (
        SELECT s.comparison_id, s.position, c.state = 'open' AS open, c.votes_wanted - p.votes_wanted AS surplus,
            row_number() OVER (PARTITION BY s.comparison_id ORDER BY s.position DESC) AS nth
        FROM unnest(CAST(:comparisons AS uuid[]), CAST(:holders AS uuid[])) AS pair (comparison_id, holder_id)
        JOIN slot s ON s.comparison_id = pair.comparison_id AND s.holder_id = pair.holder_id
        JOIN comparison c ON c.id = s.comparison_id
        JOIN project p ON p.id = s.project_id
    ), released AS (
        UPDATE slot SET holder_id = NULL, state = CASE WHEN open AND nth > surplus THEN 'free' ELSE 'retired' END
        FROM given WHERE slot.comparison_id = given.comparison_id AND slot.position = given.position
        RETURNING slot.comparison_id, slot.state = 'retired' AND given.open AS fewer
    )
    UPDATE comparison SET votes_wanted = votes_wanted - fewer.n
    FROM (SELECT comparison_id, count(*) AS n FROM released WHERE fewer GROUP BY comparison_id) fewer
    WHERE comparison.id = fewer.comparison_id
    """
)


def release_slots(s: Session, holders: Sequence[tuple[uuid.UUID, uuid.UUID]]) -> None:
    """Give up the slots of these (comparison, account) pairs.

    Those of retired comparisons retire, and those of comparisons that have more than the project wants by now.
    """
    if not holders:
        return
    both = [tuple(pair) for pair in holders]
    pairs = {"comparisons": [one for one, _ in both], "holders": [holder for _, holder in both]}
    quickly(s, _HOLD, {"comparisons": pairs["comparisons"]})
    quickly(s, _RELEASE, pairs)

"""Handing out comparisons: slots, assignments, leases, all on the database's clock.

The statements here and in `judgments` run for every judgment, so they are few, and written out.
"""

import random
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Row, case, select, text, tuple_, update
from sqlalchemy.orm import Session

from app.core.errors import NotFound
from app.core.pairing import side_order
from app.core.records import Message
from app.core.vocabulary import AssignmentState, ComparisonState
from app.store.checks import draw_check, must_qualify
from app.store.models import Assignment, Comparison, Project, Slot, SlotState

MOST_AT_ONCE = 5000  # leases ended by one call; the next one takes the rest


@dataclass(frozen=True)
class Task:
    """One comparison as one person is shown it.

    `answers` are in the order of serving; `order[i]` is the canonical position of `answers[i]`. `policies` names the
    policy of each answer, in the same order (None: not ours), for admins only.
    """

    comparison_id: uuid.UUID
    prompt: list[Message]
    answers: list[str]
    order: list[int]
    lease_expires_at: datetime
    policies: list[str | None]


# The lock lets a person's two tabs claim one after the other, so that they share leases instead of doubling them.
_LOCK_MEMBER = text(
    """
    SELECT p.lease_seconds
    FROM membership m JOIN project p ON p.id = m.project_id
    WHERE m.project_id = :project AND m.account_id = :account AND m.deactivated_at IS NULL
    FOR NO KEY UPDATE OF m
    """
)

# What was taken back by undo comes first, then the longest held.
_LIVE = text(
    """
    SELECT a.comparison_id, a.lease_expires_at < now() + make_interval(secs => :lease) / 2 AS old
    FROM assignment a LEFT JOIN judgment j ON j.comparison_id = a.comparison_id AND j.account_id = a.account_id
    WHERE a.project_id = :project AND a.account_id = :account AND a.state = 'leased' AND a.lease_expires_at > now()
    ORDER BY j.judged_at DESC NULLS LAST, a.leased_at, a.comparison_id
    LIMIT :count
    """
)

# Look along the free slots from a random point, prefer prompts of which this person holds nothing yet, lock only what
# is taken. Whoever else looks at the same slots skips the locked ones. The unique indexes guarantee what this only
# filters.
_TAKE = text(
    """
    WITH near AS MATERIALIZED (
        SELECT s.comparison_id, s.position, s.draw_key, c.prompt_id
        FROM slot s JOIN comparison c ON c.id = s.comparison_id
        WHERE s.project_id = :project AND s.state = 'free' AND s.draw_key >= :start
            AND NOT EXISTS (
                SELECT FROM assignment a WHERE a.comparison_id = s.comparison_id AND a.account_id = :account
            )
        ORDER BY s.draw_key
        LIMIT :look
    ), spread AS MATERIALIZED (
        SELECT DISTINCT ON (prompt_id) comparison_id, position, draw_key,
            prompt_id IN (SELECT prompt_id FROM comparison WHERE id = ANY(:held)) AS met
        FROM near ORDER BY prompt_id, draw_key
    ), taken AS MATERIALIZED (
        SELECT s.comparison_id, s.position
        FROM spread JOIN slot s ON s.comparison_id = spread.comparison_id AND s.position = spread.position
        WHERE s.state = 'free'
        ORDER BY spread.met, spread.draw_key
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
    """
)

# Nothing new is left, but this person once let a lease run out on something that still wants a vote.
_TAKE_AGAIN = text(
    """
    WITH mine AS MATERIALIZED (
        SELECT DISTINCT ON (a.comparison_id) a.comparison_id, s.position
        FROM assignment a JOIN slot s ON s.comparison_id = a.comparison_id
        WHERE a.project_id = :project AND a.account_id = :account AND a.state = 'expired' AND s.state = 'free'
    ), taken AS MATERIALIZED (
        SELECT s.comparison_id, s.position
        FROM mine JOIN slot s ON s.comparison_id = mine.comparison_id AND s.position = mine.position
        WHERE s.state = 'free'
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

_TASKS = text(
    """
    SELECT a.comparison_id, a.lease_expires_at, p.messages, answer.texts, answer.policies
    FROM assignment a
    JOIN comparison c ON c.id = a.comparison_id
    JOIN prompt p ON p.id = c.prompt_id
    CROSS JOIN LATERAL (
        SELECT array_agg(o.text ORDER BY k.position) AS texts, array_agg(v.name ORDER BY k.position) AS policies
        FROM candidate k
        JOIN completion o ON o.id = k.completion_id
        LEFT JOIN checkpoint v ON v.id = o.checkpoint_id
        WHERE k.comparison_id = a.comparison_id
    ) answer
    WHERE a.project_id = :project AND a.account_id = :account AND a.comparison_id = ANY(:comparisons)
        AND a.state = 'leased'
    """
)


def claim(s: Session, project_id: uuid.UUID, account_id: uuid.UUID, count: int = 2) -> list[Task]:
    """Up to `count` comparisons leased to this person: first those that already are (two tabs share), then new ones.

    An empty list means that nothing waits for this person. NotFound for somebody who is not, or no longer, a member.
    """
    lease = lock_member(s, project_id, account_id)
    who = {"project": project_id, "account": account_id, "lease": lease}
    live = s.execute(_LIVE, who | {"count": count}).all()
    held = [row.comparison_id for row in live]
    if any(row.old for row in live):
        s.execute(
            update(Assignment)
            .where(Assignment.account_id == account_id, Assignment.comparison_id.in_(held))
            .values(lease_expires_at=text("now() + make_interval(secs => :lease)").bindparams(lease=lease)),
            execution_options={"synchronize_session": False},
        )
    project = s.get_one(Project, project_id)
    only_checks = bool(project.qualify_on) and must_qualify(s, project_id, account_id)
    if only_checks or project.gold_rate or project.repeat_rate:
        for _ in range(count - len(held)):
            check = draw_check(s, project_id, account_id, held)
            held = held if check is None else [*held, check]
    if len(held) < count and not only_checks:
        held = _take(s, who, held, count)
    return tasks(s, project_id, account_id, held)


def _take(s: Session, who: dict[str, object], held: list[uuid.UUID], count: int) -> list[uuid.UUID]:
    """What is held, and new leases up to `count` in all; reopens run-out leases only when nothing else is free."""
    look = 8 * count
    for start in (random.random(), 0.0):  # noqa: S311 - it spreads people, it hides nothing
        held = held + _more(s, who, held, count, start, look)
        if len(held) == count:
            return held
    if expire_leases(s, who["project"]):  # type: ignore[arg-type]
        held = held + _more(s, who, held, count, 0.0, look)
    if len(held) < count:
        held = [*held, *s.scalars(_TAKE_AGAIN, who | {"count": count - len(held)})]
    return held


def _more(
    s: Session, who: dict[str, object], held: list[uuid.UUID], count: int, start: float, look: int
) -> list[uuid.UUID]:
    parameters = {"count": count - len(held), "held": held, "start": start, "look": look}
    return list(s.scalars(_TAKE, who | parameters))


def lock_member(s: Session, project_id: uuid.UUID, account_id: uuid.UUID) -> int:
    """Make this person's claims and undos wait for each other; returns the lease in seconds. NotFound for no member."""
    lease = s.execute(_LOCK_MEMBER, {"project": project_id, "account": account_id}).scalar_one_or_none()
    if lease is None:
        raise NotFound("You are not a member of this project.")
    return int(lease)


def tasks(s: Session, project_id: uuid.UUID, account_id: uuid.UUID, comparison_ids: list[uuid.UUID]) -> list[Task]:
    """The texts of comparisons that this person holds a lease on, in the order given; others are left out."""
    if not comparison_ids:
        return []
    found = {}
    rows = s.execute(_TASKS, {"project": project_id, "account": account_id, "comparisons": comparison_ids})
    for comparison_id, expires, messages, texts, policies in rows:
        order = side_order(str(comparison_id), str(account_id), len(texts))
        found[comparison_id] = Task(
            comparison_id=comparison_id,
            prompt=messages,
            answers=[texts[i] for i in order],
            order=order,
            lease_expires_at=expires,
            policies=[policies[i] for i in order],
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
    release_slots(s, list(ended))
    return len(ended)


def release_slots(
    s: Session, holders: Sequence[Row[tuple[uuid.UUID, uuid.UUID]] | tuple[uuid.UUID, uuid.UUID]]
) -> None:
    """Give up the slots of these (comparison, account) pairs; those of retired comparisons retire."""
    if not holders:
        return
    is_open = select(Comparison.state == ComparisonState.OPEN).where(Comparison.id == Slot.comparison_id)
    s.execute(
        update(Slot)
        .where(tuple_(Slot.comparison_id, Slot.holder_id).in_([tuple(pair) for pair in holders]))
        .values(holder_id=None, state=case((is_open.scalar_subquery(), SlotState.FREE), else_=SlotState.RETIRED)),
        execution_options={"synchronize_session": False},
    )

"""How well people judge: their own figures, everybody's for admins, and what an admin does about them."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text, update
from sqlalchemy.orm import Session

from app.core.agreement import wilson
from app.core.errors import Conflict, Invalid, NotFound
from app.core.pairing import Tiers, agrees
from app.core.vocabulary import Role
from app.store import audit, checks
from app.store.models import Membership, Project

MOST = 5000  # of one person's checks and shared comparisons, the newest that are looked at


@dataclass(frozen=True)
class Share:
    """A share with the number that it is of, and Wilson's interval; None where there is nothing to count."""

    hits: float
    of: int

    @property
    def share(self) -> float | None:
        """The share itself."""
        return self.hits / self.of if self.of else None

    @property
    def low(self) -> float:
        """The interval's lower end."""
        return wilson(self.hits, self.of)[0]

    @property
    def high(self) -> float:
        """The interval's upper end."""
        return wilson(self.hits, self.of)[1]


NOTHING = Share(0, 0)


@dataclass(frozen=True)
class Estimate:
    """The newest fit of somebody's skill, with its interval, and on how many votes it stands."""

    skill: float
    low: float
    high: float
    judgments: int
    model: str
    fitted_at: datetime


@dataclass(frozen=True)
class Figures:
    """One person in one project.

    `judgments` counts all that stand, checks included. `agreement` is over pairs of votes on the same comparison, and
    `chance` what two people who choose at random, as often as these do, would reach. `left` is the share of choices for
    the left side. `round` is set while the project has a qualification round.
    """

    account_id: uuid.UUID
    name: str
    role: Role
    judgments: int
    today: int
    median_active_ms: float | None
    repeats: Share
    agreement: Share
    chance: float | None
    gold: Share
    left: Share
    ties: int
    skips: int
    skill: Estimate | None
    paused_at: datetime | None
    left_out: bool
    qualified_at: datetime | None
    failed_at: datetime | None
    deactivated_at: datetime | None
    unmet_gold: int | None = None

    @property
    def kappa(self) -> float | None:
        """Agreement beyond chance, of what is possible (Cohen 1960)."""
        if self.agreement.share is None or self.chance is None or self.chance >= 1:
            return None
        return (self.agreement.share - self.chance) / (1 - self.chance)


# One row a person. Each figure is a walk along one person's own judgments, the newest first, and stops at :most.
_PEOPLE = text(
    """
    SELECT m.account_id, coalesce(a.username, m.source, '(erased)') AS name, m.role, m.paused_at, m.left_out,
        m.qualified_at, m.failed_at, coalesce(m.deactivated_at, a.deactivated_at) AS deactivated_at,
        count_.total, count_.today, speed.median, speed.lefts, speed.sides, speed.ties, skipped.n AS skips,
        k.skill, k.low, k.high, k.judgments AS fitted_on, k.model, k.fitted_at
    FROM membership m
    JOIN account a ON a.id = m.account_id
    LEFT JOIN skill k ON k.project_id = m.project_id AND k.account_id = m.account_id
    CROSS JOIN LATERAL (
        SELECT count(*) AS total, count(*) FILTER (WHERE judged_at >= date_trunc('day', now(), 'UTC')) AS today
        FROM judgment j WHERE j.project_id = m.project_id AND j.account_id = m.account_id AND NOT j.withdrawn
    ) count_
    CROSS JOIN LATERAL (
        SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY active_ms) FILTER (WHERE place <= 200) AS median,
            count(*) FILTER (WHERE verdict = 'left') AS lefts,
            count(*) FILTER (WHERE verdict IN ('left', 'right')) AS sides,
            count(*) FILTER (WHERE verdict IN ('tie', 'both_bad')) AS ties
        FROM (
            SELECT r.active_ms, r.verdict, row_number() OVER (ORDER BY j.judged_at DESC) AS place
            FROM (
                SELECT id, revision, judged_at FROM judgment j
                WHERE j.project_id = m.project_id AND j.account_id = m.account_id AND NOT j.withdrawn
                ORDER BY judged_at DESC LIMIT :most
            ) j
            JOIN judgment_revision r ON r.judgment_id = j.id AND r.revision = j.revision
        ) newest
    ) speed
    CROSS JOIN LATERAL (
        SELECT count(*) AS n FROM assignment s
        WHERE s.project_id = m.project_id AND s.account_id = m.account_id AND s.state = 'skipped'
    ) skipped
    WHERE m.project_id = :project AND (CAST(:account AS uuid) IS NULL OR m.account_id = :account)
        AND (m.role <> 'researcher' OR count_.total > 0)
    ORDER BY m.joined_at, m.account_id
    """
)

_NEWEST = """
    SELECT j.id, j.revision, j.comparison_id, j.account_id FROM membership m CROSS JOIN LATERAL (
        SELECT * FROM judgment j
        WHERE j.project_id = m.project_id AND j.account_id = m.account_id AND NOT j.withdrawn
        ORDER BY j.judged_at DESC LIMIT :most
    ) j
    WHERE m.project_id = :project AND (CAST(:account AS uuid) IS NULL OR m.account_id = :account)
"""

_REPEATS = text(
    f"""
    WITH mine AS MATERIALIZED ({_NEWEST})
    SELECT mine.account_id, r.tiers AS again, o.tiers AS before
    FROM mine
    JOIN comparison c ON c.id = mine.comparison_id AND c.reason = 'repeat'
    JOIN judgment_revision r ON r.judgment_id = mine.id AND r.revision = mine.revision
    JOIN judgment b ON b.comparison_id = c.repeat_of AND b.account_id = mine.account_id AND NOT b.withdrawn
    JOIN judgment_revision o ON o.judgment_id = b.id AND o.revision = b.revision
    """  # noqa: S608 - constants of this file
)

# The round's gold is answered once; what was said first is what counts, as the explanation followed.
_GOLD = text(
    f"""
    WITH mine AS MATERIALIZED ({_NEWEST})
    SELECT mine.account_id, g.tiers AS gold, r.tiers AS said
    FROM mine
    JOIN gold g ON g.comparison_id = mine.comparison_id
    JOIN judgment_revision r ON r.judgment_id = mine.id
        AND r.revision = CASE WHEN g.qualification THEN 1 ELSE mine.revision END
    WHERE r.tiers IS NOT NULL
    """  # noqa: S608
)

# Pairs of votes on one comparison, checks left out. `level`: a tie, the first answer, or another one on top.
_PAIRS = text(
    f"""
    WITH mine AS MATERIALIZED ({_NEWEST})
    SELECT mine.account_id, r.tiers AS said, t.tiers AS theirs, count(*) AS n
    FROM mine
    JOIN comparison c ON c.id = mine.comparison_id AND c.reason NOT IN ('gold', 'repeat')
    JOIN judgment_revision r ON r.judgment_id = mine.id AND r.revision = mine.revision
    JOIN judgment o ON o.comparison_id = mine.comparison_id AND o.account_id <> mine.account_id AND NOT o.withdrawn
    JOIN judgment_revision t ON t.judgment_id = o.id AND t.revision = o.revision
    GROUP BY mine.account_id, r.tiers, t.tiers
    """  # noqa: S608
)


def figures(s: Session, project: Project, account_id: uuid.UUID | None = None) -> list[Figures]:
    """Everybody's figures, or one person's, by the time they joined."""
    who = {"project": project.id, "account": account_id, "most": MOST}
    repeats = _shares(s.execute(_REPEATS, who), lambda row: _same(row.again, row.before))
    gold = _shares(s.execute(_GOLD, who), lambda row: agrees(row.gold, row.said))
    agreement, chance = _agreement(s, who)
    found = []
    for row in s.execute(_PEOPLE, who):
        skill = None
        if row.skill is not None:
            skill = Estimate(row.skill, row.low, row.high, row.fitted_on, row.model, row.fitted_at)
        unmet = checks.unmet(s, project, row.account_id) if project.qualify_on and row.failed_at else None
        found.append(
            Figures(
                account_id=row.account_id,
                name=row.name,
                role=Role(row.role),
                judgments=row.total,
                today=row.today,
                median_active_ms=row.median,
                repeats=repeats.get(row.account_id, NOTHING),
                agreement=agreement.get(row.account_id, NOTHING),
                chance=chance.get(row.account_id),
                gold=gold.get(row.account_id, NOTHING),
                left=Share(row.lefts, row.sides),
                ties=row.ties,
                skips=row.skips,
                skill=skill,
                paused_at=row.paused_at,
                left_out=row.left_out,
                qualified_at=row.qualified_at,
                failed_at=row.failed_at,
                deactivated_at=row.deactivated_at,
                unmet_gold=unmet,
            )
        )
    return found


def _same(one: Tiers, other: Tiers) -> bool:
    return [sorted(tier) for tier in one] == [sorted(tier) for tier in other]


def _shares(rows: Any, hit: Any) -> dict[uuid.UUID, Share]:
    found: dict[uuid.UUID, Share] = {}
    for row in rows:
        before = found.get(row.account_id, NOTHING)
        found[row.account_id] = Share(before.hits + bool(hit(row)), before.of + 1)
    return found


def _agreement(s: Session, who: dict[str, Any]) -> tuple[dict[uuid.UUID, Share], dict[uuid.UUID, float]]:
    """For each person, how often their votes are the others', and how often they would be by chance."""
    counted: dict[uuid.UUID, Share] = {}
    said: dict[uuid.UUID, tuple[dict[str, int], dict[str, int]]] = {}
    for row in s.execute(_PAIRS, who):
        before = counted.get(row.account_id, NOTHING)
        same = row.n if _same(row.said, row.theirs) else 0
        counted[row.account_id] = Share(before.hits + same, before.of + row.n)
        mine, theirs = said.setdefault(row.account_id, ({}, {}))
        for words, tiers in ((mine, row.said), (theirs, row.theirs)):
            word = str([sorted(tier) for tier in tiers])
            words[word] = words.get(word, 0) + row.n
    chance = {
        account: sum(n * theirs.get(word, 0) for word, n in mine.items()) / counted[account].of ** 2
        for account, (mine, theirs) in said.items()
    }
    return counted, chance


SORTS = {
    "name": lambda one: one.name.casefold(),
    "judgments": lambda one: -one.judgments,
    "seconds": lambda one: one.median_active_ms if one.median_active_ms is not None else float("inf"),
    "consistency": lambda one: _worst_first(one.repeats.share),
    "agreement": lambda one: _worst_first(one.agreement.share),
    "gold": lambda one: _worst_first(one.gold.share),
    "left": lambda one: -abs((one.left.share if one.left.share is not None else 0.5) - 0.5),
    "skill": lambda one: _worst_first(one.skill.skill if one.skill else None),
}


def _worst_first(share: float | None) -> float:
    return 2.0 if share is None else share


def by(people: Sequence[Figures], column: str) -> list[Figures]:
    """The people by a named column, what needs a look first. Invalid for any other name."""
    if column not in SORTS:
        raise Invalid("There is no such column to sort by.", f"These are: {', '.join(SORTS)}.")
    return sorted(people, key=SORTS[column])


def _member(s: Session, project_id: uuid.UUID, account_id: uuid.UUID) -> Membership:
    member = s.get(Membership, (project_id, account_id), with_for_update=True, populate_existing=True)
    if member is None:
        raise NotFound("There is no such person in this project.")
    return member


def pause(s: Session, project_id: uuid.UUID, account_id: uuid.UUID, by: uuid.UUID | None, paused: bool = True) -> None:
    """Hand somebody nothing more, or hand them work again; what they hold is still taken. Twice changes nothing."""
    member = _member(s, project_id, account_id)
    if paused == (member.paused_at is not None):
        return
    _set(s, member, paused_at=text("clock_timestamp()") if paused else None)
    audit.record(s, project_id, by, "quality.pause" if paused else "quality.resume", str(account_id))


def leave_out(s: Session, project_id: uuid.UUID, account_id: uuid.UUID, by: uuid.UUID | None, out: bool = True) -> None:
    """Keep somebody's judgments out of new snapshots, or take them in again; the judgments stay as they are."""
    member = _member(s, project_id, account_id)
    if out == member.left_out:
        return
    _set(s, member, left_out=out)
    audit.record(s, project_id, by, "quality.leave_out" if out else "quality.take_in", str(account_id))


def qualify(s: Session, project_id: uuid.UUID, account_id: uuid.UUID, by: uuid.UUID | None) -> None:
    """Let somebody judge without the round, or although they did not pass it."""
    member = _member(s, project_id, account_id)
    if member.qualified_at is None:
        _set(s, member, qualified_at=text("clock_timestamp()"), failed_at=None)
        audit.record(s, project_id, by, "quality.qualify", str(account_id))


def try_again(s: Session, project_id: uuid.UUID, account_id: uuid.UUID, by: uuid.UUID | None) -> None:
    """Open the round once more to somebody who did not pass. Conflict where too little gold is left that they have
    not met."""
    member = _member(s, project_id, account_id)
    project = s.get_one(Project, project_id)
    if member.failed_at is None:
        raise Conflict("This person has not failed the qualification round.")
    left = checks.unmet(s, project, account_id)
    if left < project.qualify_on:
        raise Conflict(
            f"The round has {project.qualify_on} gold comparisons, and this person has not met only {left}.",
            "Make more qualification gold, or qualify them by hand.",
        )
    _set(s, member, failed_at=None, retried_at=text("clock_timestamp()"))
    audit.record(s, project_id, by, "quality.try_again", str(account_id))


def _set(s: Session, member: Membership, **values: Any) -> None:
    s.execute(
        update(Membership)
        .where(Membership.project_id == member.project_id, Membership.account_id == member.account_id)
        .values(**values),
        execution_options={"synchronize_session": False},
    )
    s.refresh(member)

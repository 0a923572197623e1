"""What the skill of annotators is fitted on, and where the fit is kept."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.core.pairing import pairs_of
from app.store.models import Skill

MOST_VOTES = 50_000  # judgments that one fit looks at, the newest of the project


@dataclass(frozen=True)
class Votes:
    """(pair, account, whether the answer of the lower position is better), and the pairs whose answer is known.

    A ranking says something about each of its pairs; a tie says nothing about its own. `read_at` is the moment that
    they are of.
    """

    said: list[tuple[str, str, bool]]
    gold: dict[str, bool]
    read_at: datetime


@dataclass(frozen=True)
class Fitted:
    """One annotator's estimate."""

    account_id: str
    model: str
    skill: float
    low: float
    high: float
    judgments: int


# The newest judgment of each member by the index, not a walk along all of them.
_NEWEST = text(
    """
    SELECT max(newest.judged_at) FROM membership m CROSS JOIN LATERAL (
        SELECT judged_at FROM judgment j
        WHERE j.project_id = m.project_id AND j.account_id = m.account_id AND NOT j.withdrawn
        ORDER BY judged_at DESC LIMIT 1
    ) newest
    WHERE m.project_id = :project
    """
)


def newest(s: Session, project_id: uuid.UUID) -> datetime | None:
    """When the project was last judged in."""
    found: datetime | None = s.execute(_NEWEST, {"project": project_id}).scalar_one()
    return found


def fitted_since(s: Session, project_id: uuid.UUID, moment: datetime) -> bool:
    """Whether a fit has seen everything up to that moment."""
    last = s.scalars(select(func.max(Skill.fitted_at)).where(Skill.project_id == project_id)).one()
    return last is not None and last > moment


# Counted votes, and answers to gold; of the round's gold the first answer, before the explanation.
_VOTES = text(
    """
    WITH newest AS MATERIALIZED (
        SELECT j.id, j.revision, j.comparison_id, j.account_id, c.reason
        FROM judgment j JOIN comparison c ON c.id = j.comparison_id
        WHERE j.project_id = :project AND NOT j.withdrawn AND c.reason <> 'repeat'
        ORDER BY j.judged_at DESC LIMIT :most
    )
    SELECT n.comparison_id, n.account_id, r.tiers, g.tiers AS gold
    FROM newest n
    LEFT JOIN gold g ON g.comparison_id = n.comparison_id
    LEFT JOIN slot s ON s.comparison_id = n.comparison_id AND s.holder_id = n.account_id AND s.state = 'filled'
    JOIN judgment_revision r ON r.judgment_id = n.id
        AND r.revision = CASE WHEN g.qualification THEN 1 ELSE n.revision END
    WHERE r.tiers IS NOT NULL AND CASE n.reason WHEN 'gold' THEN g.retired_at IS NULL ELSE s.state IS NOT NULL END
    """
)


def votes(s: Session, project_id: uuid.UUID) -> Votes:
    """What people have said of each pair of answers; gold that is in use has a known answer."""
    said: list[tuple[str, str, bool]] = []
    gold: dict[str, bool] = {}
    for row in s.execute(_VOTES, {"project": project_id, "most": MOST_VOTES}):
        for better, worse in pairs_of(row.tiers):
            said.append((_pair(row, better, worse), str(row.account_id), better < worse))
        if row.gold is not None:
            gold |= {_pair(row, better, worse): better < worse for better, worse in pairs_of(row.gold)}
    return Votes(said, gold, s.scalars(select(func.now())).one())


def _pair(row: Any, one: int, other: int) -> str:
    return f"{row.comparison_id}:{min(one, other)}:{max(one, other)}"


def store(s: Session, project_id: uuid.UUID, fitted: Sequence[Fitted], read_at: datetime) -> None:
    """Keep the newest estimate of each, made of what was there at that moment."""
    for one in fitted:
        values = {
            "model": one.model,
            "skill": one.skill,
            "low": one.low,
            "high": one.high,
            "judgments": one.judgments,
            "fitted_at": read_at,
        }
        s.execute(
            insert(Skill)
            .values(project_id=project_id, account_id=uuid.UUID(one.account_id), **values)
            .on_conflict_do_update(index_elements=["project_id", "account_id"], set_=values)
        )

"""Gold: comparisons whose right answer is known, made from votes that are of one mind, or by hand."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from app.core.errors import Conflict, Invalid, NotFound
from app.core.pairing import agrees
from app.core.vocabulary import DrawReason, Origin
from app.store import audit
from app.store.bulk import place_prompts
from app.store.checks import copy_of
from app.store.models import Candidate, Comparison, Completion, Gold, Project, new_id

LEAST_VOTES = 3
LONGEST_EXPLANATION = 4000
LONGEST_TEXT = 100_000
MOST_LISTED = 200
# A fit below this is no better than a coin by much: such a person's answers say nothing about the gold.
GOOD_ENOUGH = 0.6


@dataclass(frozen=True)
class Listed:
    """One gold comparison and how people do on it. `doubtful`: most good annotators answer otherwise."""

    comparison_id: uuid.UUID
    prompt: str
    answers: list[str]
    tiers: list[list[int]]
    explanation: str
    qualification: bool
    created_at: datetime
    retired_at: datetime | None
    answered: int
    right: int
    doubtful: bool


@dataclass(frozen=True)
class Certain:
    """A comparison that could become gold: everybody who voted said the same."""

    comparison_id: uuid.UUID
    prompt: str
    answers: list[str]
    tiers: list[list[int]]
    votes: int


def make_gold(
    s: Session,
    project_id: uuid.UUID,
    comparison_id: uuid.UUID,
    tiers: Sequence[Sequence[int]],
    explanation: str,
    qualification: bool,
    by: uuid.UUID | None,
) -> Gold:
    """New gold with the answers of an existing comparison; whoever met that one will not meet this one."""
    original = s.scalars(
        select(Comparison).where(Comparison.project_id == project_id, Comparison.id == comparison_id)
    ).one_or_none()
    if original is None:
        raise NotFound("There is no such comparison in this project.", "Nothing was made.")
    count = s.scalars(select(func.count()).where(Candidate.comparison_id == original.id)).one()
    _check(tiers, count, explanation)
    exists = s.execute(_SAME, {"project": project_id, "prompt": original.prompt_id, "comparison": original.id}).first()
    if exists is not None:
        raise Conflict("There is gold with these answers already.", "Retire that one first.")
    return _keep(s, copy_of(s, original, DrawReason.GOLD), tiers, explanation, qualification, by)


# Gold in use with the very answers of a comparison.
_SAME = text(
    """
    SELECT FROM gold g JOIN comparison c ON c.id = g.comparison_id
    WHERE c.project_id = :project AND c.prompt_id = :prompt AND g.retired_at IS NULL AND NOT EXISTS (
        SELECT FROM candidate k WHERE k.comparison_id = :comparison AND NOT EXISTS (
            SELECT FROM candidate mine WHERE mine.comparison_id = c.id AND mine.completion_id = k.completion_id
        )
    )
    """
)


def write_gold(
    s: Session,
    project_id: uuid.UUID,
    prompt: str,
    answers: Sequence[str],
    best: int,
    explanation: str,
    qualification: bool,
    by: uuid.UUID | None,
) -> Gold:
    """New gold typed by hand: a question, its answers, and which of them (from 0) is the right one."""
    if not prompt.strip() or any(not one.strip() for one in answers):
        raise Invalid("A gold comparison needs a prompt and a text for each answer.", "Nothing was made.")
    if max(len(prompt), *(len(one) for one in answers)) > LONGEST_TEXT:
        raise Invalid(f"A text has at most {LONGEST_TEXT:,} characters.", "Nothing was made.")
    if len({" ".join(one.split()) for one in answers}) < len(answers):
        raise Invalid("Two answers are the same.", "Nothing was made.")
    tiers = [[best], [i for i in range(len(answers)) if i != best]]
    _check(tiers, len(answers), explanation)
    project = s.get_one(Project, project_id)
    [prompt_id], _ = place_prompts(s, project, [[{"role": "user", "content": prompt.strip()}]], "gold")
    comparison = Comparison(
        id=new_id(),
        project_id=project_id,
        prompt_id=prompt_id,
        checkpoint_id=None,
        reason=DrawReason.GOLD,
        probability=1.0,
        votes_wanted=0,
    )
    s.add(comparison)
    s.flush()
    for position, answer in enumerate(answers):
        completion = Completion(
            id=new_id(),
            project_id=project_id,
            prompt_id=prompt_id,
            origin=Origin.IMPORTED,
            text=answer,
            source="gold",
        )
        s.add(completion)
        s.flush()
        s.add(
            Candidate(
                comparison_id=comparison.id,
                position=position,
                project_id=project_id,
                prompt_id=prompt_id,
                completion_id=completion.id,
            )
        )
    return _keep(s, comparison, tiers, explanation, qualification, by)


def _keep(
    s: Session,
    comparison: Comparison,
    tiers: Sequence[Sequence[int]],
    explanation: str,
    qualification: bool,
    by: uuid.UUID | None,
) -> Gold:
    gold = Gold(
        comparison_id=comparison.id,
        project_id=comparison.project_id,
        tiers=[list(tier) for tier in tiers],
        explanation=explanation.strip(),
        qualification=qualification,
        created_by=by,
    )
    s.add(gold)
    audit.record(s, comparison.project_id, by, "gold.make", str(comparison.id), {"qualification": qualification})
    s.flush()
    return gold


def _check(tiers: Sequence[Sequence[int]], answers: int, explanation: str) -> None:
    if sorted(position for tier in tiers for position in tier) != list(range(answers)) or not all(tiers):
        raise Invalid("The right answer must name each answer of the comparison once.", "Nothing was made.")
    if len(tiers) < 2:
        raise Invalid("Gold has one right answer: a tie teaches nothing.", "Choose the better answer.")
    if not explanation.strip():
        raise Invalid("Say why this answer is right: annotators read it in the qualification round.")
    if len(explanation) > LONGEST_EXPLANATION:
        raise Invalid(f"An explanation has at most {LONGEST_EXPLANATION:,} characters.")


def retire(s: Session, project_id: uuid.UUID, comparison_id: uuid.UUID, by: uuid.UUID | None) -> None:
    """Hand a gold comparison out no more; what people answered stays. Twice changes nothing."""
    retired = s.execute(
        update(Gold)
        .where(Gold.project_id == project_id, Gold.comparison_id == comparison_id, Gold.retired_at.is_(None))
        .values(retired_at=text("clock_timestamp()"))
        .returning(Gold.comparison_id)
    ).one_or_none()
    if retired is not None:
        audit.record(s, project_id, by, "gold.retire", str(comparison_id))
    elif s.get(Gold, comparison_id) is None or s.get_one(Gold, comparison_id).project_id != project_id:
        raise NotFound("There is no such gold in this project.")


def usable(s: Session, project_id: uuid.UUID, answers: int, qualification: bool) -> int:
    """How much gold of so many answers is not retired."""
    k = select(func.count()).where(Candidate.comparison_id == Gold.comparison_id).scalar_subquery()
    query = select(func.count()).where(
        Gold.project_id == project_id, Gold.retired_at.is_(None), Gold.qualification == qualification, k == answers
    )
    return s.scalars(query).one()


_SHOWN = """
    p.messages -> -1 ->> 'content' AS prompt, (
        SELECT array_agg(o.text ORDER BY k.position)
        FROM candidate k JOIN completion o ON o.id = k.completion_id WHERE k.comparison_id = c.id
    ) AS answers
"""

_LISTED = text(
    f"""
    SELECT g.comparison_id, g.tiers, g.explanation, g.qualification, g.created_at, g.retired_at, {_SHOWN}, (
        SELECT coalesce(jsonb_agg(jsonb_build_array(r.tiers, k.skill)), '[]')
        FROM judgment j
        JOIN judgment_revision r ON r.judgment_id = j.id
            AND r.revision = CASE WHEN g.qualification THEN 1 ELSE j.revision END
        LEFT JOIN skill k ON k.project_id = j.project_id AND k.account_id = j.account_id
        WHERE j.comparison_id = g.comparison_id AND r.tiers IS NOT NULL
    ) AS said
    FROM gold g
    JOIN comparison c ON c.id = g.comparison_id
    JOIN prompt p ON p.id = c.prompt_id
    WHERE g.project_id = :project
    ORDER BY g.retired_at IS NOT NULL, g.created_at DESC
    LIMIT :most
    """  # noqa: S608 - constants of this file
)


def listed(s: Session, project_id: uuid.UUID) -> list[Listed]:
    """The project's gold, what is in use first, the newest first."""
    found = []
    for row in s.execute(_LISTED, {"project": project_id, "most": MOST_LISTED}):
        good = [agrees(row.tiers, tiers) for tiers, skill in row.said if skill is None or skill >= GOOD_ENOUGH]
        found.append(
            Listed(
                comparison_id=row.comparison_id,
                prompt=row.prompt or "",
                answers=row.answers,
                tiers=row.tiers,
                explanation=row.explanation,
                qualification=row.qualification,
                created_at=row.created_at,
                retired_at=row.retired_at,
                answered=len(row.said),
                right=sum(agrees(row.tiers, tiers) for tiers, _ in row.said),
                doubtful=len(good) >= LEAST_VOTES and 2 * sum(good) < len(good),
            )
        )
    return found


# Counted votes that all say the same decided thing, most votes first; not what is gold already.
_CERTAIN = text(
    f"""
    WITH votes AS (
        SELECT j.comparison_id, count(*) AS n, min(r.tiers::text) AS said
        FROM slot s
        JOIN judgment j ON j.comparison_id = s.comparison_id AND j.account_id = s.holder_id AND NOT j.withdrawn
        JOIN judgment_revision r ON r.judgment_id = j.id AND r.revision = j.revision
        WHERE s.project_id = :project AND s.state = 'filled'
        GROUP BY j.comparison_id
        HAVING count(*) >= :least AND min(r.tiers::text) = max(r.tiers::text)
            AND jsonb_array_length(min(r.tiers::text)::jsonb) > 1
    )
    SELECT votes.comparison_id, votes.n, votes.said::jsonb AS tiers, {_SHOWN}
    FROM votes
    JOIN comparison c ON c.id = votes.comparison_id AND c.reason IN ('random', 'uncertain')
    JOIN prompt p ON p.id = c.prompt_id
    WHERE (SELECT count(*) FROM candidate k WHERE k.comparison_id = c.id) = :answers
        AND NOT EXISTS (
            SELECT FROM gold g JOIN comparison o ON o.id = g.comparison_id
            WHERE o.project_id = c.project_id AND o.prompt_id = c.prompt_id AND g.retired_at IS NULL
        )
    ORDER BY votes.n DESC, votes.comparison_id
    LIMIT :most
    """  # noqa: S608
)


def candidates(s: Session, project_id: uuid.UUID, answers: int, most: int = 20) -> list[Certain]:
    """Comparisons with at least three counted votes that are of one mind."""
    rows = s.execute(_CERTAIN, {"project": project_id, "least": LEAST_VOTES, "answers": answers, "most": most})
    return [Certain(row.comparison_id, row.prompt or "", row.answers, row.tiers, row.n) for row in rows]


def one(s: Session, project_id: uuid.UUID, comparison_id: uuid.UUID) -> Certain:
    """Any comparison, to make gold of: NotFound for a foreign one. `tiers` are empty, for nobody has decided."""
    row: Any = s.execute(_ONE, {"project": project_id, "comparison": comparison_id}).one_or_none()
    if row is None:
        raise NotFound("There is no such comparison in this project.")
    return Certain(comparison_id, row.prompt or "", row.answers, [], 0)


_ONE = text(
    f"SELECT {_SHOWN} FROM comparison c JOIN prompt p ON p.id = c.prompt_id"  # noqa: S608
    " WHERE c.project_id = :project AND c.id = :comparison"
)

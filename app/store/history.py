"""What one person has judged and written, newest first: their own record, to look at and to revise.

Gold and repeats check the annotator and must not show: here they are comparisons like any other, and count.
"""

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import Row, text
from sqlalchemy.orm import Session

from app.core.errors import NotFound
from app.core.records import Message
from app.core.vocabulary import Verdict

PAGE = 30
LAST = (datetime.max.replace(tzinfo=UTC), uuid.UUID(int=2**128 - 1))

State = Literal["counted", "surplus", "withdrawn"]


@dataclass(frozen=True)
class Saying:
    """One revision of a judgment. All is None but the time where it withdraws what was said before."""

    revision: int
    at: datetime
    withdrawn: bool
    verdict: Verdict | None
    tiers: list[list[int]] | None
    both_bad: bool
    strength: int | None
    order: list[int] | None
    flags: dict[str, list[str]] | None
    ratings: dict[str, int] | None
    rationale: str | None
    ideal: str | None


@dataclass(frozen=True)
class Entry:
    """A line of the list. `said` is what a judgment says or last said; `text` what was chosen, or written.

    `target` is what revising is asked with: the comparison, or the newest demonstration.
    """

    kind: Literal["judgment", "demonstration"]
    id: uuid.UUID
    target: uuid.UUID
    at: datetime
    prompt: list[Message]
    said: Saying | None
    text: str
    state: State
    revised: bool


@dataclass(frozen=True)
class JudgmentRecord:
    """A whole judgment: the answers by canonical position, and everything that was ever said, newest first."""

    comparison_id: uuid.UUID
    at: datetime
    prompt: list[Message]
    answers: list[str]
    state: State
    said: list[Saying]


@dataclass(frozen=True)
class DemonstrationVersion:
    """One text, with the answer that it began as, where it did."""

    demonstration_id: uuid.UUID
    at: datetime
    text: str
    edited_from: str | None


@dataclass(frozen=True)
class DemonstrationHistory:
    """A prompt and all that this person wrote for it, newest first. `beside`: others wrote for it too."""

    prompt: list[Message]
    versions: list[DemonstrationVersion]
    beside: bool


_SAID = """
    r.revision, r.submitted_at, r.withdrawn AS withdraws, r.verdict, r.tiers, r.both_bad, r.strength, r.shown_order,
    r.flags, r.ratings, r.rationale, (SELECT o.text FROM completion o WHERE o.id = r.ideal_id) AS ideal
"""

_COUNTED = """
    (c.reason IN ('gold', 'repeat') OR EXISTS (
        SELECT FROM slot s WHERE s.comparison_id = j.comparison_id AND s.holder_id = j.account_id AND s.state = 'filled'
    ))
"""

# Each half walks its own index; of both together only one page is read on.
_JUDGMENTS = text(
    f"""
    WITH near AS MATERIALIZED (
        (
            SELECT * FROM judgment
            WHERE project_id = :project AND account_id = :account AND NOT withdrawn AND (judged_at, id) < (:at, :id)
            ORDER BY judged_at DESC, id DESC LIMIT :count
        ) UNION ALL (
            SELECT * FROM judgment
            WHERE project_id = :project AND account_id = :account AND withdrawn AND (judged_at, id) < (:at, :id)
            ORDER BY judged_at DESC, id DESC LIMIT :count
        )
    ), j AS MATERIALIZED (SELECT * FROM near ORDER BY judged_at DESC, id DESC LIMIT :count)
    SELECT j.id, j.comparison_id, j.judged_at, j.withdrawn, j.revision > 1 AS revised, p.messages, chosen.text,
        {_COUNTED} AS counted, r.*
    FROM j
    JOIN comparison c ON c.id = j.comparison_id
    JOIN prompt p ON p.id = c.prompt_id
    CROSS JOIN LATERAL (
        SELECT {_SAID} FROM judgment_revision r
        WHERE r.judgment_id = j.id AND NOT r.withdrawn ORDER BY r.revision DESC LIMIT 1
    ) r
    LEFT JOIN candidate k ON k.comparison_id = c.id AND jsonb_array_length(r.tiers) > 1
        AND to_jsonb(k.position) = r.tiers -> 0 -> 0
    LEFT JOIN completion chosen ON chosen.id = k.completion_id
    ORDER BY j.judged_at DESC, j.id DESC
    """  # noqa: S608 - the only things formatted in are the constants above
)

_DEMONSTRATIONS = text(
    """
    SELECT w.demonstration_id, w.submitted_at, p.messages, o.text, d.replaces_id IS NOT NULL AS revised
    FROM (
        SELECT * FROM writing
        WHERE project_id = :project AND account_id = :account AND submitted_at IS NOT NULL
            AND (submitted_at, demonstration_id) < (:at, :id)
        ORDER BY submitted_at DESC, demonstration_id DESC LIMIT :count
    ) w
    JOIN prompt p ON p.id = w.prompt_id
    JOIN demonstration d ON d.id = w.demonstration_id
    JOIN completion o ON o.id = d.completion_id
    """
)


def page(
    s: Session,
    project_id: uuid.UUID,
    account_id: uuid.UUID,
    before: tuple[datetime, uuid.UUID] = LAST,
    count: int = PAGE,
) -> list[Entry]:
    """The newest entries of this person before a place, which is the (at, id) of the last entry of the page above."""
    at, last = before
    where = {"project": project_id, "account": account_id, "at": at, "id": last, "count": count}
    entries = [
        Entry(
            kind="judgment",
            id=row.id,
            target=row.comparison_id,
            at=row.judged_at,
            prompt=row.messages,
            said=_saying(row),
            text=row.text or "",
            state=_state(row),
            revised=row.revised,
        )
        for row in s.execute(_JUDGMENTS, where)
    ] + [
        Entry(
            kind="demonstration",
            id=row.demonstration_id,
            target=row.demonstration_id,
            at=row.submitted_at,
            prompt=row.messages,
            said=None,
            text=row.text,
            state="counted",
            revised=row.revised,
        )
        for row in s.execute(_DEMONSTRATIONS, where)
    ]
    return sorted(entries, key=lambda entry: (entry.at, entry.id), reverse=True)[:count]


def _state(row: Row[Any]) -> State:
    if row.withdrawn:
        return "withdrawn"
    return "counted" if row.counted else "surplus"


def _saying(row: Row[Any]) -> Saying:
    return Saying(
        revision=row.revision,
        at=row.submitted_at,
        withdrawn=row.withdraws,
        verdict=row.verdict and Verdict(row.verdict),
        tiers=row.tiers,
        both_bad=row.both_bad,
        strength=row.strength,
        order=row.shown_order,
        flags=row.flags,
        ratings=row.ratings,
        rationale=row.rationale,
        ideal=row.ideal,
    )


_JUDGMENT = text(
    f"""
    SELECT j.comparison_id, j.judged_at, j.withdrawn, p.messages, {_COUNTED} AS counted, (
        SELECT array_agg(o.text ORDER BY k.position)
        FROM candidate k JOIN completion o ON o.id = k.completion_id
        WHERE k.comparison_id = c.id
    ) AS answers
    FROM judgment j JOIN comparison c ON c.id = j.comparison_id JOIN prompt p ON p.id = c.prompt_id
    WHERE j.id = :id AND j.account_id = :account AND j.project_id = :project
    """  # noqa: S608 - the only thing formatted in is the constant above
)

_ALL_SAID = text(
    f"SELECT {_SAID} FROM judgment_revision r WHERE r.judgment_id = :id ORDER BY r.revision DESC"  # noqa: S608
)


def judgment(s: Session, project_id: uuid.UUID, account_id: uuid.UUID, judgment_id: uuid.UUID) -> JudgmentRecord:
    """One judgment of this person with all its revisions; NotFound for somebody else's."""
    row = s.execute(_JUDGMENT, {"project": project_id, "account": account_id, "id": judgment_id}).one_or_none()
    if row is None:
        raise NotFound("There is no such entry in your history.")
    said = [_saying(one) for one in s.execute(_ALL_SAID, {"id": judgment_id})]
    return JudgmentRecord(row.comparison_id, row.judged_at, row.messages, row.answers, _state(row), said)


# From any version of it to all of them: each person's texts for one prompt are one chain.
_VERSIONS = text(
    """
    SELECT d.id, d.created_at, o.text, began.text AS edited_from, p.id AS prompt_id, p.messages, EXISTS (
        SELECT FROM demonstration x JOIN completion xo ON xo.id = x.completion_id
        WHERE x.project_id = :project AND x.prompt_id = p.id AND xo.author_id IS DISTINCT FROM :account
    ) AS beside
    FROM demonstration asked
    JOIN completion mine ON mine.id = asked.completion_id AND mine.author_id = :account
    JOIN prompt p ON p.id = asked.prompt_id
    JOIN demonstration d ON d.project_id = asked.project_id AND d.prompt_id = asked.prompt_id
    JOIN completion o ON o.id = d.completion_id AND o.author_id = :account
    LEFT JOIN completion began ON began.id = o.edited_from_id
    WHERE asked.id = :id AND asked.project_id = :project
        AND EXISTS (SELECT FROM writing w WHERE w.prompt_id = asked.prompt_id AND w.account_id = :account)
        AND NOT EXISTS (SELECT FROM judgment_revision r WHERE r.account_id = :account AND r.ideal_id = o.id)
    ORDER BY d.id DESC
    """
)


def demonstration(
    s: Session, project_id: uuid.UUID, account_id: uuid.UUID, demonstration_id: uuid.UUID
) -> DemonstrationHistory:
    """What this person wrote for the prompt of a demonstration of theirs; NotFound for somebody else's."""
    rows = s.execute(_VERSIONS, {"project": project_id, "account": account_id, "id": demonstration_id}).all()
    if not rows:
        raise NotFound("There is no such entry in your history.")
    versions = [DemonstrationVersion(row.id, row.created_at, row.text, row.edited_from) for row in rows]
    return DemonstrationHistory(rows[0].messages, versions, rows[0].beside)

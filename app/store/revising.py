"""Looking at one's own judgment again, to change it: the comparison as it was shown, with what was answered."""

import uuid
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from app.core.errors import NotFound
from app.store.claims import ANSWERS, Task

_AGAIN = text(
    f"""
    SELECT p.messages, r.shown_order, r.verdict, r.tiers, r.both_bad, r.strength, r.flags, r.ratings, r.rationale,
        ideal.text AS ideal, (
            SELECT k.position FROM candidate k
            WHERE k.comparison_id = c.id AND k.completion_id = ideal.edited_from_id
        ) AS edited_from,
        d.body AS draft, now() AS now, answer.texts, answer.policies
    FROM judgment j
    JOIN judgment_revision r ON r.judgment_id = j.id AND r.revision = j.revision
    JOIN comparison c ON c.id = j.comparison_id
    JOIN prompt p ON p.id = c.prompt_id
    LEFT JOIN completion ideal ON ideal.id = r.ideal_id
    LEFT JOIN draft d ON d.account_id = j.account_id AND d.task_id = j.comparison_id
    {ANSWERS}
    WHERE j.project_id = :project AND j.account_id = :account AND j.comparison_id = :comparison AND NOT j.withdrawn
    """  # noqa: S608 - constants
)

# What is said beside the verdict, or the order.
EXTRAS = ("flags", "ratings", "rationale", "ideal", "edited_from")


@dataclass(frozen=True)
class Again:
    """A judged comparison and what stands of it, in the words of a submit. What is null was not said."""

    task: Task
    said: dict[str, Any]


def look_again(s: Session, project_id: uuid.UUID, account_id: uuid.UUID, comparison_id: uuid.UUID) -> Again:
    """This person's standing judgment of this comparison; NotFound where there is none, or it is withdrawn."""
    who = {"project": project_id, "account": account_id, "comparison": comparison_id}
    row = s.execute(_AGAIN, who).one_or_none()
    if row is None:
        raise NotFound("You have no judgment of this comparison.", "Your history lists the ones that you have.")
    order = row.shown_order
    # Of more than two answers, a tie or 'both bad' over all of them was one key; an order was an order.
    all_alike = len(order) > 2 and len(row.tiers) == 1
    verdict = ("both_bad" if row.both_bad else "tie") if all_alike else row.verdict
    said = {"verdict": verdict, "strength": row.strength, "tiers": row.tiers if len(order) > 2 else None}
    said |= {name: getattr(row, name) for name in EXTRAS}
    task = Task(
        comparison_id=comparison_id,
        prompt=row.messages,
        answers=[row.texts[i] for i in order],
        order=order,
        lease_expires_at=row.now,
        policies=[row.policies[i] for i in order],
        draft=row.draft,
    )
    return Again(task, said)

"""Comparisons: made from sampled pairs, counted while they wait, retired when their policy is."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, exists, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.core.errors import Invalid, NotFound
from app.core.vocabulary import AssignmentState, ComparisonState, DrawReason, DropCause, FinishReason, Origin
from app.store.models import (
    Assignment,
    Candidate,
    Comparison,
    Completion,
    DroppedPairs,
    Project,
    Prompt,
    Slot,
    SlotState,
    new_id,
)

_QUIET = {"synchronize_session": False}


@dataclass(frozen=True)
class SampledCompletion:
    """An answer that a policy gave, with all that is needed to draw it again."""

    text: str
    checkpoint_id: uuid.UUID
    seed: int
    temperature: float
    top_p: float
    max_tokens: int
    chat_template_hash: str
    finish_reason: FinishReason
    latency_ms: float | None = None
    token_ids: Sequence[int] | None = None
    logprobs: Sequence[float] | None = None


def add_sampled_pair(
    s: Session,
    project: Project,
    prompt_id: uuid.UUID,
    completions: Sequence[SampledCompletion],
    reason: DrawReason = DrawReason.RANDOM,
    probability: float = 1.0,
    comparison_id: uuid.UUID | None = None,
    votes: int | None = None,
) -> Comparison:
    """Store two or more answers to one prompt as a comparison with the project's wanted votes as free slots.

    `probability` is that of the draw that chose this prompt; `votes` where another number is wanted than the project's.
    NotFound for a foreign prompt, Invalid for one answer.
    """
    if len(completions) < 2:
        raise Invalid("A comparison needs at least two answers.")
    if (
        s.scalars(select(Prompt.id).where(Prompt.project_id == project.id, Prompt.id == prompt_id)).one_or_none()
        is None
    ):
        raise NotFound("There is no such prompt in this project.")
    policies = {completion.checkpoint_id for completion in completions}
    comparison = Comparison(
        id=comparison_id or new_id(),
        project_id=project.id,
        prompt_id=prompt_id,
        checkpoint_id=policies.pop() if len(policies) == 1 else None,
        reason=reason,
        probability=probability,
        votes_wanted=0 if reason == DrawReason.GOLD else votes or project.votes_wanted,
    )
    answers = [
        Completion(
            id=new_id(),
            project_id=project.id,
            prompt_id=prompt_id,
            origin=Origin.SAMPLED,
            text=one.text,
            checkpoint_id=one.checkpoint_id,
            seed=one.seed,
            temperature=one.temperature,
            top_p=one.top_p,
            max_tokens=one.max_tokens,
            chat_template_hash=one.chat_template_hash,
            finish_reason=one.finish_reason,
            latency_ms=one.latency_ms,
            token_ids=None if one.token_ids is None else list(one.token_ids),
            logprobs=None if one.logprobs is None else list(one.logprobs),
        )
        for one in completions
    ]
    s.add_all([comparison, *answers])
    s.flush()
    s.add_all(
        Candidate(
            comparison_id=comparison.id,
            position=position,
            project_id=project.id,
            prompt_id=prompt_id,
            completion_id=answer.id,
        )
        for position, answer in enumerate(answers)
    )
    s.add_all(
        Slot(comparison_id=comparison.id, position=position, project_id=project.id)
        for position in range(comparison.votes_wanted)
    )
    s.flush()
    return comparison


def count_dropped(s: Session, project_id: uuid.UUID, checkpoint_id: uuid.UUID, cause: DropCause, n: int = 1) -> None:
    """Remember that n sampled pairs of this policy were not shown."""
    if n > 0:
        s.execute(
            insert(DroppedPairs)
            .values(project_id=project_id, checkpoint_id=checkpoint_id, cause=cause, count=n)
            .on_conflict_do_update(
                index_elements=["project_id", "checkpoint_id", "cause"], set_={"count": DroppedPairs.count + n}
            )
        )


def dropped(s: Session, project_id: uuid.UUID) -> dict[uuid.UUID, dict[DropCause, int]]:
    """The pairs that were not shown, by policy and cause."""
    found: dict[uuid.UUID, dict[DropCause, int]] = {}
    query = select(DroppedPairs.checkpoint_id, DroppedPairs.cause, DroppedPairs.count)
    for checkpoint_id, cause, count in s.execute(query.where(DroppedPairs.project_id == project_id)):
        found.setdefault(checkpoint_id, {})[cause] = count
    return found


def ready(s: Session, project_id: uuid.UUID, at_most: int = 1000) -> int:
    """How many comparisons wait that nobody has met yet, counted up to `at_most`: what the pool keeps filled."""
    fresh = (
        select(1)
        .where(
            Slot.project_id == project_id,
            Slot.state == SlotState.FREE,
            Slot.position == 0,
            ~exists().where(Assignment.comparison_id == Slot.comparison_id),
        )
        .limit(at_most)
        .subquery()
    )
    return s.scalars(select(func.count()).select_from(fresh)).one()


def retire_unjudged(s: Session, project_id: uuid.UUID, checkpoint_id: uuid.UUID) -> int:
    """Retire this policy's open comparisons that are neither judged nor leased; returns how many."""
    return retire(s, project_id, Comparison.checkpoint_id == checkpoint_id)


def retire(s: Session, project_id: uuid.UUID, which: ColumnElement[bool]) -> int:
    """Retire the open comparisons among `which` that are neither judged nor leased; returns how many."""
    met = exists().where(
        Assignment.comparison_id == Comparison.id,
        Assignment.state.in_([AssignmentState.LEASED, AssignmentState.JUDGED]),
    )
    gone = (
        update(Comparison)
        .where(Comparison.project_id == project_id, Comparison.state == ComparisonState.OPEN, which, ~met)
        .values(state=ComparisonState.RETIRED)
        .returning(Comparison.id)
        .cte("gone")
    )
    count = s.scalars(select(func.count()).select_from(gone), execution_options=_QUIET).one()
    # A slot that somebody leased in this moment stays theirs: it is no longer free when we come to it.
    retired = select(Comparison.id).where(
        Comparison.project_id == project_id, Comparison.state == ComparisonState.RETIRED
    )
    s.execute(
        update(Slot)
        .where(Slot.project_id == project_id, Slot.state == SlotState.FREE, Slot.comparison_id.in_(retired))
        .values(state=SlotState.RETIRED),
        execution_options=_QUIET,
    )
    return count

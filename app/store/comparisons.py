"""Comparisons: made from sampled pairs, counted while they wait, retired when their policy is."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, exists, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.core.configs import SamplingSettings
from app.core.errors import Invalid, NotFound
from app.core.sampler import CompletionResult
from app.core.vocabulary import AssignmentState, ComparisonState, DrawReason, DropCause, FinishReason, Origin
from app.store import audit
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

MOST_VOTES = 100
HIGHEST_PRIORITY = 1000
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


def sampled(
    checkpoint_id: uuid.UUID, sampling: SamplingSettings, seed: int, result: CompletionResult
) -> SampledCompletion:
    """What a sampler answered, as it is stored. A server that is not ours tells no token ids; they stay null then."""
    return SampledCompletion(
        text=result.text,
        checkpoint_id=checkpoint_id,
        seed=seed,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=sampling.max_tokens,
        chat_template_hash=result.chat_template_hash,
        finish_reason=result.finish_reason,
        latency_ms=result.latency_ms,
        token_ids=result.token_ids or None,
        logprobs=result.logprobs or None,
    )


def add_sampled_pair(
    s: Session,
    project: Project,
    prompt_id: uuid.UUID,
    completions: Sequence[SampledCompletion],
    reason: DrawReason = DrawReason.RANDOM,
    probability: float = 1.0,
    priority: int = 0,
    comparison_id: uuid.UUID | None = None,
    votes: int | None = None,
) -> Comparison:
    """Store two or more answers to one prompt as a comparison with the project's wanted votes as free slots.

    Of higher `priority` are handed out first; `probability` is that of the draw that chose this prompt; `votes` where
    another number is wanted than the project's. NotFound for a foreign prompt, Invalid for one answer.
    """
    if len(completions) < 2:
        raise Invalid("A comparison needs at least two answers.")
    if (
        s.scalars(select(Prompt.id).where(Prompt.project_id == project.id, Prompt.id == prompt_id)).one_or_none()
        is None
    ):
        raise NotFound("There is no such prompt in this project.")
    # Whoever changes the wanted votes waits for us and then sees this comparison, or we see what they wanted.
    wanted = s.scalars(select(Project.votes_wanted).where(Project.id == project.id).with_for_update(read=True)).one()
    policies = {completion.checkpoint_id for completion in completions}
    comparison = Comparison(
        id=comparison_id or new_id(),
        project_id=project.id,
        prompt_id=prompt_id,
        checkpoint_id=policies.pop() if len(policies) == 1 else None,
        reason=reason,
        probability=probability,
        votes_wanted=0 if reason == DrawReason.GOLD else votes or wanted,
        priority=priority,
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
        Slot(comparison_id=comparison.id, position=position, project_id=project.id, priority=priority)
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


def _hold(s: Session, project_id: uuid.UUID, *which: ColumnElement[bool]) -> None:
    """Lock open comparisons in order of id, as whoever gives slots back does: two that change many never deadlock."""
    query = select(Comparison.id).where(
        Comparison.project_id == project_id, Comparison.state == ComparisonState.OPEN, *which
    )
    held = query.order_by(Comparison.id).with_for_update(key_share=True).cte("held")
    s.scalars(select(func.count()).select_from(held), execution_options=_QUIET).one()


def retire_unjudged(s: Session, project_id: uuid.UUID, checkpoint_id: uuid.UUID) -> int:
    """Retire this policy's open comparisons that are neither judged nor leased, but for gold; returns how many."""
    return retire(s, project_id, and_(Comparison.checkpoint_id == checkpoint_id, Comparison.reason != DrawReason.GOLD))


def retire(s: Session, project_id: uuid.UUID, which: ColumnElement[bool]) -> int:
    """Retire the open comparisons among `which` that are neither judged nor leased; returns how many."""
    met = exists().where(
        Assignment.comparison_id == Comparison.id,
        Assignment.state.in_([AssignmentState.LEASED, AssignmentState.JUDGED]),
    )
    _hold(s, project_id, which, ~met)
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


def retire_others(s: Session, project_id: uuid.UUID, answers: int) -> int:
    """Hand out no more comparisons that have another number of answers than this; returns how many.

    What is leased is finished: a slot that is held stays with its holder, and retires when it is given up.
    """
    count = select(func.count()).where(Candidate.comparison_id == Comparison.id).scalar_subquery()
    _hold(s, project_id, Comparison.votes_wanted > 0, count != answers)
    gone = s.scalars(
        update(Comparison)
        .where(
            Comparison.project_id == project_id,
            Comparison.state == ComparisonState.OPEN,
            Comparison.votes_wanted > 0,
            count != answers,
        )
        .values(state=ComparisonState.RETIRED)
        .returning(Comparison.id),
        execution_options=_QUIET,
    ).all()
    s.execute(
        update(Slot)
        .where(Slot.project_id == project_id, Slot.state == SlotState.FREE, Slot.comparison_id.in_(gone))
        .values(state=SlotState.RETIRED),
        execution_options=_QUIET,
    )
    return len(gone)


def prioritise(s: Session, project_id: uuid.UUID, which: ColumnElement[bool], priority: int) -> int:
    """Hand out the open comparisons among `which` before all of lower priority; returns how many changed."""
    if not -HIGHEST_PRIORITY <= priority <= HIGHEST_PRIORITY:
        raise Invalid(f"A priority lies between -{HIGHEST_PRIORITY} and {HIGHEST_PRIORITY}.")
    _hold(s, project_id, Comparison.votes_wanted > 0, Comparison.priority != priority, which)
    changed = (
        update(Comparison)
        .where(
            Comparison.project_id == project_id,
            Comparison.state == ComparisonState.OPEN,
            Comparison.votes_wanted > 0,
            Comparison.priority != priority,
            which,
        )
        .values(priority=priority)
        .returning(Comparison.id)
        .cte("changed")
    )
    count = s.scalars(select(func.count()).select_from(changed), execution_options=_QUIET).one()
    # Those that are held take it as well: they may become free again.
    s.execute(
        update(Slot)
        .where(
            Slot.project_id == project_id,
            Slot.comparison_id == Comparison.id,
            Comparison.state == ComparisonState.OPEN,
            Comparison.priority == priority,
            Slot.priority != priority,
            which,
        )
        .values(priority=priority),
        execution_options=_QUIET,
    )
    return count


# The comparisons whose slots follow the project's number. A turn of a chat is for whoever leads the chat.
_FOLLOWING = """
    c.project_id = :project AND c.state = 'open' AND c.votes_wanted > 0 AND c.reason <> 'chat'
"""

# Their rows first, as `release_slots` does, then their free slots: what somebody is claiming this moment is theirs.
_HOLD = text(
    f"""
    WITH held AS MATERIALIZED (
        SELECT c.id FROM comparison c WHERE {_FOLLOWING} AND c.votes_wanted <> :votes
        ORDER BY c.id FOR NO KEY UPDATE
    ) SELECT count(*) FROM held
    """  # noqa: S608 - constants
)
_HOLD_FREE = text(
    f"""
    WITH held AS MATERIALIZED (
        SELECT s.position FROM slot s JOIN comparison c ON c.id = s.comparison_id
        WHERE {_FOLLOWING} AND c.votes_wanted > :votes AND s.state = 'free'
        FOR UPDATE OF s
    ) SELECT count(*) FROM held
    """  # noqa: S608 - constants
)

_RETIRE_SPARE = text(
    f"""
    WITH spare AS (
        SELECT s.comparison_id, s.position, c.votes_wanted - :votes AS surplus,
            row_number() OVER (PARTITION BY s.comparison_id ORDER BY s.position DESC) AS nth
        FROM slot s JOIN comparison c ON c.id = s.comparison_id
        WHERE {_FOLLOWING} AND c.votes_wanted > :votes AND s.state = 'free'
    ), gone AS (
        UPDATE slot SET state = 'retired' FROM spare
        WHERE nth <= surplus AND slot.comparison_id = spare.comparison_id AND slot.position = spare.position
            AND slot.state = 'free'
        RETURNING slot.comparison_id
    )
    UPDATE comparison SET votes_wanted = votes_wanted - fewer.n
    FROM (SELECT comparison_id, count(*) AS n FROM gone GROUP BY comparison_id) fewer
    WHERE comparison.id = fewer.comparison_id
    """  # noqa: S608 - constants
)

# Retired slots open again before new ones are added after the last.
_OPEN_MORE = text(
    f"""
    WITH short AS MATERIALIZED (
        SELECT c.id, c.priority, :votes - c.votes_wanted AS missing, have.top, have.retired
        FROM comparison c CROSS JOIN LATERAL (
            SELECT max(s.position) AS top, count(*) FILTER (WHERE s.state = 'retired') AS retired
            FROM slot s WHERE s.comparison_id = c.id
        ) have
        WHERE {_FOLLOWING} AND c.votes_wanted < :votes
    ), again AS (
        SELECT s.comparison_id, s.position, short.missing,
            row_number() OVER (PARTITION BY s.comparison_id ORDER BY s.position) AS nth
        FROM slot s JOIN short ON short.id = s.comparison_id WHERE s.state = 'retired'
    ), opened AS (
        UPDATE slot SET state = 'free' FROM again
        WHERE nth <= missing AND slot.comparison_id = again.comparison_id AND slot.position = again.position
    ), added AS (
        INSERT INTO slot (comparison_id, position, project_id, state, priority)
        SELECT short.id, short.top + n, :project, 'free', short.priority
        FROM short CROSS JOIN LATERAL generate_series(1, short.missing - short.retired) AS n
    )
    UPDATE comparison SET votes_wanted = :votes FROM short WHERE comparison.id = short.id
    """  # noqa: S608 - constants
)


def want_votes(s: Session, project_id: uuid.UUID, votes: int, by: uuid.UUID | None) -> None:
    """Change how many votes each comparison of this project is to have, the open ones included, while people work.

    More adds free slots. Fewer takes back free ones only: what is leased may still be judged and what is judged counts,
    so a comparison can keep more than are wanted; a lease on one of those that is given back is not opened again.
    """
    if not 1 <= votes <= MOST_VOTES:
        raise Invalid(f"Between 1 and {MOST_VOTES} votes can be wanted.")
    query = select(Project).where(Project.id == project_id).with_for_update(key_share=True)
    project = s.scalars(query, execution_options={"populate_existing": True}).one_or_none()
    if project is None:
        raise NotFound("There is no such project.")
    before, project.votes_wanted = project.votes_wanted, votes
    s.flush()
    numbers = {"project": project_id, "votes": votes}
    s.execute(_HOLD, numbers)
    s.execute(_HOLD_FREE, numbers)
    s.execute(_RETIRE_SPARE, numbers)
    s.execute(_OPEN_MORE, numbers)
    if before != votes:
        audit.record(s, project_id, by, "project.votes", str(project_id), {"before": before, "after": votes})

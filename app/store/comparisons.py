"""Comparisons: made from sampled pairs, counted while they wait, retired when their policy is."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from app.core.vocabulary import DrawReason, DropCause, FinishReason
from app.store.models import Comparison, Project


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
) -> Comparison:
    """Store two or more answers to one prompt as a comparison with the project's wanted votes as free slots.

    `probability` is that of the draw that chose this prompt. NotFound for another project's prompt, Invalid for one answer.
    """
    raise NotImplementedError


def count_dropped(s: Session, project_id: uuid.UUID, checkpoint_id: uuid.UUID, cause: DropCause, n: int = 1) -> None:
    """Remember that n sampled pairs of this policy were not shown."""
    raise NotImplementedError


def dropped(s: Session, project_id: uuid.UUID) -> dict[uuid.UUID, dict[DropCause, int]]:
    """The pairs that were not shown, by policy and cause."""
    raise NotImplementedError


def ready(s: Session, project_id: uuid.UUID, at_most: int = 1000) -> int:
    """How many comparisons wait that nobody has met yet, counted up to `at_most`: what the pool keeps filled."""
    raise NotImplementedError


def retire_unjudged(s: Session, project_id: uuid.UUID, checkpoint_id: uuid.UUID) -> int:
    """Retire this policy's open comparisons that are neither judged nor leased; returns how many."""
    raise NotImplementedError

"""Prompts and demonstrations."""

import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.core.records import Message
from app.core.vocabulary import Origin, Split
from app.store.bulk import batches, copy, place_prompts
from app.store.models import Completion, Demonstration, Project, Prompt, new_id


@dataclass(frozen=True)
class PromptCounts:
    """How many prompts stand on each side of the split, and how many demonstrations there are to learn from."""

    train: int
    heldout: int
    demonstrations: int


def add_prompts(s: Session, project: Project, conversations: Iterable[Sequence[Message]], source: str) -> int:
    """Add the conversations that are not there yet; returns how many were new."""
    return sum(place_prompts(s, project, batch, source)[1] for batch in batches(conversations))


def add_demonstrations(
    s: Session, project: Project, rows: Iterable[tuple[Sequence[Message], str]], author: str | uuid.UUID
) -> int:
    """Add (prompt, ideal answer) rows that are not there yet, in bulk; returns how many were new.

    `author` is a member's account, or the name of the source that they came from.
    """
    written = isinstance(author, uuid.UUID)
    origin = Origin.WRITTEN if written else Origin.IMPORTED
    account_id, source = (author, None) if written else (None, str(author))
    added = 0
    for batch in batches(rows):
        prompt_ids, _ = place_prompts(s, project, [messages for messages, _ in batch], source or "written")
        known = _known_demonstrations(s, project.id, set(prompt_ids))
        completions, demonstrations = [], []
        for prompt_id, (_, text) in zip(prompt_ids, batch, strict=True):
            if (prompt_id, text) in known:
                continue
            known.add((prompt_id, text))
            completion_id = new_id()
            completions.append((completion_id, project.id, prompt_id, origin.value, text, account_id, source))
            demonstrations.append((new_id(), project.id, prompt_id, completion_id))
        copy(
            s,
            Completion,
            ["id", "project_id", "prompt_id", "origin", "text", "author_id", "source"],
            completions,
        )
        copy(s, Demonstration, ["id", "project_id", "prompt_id", "completion_id"], demonstrations)
        added += len(demonstrations)
    return added


def _known_demonstrations(s: Session, project_id: uuid.UUID, prompt_ids: set[uuid.UUID]) -> set[tuple[uuid.UUID, str]]:
    query = (
        select(Completion.prompt_id, Completion.text)
        .join(Demonstration, Demonstration.completion_id == Completion.id)
        .where(
            Demonstration.project_id == project_id,
            Completion.project_id == project_id,
            Completion.prompt_id.in_(prompt_ids),
        )
    )
    return {(prompt_id, answer) for prompt_id, answer in s.execute(query)}


def counts(s: Session, project_id: uuid.UUID) -> PromptCounts:
    """What there is to sample from and to learn from."""
    sides = select(Prompt.split, func.count().label("n")).where(Prompt.project_id == project_id).group_by(Prompt.split)
    by_split = {row.split: row.n for row in s.execute(sides)}
    mine = Demonstration.project_id == project_id
    everything = s.scalars(select(func.count()).select_from(Demonstration).where(mine)).one()
    # Each replaces at most one other, and none is replaced twice.
    replaced = s.scalars(select(func.count(Demonstration.replaces_id)).where(mine)).one()
    return PromptCounts(by_split.get(Split.TRAIN, 0), by_split.get(Split.HELDOUT, 0), everything - replaced)


class Drawn(NamedTuple):
    """A prompt and the probability of the draw that chose it."""

    prompt: Prompt
    probability: float


def draw_prompts(s: Session, project_id: uuid.UUID, n: int, split: Split | None = Split.TRAIN) -> list[Drawn]:
    """The next n prompts of a random round that visits each before any comes twice; None draws from both splits.

    The probability of a draw is one over the number of prompts that were as seldom drawn; from both splits it is that
    on the prompt's side, times the side's share. Several workers may draw at once and get different ones.
    """
    # One worker after the other: who waited for a row would see it as drawn, and still take it out of its old place.
    s.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"draw {project_id}", 0))))
    # One side at a time, in the proportion of the sides, so that each draw is a walk along its index.
    if split is None:
        share = s.scalars(select(Project.heldout_share).where(Project.id == project_id)).one()
        held = s.scalars(select(func.random()).select_from(func.generate_series(1, n)))
        wanted = sum(draw < share for draw in held)
        heldout = draw_prompts(s, project_id, wanted, Split.HELDOUT)
        train = draw_prompts(s, project_id, n - len(heldout), Split.TRAIN)
        return [Drawn(prompt, share * p) for prompt, p in heldout] + [
            Drawn(prompt, (1 - share) * p) for prompt, p in train
        ]
    chosen = (
        select(Prompt.id)
        .where(Prompt.project_id == project_id, Prompt.split == split)
        .order_by(Prompt.drawn, Prompt.draw_key)
        .limit(n)
        .with_for_update()
        .cte("chosen")
    )
    drawn = update(Prompt).where(Prompt.id.in_(select(chosen.c.id))).values(drawn=Prompt.drawn + 1).returning(Prompt)
    found = list(s.scalars(drawn, execution_options={"populate_existing": True}))
    # What could have been drawn instead is what still stands where ours stood before.
    pools = Counter(prompt.drawn - 1 for prompt in found)
    others = (
        select(Prompt.drawn, func.count())
        .where(
            Prompt.project_id == project_id,
            Prompt.split == split,
            Prompt.drawn.in_(list(pools)),
            Prompt.id.not_in([prompt.id for prompt in found]),
        )
        .group_by(Prompt.drawn)
    )
    for level, count in s.execute(others) if found else ():
        pools[level] += count
    return [Drawn(prompt, 1 / pools[prompt.drawn - 1]) for prompt in found]

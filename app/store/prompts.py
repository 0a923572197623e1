"""Prompts and demonstrations."""

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from app.core.records import Message
from app.core.vocabulary import Split
from app.store.models import Project, Prompt


@dataclass(frozen=True)
class PromptCounts:
    """How many prompts stand on each side of the split, and how many demonstrations there are."""

    train: int
    heldout: int
    demonstrations: int


def add_prompts(s: Session, project: Project, conversations: Iterable[Sequence[Message]], source: str) -> int:
    """Add the conversations that are not there yet; returns how many were new."""
    raise NotImplementedError


def add_demonstrations(
    s: Session, project: Project, rows: Iterable[tuple[Sequence[Message], str]], author: str | uuid.UUID
) -> int:
    """Add (prompt, ideal answer) rows, in bulk. `author` is a member's account, or the name of their source."""
    raise NotImplementedError


def counts(s: Session, project_id: uuid.UUID) -> PromptCounts:
    """What there is to sample from and to learn from."""
    raise NotImplementedError


def draw_prompts(s: Session, project_id: uuid.UUID, n: int, split: Split | None = Split.TRAIN) -> list[Prompt]:
    """The next n prompts of a random round that visits each before any comes twice; None draws from both splits.

    Several workers may draw at once and get different ones.
    """
    raise NotImplementedError

"""Prompts, completions, demonstrations."""

import uuid
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, REAL
from sqlalchemy.orm import Mapped, mapped_column

from app.core.vocabulary import FinishReason, Origin, Split
from app.store.models.base import Base, Created, Id, words


class Prompt(Base):
    """A conversation that awaits an answer. Its split is fixed at birth by the hash of the first user message.

    `digest` is the SHA-256 of the canonical conversation: one prompt is one row in a project. `drawn` counts how often
    it was taken for sampling, so that draws go round all prompts before any comes twice.
    """

    __tablename__ = "prompt"
    __table_args__ = (
        UniqueConstraint("project_id", "id"),
        UniqueConstraint("project_id", "digest"),
        CheckConstraint("jsonb_typeof(messages) = 'array' AND jsonb_array_length(messages) > 0", name="has_messages"),
        Index("ix_prompt_draw", "project_id", "split", "drawn", "draw_key"),
    )

    id: Mapped[Id]
    project_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("project.id"))
    messages: Mapped[list[Any]]
    digest: Mapped[bytes] = mapped_column(LargeBinary)
    split: Mapped[Split] = mapped_column(words(Split, "split"))
    source: Mapped[str] = mapped_column(Text)
    drawn: Mapped[int] = mapped_column(server_default=text("0"))
    draw_key: Mapped[float] = mapped_column(server_default=func.random())
    created_at: Mapped[Created]


SAMPLED = "checkpoint_id, seed, temperature, top_p, max_tokens, chat_template_hash, finish_reason"


class Completion(Base):
    """One answer to one prompt, immutable. Its origin decides which provenance it must, and may, carry."""

    __tablename__ = "completion"
    __table_args__ = (
        UniqueConstraint("project_id", "id"),
        UniqueConstraint("project_id", "prompt_id", "id"),
        ForeignKeyConstraint(["project_id", "prompt_id"], ["prompt.project_id", "prompt.id"]),
        ForeignKeyConstraint(["project_id", "checkpoint_id"], ["checkpoint.project_id", "checkpoint.id"]),
        ForeignKeyConstraint(["project_id", "author_id"], ["membership.project_id", "membership.account_id"]),
        ForeignKeyConstraint(["project_id", "edited_from_id"], ["completion.project_id", "completion.id"]),
        CheckConstraint(
            f"CASE WHEN origin = 'sampled' THEN num_nulls({SAMPLED}) = 0"
            f" ELSE num_nonnulls({SAMPLED}, latency_ms, token_ids, logprobs) = 0 END",
            name="sampled_has_provenance",
        ),
        CheckConstraint("(origin = 'imported') = (source IS NOT NULL)", name="imported_names_source"),
        CheckConstraint("(origin IN ('written', 'edited')) = (author_id IS NOT NULL)", name="written_names_author"),
        CheckConstraint("(origin = 'edited') = (edited_from_id IS NOT NULL)", name="edited_names_original"),
        CheckConstraint("cardinality(token_ids) = cardinality(logprobs)", name="a_logprob_per_token"),
        Index("ix_completion_checkpoint", "project_id", "checkpoint_id", postgresql_where="checkpoint_id IS NOT NULL"),
    )

    id: Mapped[Id]
    project_id: Mapped[uuid.UUID]
    prompt_id: Mapped[uuid.UUID]
    origin: Mapped[Origin] = mapped_column(words(Origin, "origin"))
    text: Mapped[str] = mapped_column(Text)
    checkpoint_id: Mapped[uuid.UUID | None]
    seed: Mapped[int | None] = mapped_column(BigInteger)
    temperature: Mapped[float | None]
    top_p: Mapped[float | None]
    max_tokens: Mapped[int | None]
    chat_template_hash: Mapped[str | None] = mapped_column(Text)
    finish_reason: Mapped[FinishReason | None] = mapped_column(words(FinishReason, "finish_reason"))
    latency_ms: Mapped[float | None]
    token_ids: Mapped[list[int] | None] = mapped_column(ARRAY(Integer))
    logprobs: Mapped[list[float] | None] = mapped_column(ARRAY(REAL))
    source: Mapped[str | None] = mapped_column(Text)
    author_id: Mapped[uuid.UUID | None]
    edited_from_id: Mapped[uuid.UUID | None]
    created_at: Mapped[Created]


class Demonstration(Base):
    """A completion held up as the ideal answer to its prompt; append-only. What SFT learns from."""

    __tablename__ = "demonstration"
    __table_args__ = (
        UniqueConstraint("project_id", "completion_id"),
        ForeignKeyConstraint(
            ["project_id", "prompt_id", "completion_id"],
            ["completion.project_id", "completion.prompt_id", "completion.id"],
        ),
    )

    id: Mapped[Id]
    project_id: Mapped[uuid.UUID]
    prompt_id: Mapped[uuid.UUID]
    completion_id: Mapped[uuid.UUID]
    created_at: Mapped[Created]

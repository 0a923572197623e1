"""Prompts, completions, demonstrations, and the two ways in which people make them: writing and chatting."""

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, REAL
from sqlalchemy.orm import Mapped, mapped_column

from app.core.vocabulary import ChatState, FinishReason, Origin, Split, WritingState
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
        Index("ix_prompt_writing", "project_id", "draw_key"),
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
    """A completion held up as the ideal answer to its prompt; append-only. What SFT learns from.

    One that another `replaces` is learnt from no more.
    """

    __tablename__ = "demonstration"
    __table_args__ = (
        UniqueConstraint("project_id", "id"),
        UniqueConstraint("project_id", "completion_id"),
        UniqueConstraint("project_id", "replaces_id"),
        ForeignKeyConstraint(["project_id", "replaces_id"], ["demonstration.project_id", "demonstration.id"]),
        ForeignKeyConstraint(
            ["project_id", "prompt_id", "completion_id"],
            ["completion.project_id", "completion.prompt_id", "completion.id"],
        ),
        Index("ix_demonstration_prompt", "project_id", "prompt_id"),
    )

    id: Mapped[Id]
    project_id: Mapped[uuid.UUID]
    prompt_id: Mapped[uuid.UUID]
    completion_id: Mapped[uuid.UUID]
    replaces_id: Mapped[uuid.UUID | None]
    guideline_version: Mapped[int | None]
    created_at: Mapped[Created]


class Writing(Base):
    """One person's meeting with one prompt that asks for an ideal answer; at most one person at a time writes to it.

    `key` is the idempotency key of the newest submit, `body_hash` what it said.
    """

    __tablename__ = "writing"
    __table_args__ = (
        ForeignKeyConstraint(["project_id", "prompt_id"], ["prompt.project_id", "prompt.id"]),
        ForeignKeyConstraint(["project_id", "account_id"], ["membership.project_id", "membership.account_id"]),
        ForeignKeyConstraint(["project_id", "demonstration_id"], ["demonstration.project_id", "demonstration.id"]),
        UniqueConstraint("account_id", "key"),
        CheckConstraint("(state = 'leased') = (lease_expires_at IS NOT NULL)", name="leased_until"),
        CheckConstraint("state <> 'written' OR num_nulls(demonstration_id, key, body_hash) = 0", name="written"),
        CheckConstraint("active_ms >= 0", name="durations"),
        Index("uq_writing_prompt", "prompt_id", unique=True, postgresql_where=text("state IN ('leased', 'written')")),
        Index("ix_writing_account", "project_id", "account_id", "submitted_at"),
        Index("ix_writing_lease", "lease_expires_at", postgresql_where=text("state = 'leased'")),
    )

    prompt_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    account_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    project_id: Mapped[uuid.UUID]
    state: Mapped[WritingState] = mapped_column(words(WritingState, "state"), default=WritingState.LEASED)
    leased_at: Mapped[Created]
    lease_expires_at: Mapped[datetime | None]
    skip_reason: Mapped[str | None] = mapped_column(Text)
    key: Mapped[uuid.UUID | None]
    body_hash: Mapped[bytes | None] = mapped_column(LargeBinary)
    demonstration_id: Mapped[uuid.UUID | None]
    active_ms: Mapped[int | None] = mapped_column(BigInteger)
    submitted_at: Mapped[datetime | None]


class Chat(Base):
    """A conversation that one annotator leads: each turn is a comparison of two streamed answers, the pick goes on.

    `first_policy_id` and `second_policy_id` write the answers at canonical positions 0 and 1; the side is shuffled.
    """

    __tablename__ = "chat"
    __table_args__ = (
        UniqueConstraint("project_id", "id"),
        ForeignKeyConstraint(["project_id", "account_id"], ["membership.project_id", "membership.account_id"]),
        ForeignKeyConstraint(["project_id", "first_policy_id"], ["checkpoint.project_id", "checkpoint.id"]),
        ForeignKeyConstraint(["project_id", "second_policy_id"], ["checkpoint.project_id", "checkpoint.id"]),
        Index("ix_chat_account", "project_id", "account_id", "created_at"),
    )

    id: Mapped[Id]
    project_id: Mapped[uuid.UUID]
    account_id: Mapped[uuid.UUID]
    first_policy_id: Mapped[uuid.UUID]
    second_policy_id: Mapped[uuid.UUID]
    turns: Mapped[int] = mapped_column(SmallInteger)
    state: Mapped[ChatState] = mapped_column(words(ChatState, "state"), default=ChatState.OPEN)
    created_at: Mapped[Created]
    ended_at: Mapped[datetime | None]


class ChatTurn(Base):
    """One turn of a chat: the comparison of its two answers, with the whole history as its prompt."""

    __tablename__ = "chat_turn"
    __table_args__ = (
        ForeignKeyConstraint(["project_id", "chat_id"], ["chat.project_id", "chat.id"]),
        ForeignKeyConstraint(["project_id", "comparison_id"], ["comparison.project_id", "comparison.id"]),
        UniqueConstraint("comparison_id"),
        CheckConstraint("turn >= 0", name="turn"),
    )

    chat_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    turn: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    project_id: Mapped[uuid.UUID]
    comparison_id: Mapped[uuid.UUID]
    created_at: Mapped[Created]

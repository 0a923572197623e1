"""The first start: a project with prompts and demonstrations, and its first policy, trained in the open or brought."""

import logging
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import uuid_utils
from sqlalchemy import text
from sqlalchemy.orm import Session, sessionmaker

from app.core.records import Message
from app.core.vocabulary import CheckpointKind, RunKind
from app.jobs.bring import bring
from app.policy.grammar import letters
from app.settings import Settings
from app.store import accounts, checkpoints, projects, prompts, runs
from app.store.models import Project

SLUG, NAME = "support", "Support replies"
SOURCE = "starter"
GUIDELINES = """Choose the reply that you would rather receive if the message were yours.

A good reply speaks of the right item and the right order number, says what happens next, fits what was asked, and is
friendly without wasting your time. A short right answer beats a long one that misses the point. Where both are equally
good say so; where neither should ever be sent, say that."""

# Any number will do, as long as every worker takes the same one.
LOCK = 7_460_110

logger = logging.getLogger("pairwright.worker")


@dataclass(frozen=True)
class Size:
    """How much the first start makes, and how its training differs from the defaults."""

    demonstrations: int
    prompts: int
    config: dict[str, Any]


# A hundred updates at high rates are enough to write whole words that differ: something to judge, nothing to admire.
TINY = {
    "starter": "tiny",
    "epochs": 10,
    "max_steps": 100,
    "batch_size": 16,
    "warmup_steps": 5,
    "curriculum": 0,
    "learning_rate": 0.01,
    "muon_learning_rate": 0.02,
    "eval_every": 100,
    "eval_rows": 16,
    "checkpoint_every": 20,
    "threads": 1,
}

SIZES = {
    "standard": Size(demonstrations=18_000, prompts=4_000, config={}),
    "tiny": Size(demonstrations=400, prompts=300, config=TINY),
}


def first_start(settings: Settings, sessions: sessionmaker[Session]) -> None:
    """Make the first project where there is none, in one transaction. Invalid where the wanted model cannot serve."""
    _make_project(settings, sessions)
    with sessions.begin() as session:
        # Somebody may have become the owner while the project was being written.
        accounts.let_owner_in(session)


def _make_project(settings: Settings, sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        if projects.all_projects(session):
            return
    brought: tuple[uuid.UUID, dict[str, str]] | None = None
    if settings.policy is not None:
        checkpoint_id = uuid.UUID(str(uuid_utils.uuid7()))
        logger.info("bringing the policy into checkpoint %s", checkpoint_id)
        brought = checkpoint_id, bring(settings.policy, settings.checkpoints_dir / str(checkpoint_id))
    with sessions.begin() as session:
        session.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
        if projects.all_projects(session):
            return  # another worker was quicker
        project = _project(session, settings)
        if brought is not None:
            made = checkpoints.register(
                session,
                project.id,
                CheckpointKind.POLICY,
                None,
                None,
                str(brought[0]),
                brought[1],
                {"source": settings.policy},
                checkpoint_id=brought[0],
            )
            checkpoints.promote(session, project.id, made.id, by=None)
            return
        run = runs.enqueue(session, project.id, RunKind.SFT, by=None, config=SIZES[settings.starter].config)
        logger.info("project %s made; run %s trains its first policy", project.id, run.id)


def _project(session: Session, settings: Settings) -> Project:
    """The project with its texts: customers' messages that await an answer, and letters with one."""
    size = SIZES[settings.starter]
    project = projects.create_project(
        session,
        SLUG,
        NAME,
        guidelines=GUIDELINES,
        heldout_share=settings.heldout_share,
        pool_target=settings.pool_target,
        lease_seconds=settings.lease_seconds,
    )
    demonstrated = (
        (_conversation(letter.prompt_text), letter.reply_text) for letter in letters(1, size.demonstrations)
    )
    prompts.add_demonstrations(session, project, demonstrated, SOURCE)
    prompts.add_prompts(session, project, _messages(size.prompts), SOURCE)
    return project


def _messages(n: int) -> Iterator[list[Message]]:
    return (_conversation(letter.prompt_text) for letter in letters(2, n))


def _conversation(message: str) -> list[Message]:
    return [{"role": "user", "content": message}]

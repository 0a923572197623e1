"""The pool: answers by the current policy to be compared, ready before anyone asks.

Refilled in small batches, so that the first pair appears at once and a promotion is felt at once. Nobody ever waits for
this: judging reads what is there.
"""

import logging
import secrets
import threading
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from app.core.configs import SamplingSettings
from app.core.pairing import why_not
from app.core.records import Message
from app.core.sampler import CompletionRequest, CompletionResult, SamplerClient, SamplerFailure
from app.core.vocabulary import DropCause
from app.settings import Settings
from app.store import checkpoints, comparisons, projects, prompts
from app.store.models import Project

FIRST_BATCH, BATCH = 4, 16
LONGEST_PAUSE_S = 30.0

logger = logging.getLogger("pairwright.pool")


@dataclass(frozen=True)
class Plan:
    """What to sample for one project: read in one transaction, sampled in none, stored in the next."""

    project_id: uuid.UUID
    checkpoint_id: uuid.UUID
    model: str
    sampling: SamplingSettings
    answers: int
    prompts: Sequence[tuple[uuid.UUID, list[Message], float]]


class Pool(threading.Thread):
    """Keeps every project's pool filled until `stopping` is set."""

    def __init__(self, settings: Settings, sessions: sessionmaker[Session], stopping: threading.Event) -> None:
        super().__init__(name="pool", daemon=True)
        self._settings, self._sessions, self._stopping = settings, sessions, stopping
        self._client = SamplerClient(settings.sampler_address)

    def run(self) -> None:
        pause = poll = self._settings.worker_poll_s
        told = ""
        while not self._stopping.wait(pause):
            try:
                with self._sessions.begin() as session:
                    ids = [project.id for project in projects.all_projects(session)]
                added = [refill(self._sessions, self._client, id_) for id_ in ids if not self._stopping.is_set()]
                # After a batch there may be more to do; a policy whose pairs are all dropped is asked ever more rarely.
                wasted = any(n == 0 for n in added) and not any(added)
                pause = 0.0 if any(added) else min(2 * pause + poll, LONGEST_PAUSE_S) if wasted else poll
            except DBAPIError:
                logger.warning("the database does not answer; the pool waits")
                pause = 2.0
            except NotServing as error:
                pause = 1.0
                if str(error) != told:
                    logger.warning("the sampler: %s; the pool waits", error)
                told = str(error)
            except Exception:
                # A pool that ends silently would leave annotators with nothing; it says what happened and goes on.
                logger.exception("filling the pool failed")
                pause = LONGEST_PAUSE_S


class NotServing(Exception):
    """The sampler did not answer any request of a batch: it is starting, or loading a model, or down."""


def refill(sessions: sessionmaker[Session], client: SamplerClient, project_id: uuid.UUID) -> int | None:
    """Add a batch of pairs where a pool is short; how many, None where it is full. NotServing where nobody answers."""
    with sessions.begin() as session:
        plan = _plan(session, project_id)
    if plan is None:
        return None
    requests = [
        CompletionRequest(plan.model, messages, plan.sampling, secrets.randbelow(2**31))
        for _, messages, _ in plan.prompts
        for _ in range(plan.answers)
    ]
    results = client.complete(requests)
    failures = [result for result in results if isinstance(result, SamplerFailure)]
    if len(failures) == len(results):
        # What stands after the colon may quote a prompt.
        raise NotServing(failures[0].reason.partition(":")[0])
    with sessions.begin() as session:
        return _store(session, plan, requests, results)


def _plan(session: Session, project_id: uuid.UUID) -> Plan | None:
    project = session.get_one(Project, project_id)
    if project.current_policy_id is None:
        return None
    waiting = comparisons.ready(session, project_id, at_most=project.pool_target)
    batch = max(1, 2 * (BATCH if waiting else FIRST_BATCH) // project.answers)
    short = min(project.pool_target - waiting, batch)
    if short <= 0:
        return None
    # Both sides of the split in their natural proportion: a reward model is measured on held-out comparisons.
    drawn = prompts.draw_prompts(session, project_id, short, split=None)
    if not drawn:
        return None
    model = checkpoints.checkpoint(session, project_id, project.current_policy_id).folder_name
    return Plan(
        project_id,
        project.current_policy_id,
        model,
        SamplingSettings.model_validate(project.sampling),
        project.answers,
        [(prompt.id, prompt.messages, probability) for prompt, probability in drawn],
    )


def _store(
    session: Session,
    plan: Plan,
    requests: Sequence[CompletionRequest],
    results: Sequence[CompletionResult | SamplerFailure],
) -> int:
    """Store the good ones and count the others. What was sampled from a policy that is no longer current is let go."""
    # Shared with other refills; a promotion waits for us, or we see it.
    project = session.get_one(Project, plan.project_id, with_for_update={"read": True}, populate_existing=True)
    if project.current_policy_id != plan.checkpoint_id or project.answers != plan.answers:
        return 0
    added, drops = 0, Counter[DropCause]()
    for i, (prompt_id, _, probability) in enumerate(plan.prompts):
        here = slice(plan.answers * i, plan.answers * (i + 1))
        whole = [result for result in results[here] if isinstance(result, CompletionResult)]
        if len(whole) < plan.answers:
            continue  # the sampler's failure, not the policy's
        if cause := why_not([result.text for result in whole]):
            drops[cause] += 1
            continue
        seeds = [request.seed for request in requests[here]]
        completions = [
            comparisons.sampled(plan.checkpoint_id, plan.sampling, seed, result)
            for seed, result in zip(seeds, whole, strict=True)
        ]
        comparisons.add_sampled_pair(session, project, prompt_id, completions, probability=probability)
        added += 1
    for cause, n in drops.items():
        comparisons.count_dropped(session, plan.project_id, plan.checkpoint_id, cause, n)
    return added

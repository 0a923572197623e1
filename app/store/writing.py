"""Writing ideal answers: who writes to which prompt, what was written, and what may be started from.

Leases run on the database's clock. Whoever takes a prompt or writes to it holds its row; the unique index on live
meetings is the guarantee, the rest only a filter.
"""

import hashlib
import random
import uuid
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.orm import Session

from app.core.errors import Conflict, Invalid, NotFound
from app.core.records import Message
from app.core.vocabulary import Origin, SkipReason
from app.store import drafts
from app.store.bulk import canonical
from app.store.claims import lock_member
from app.store.models import Completion, Demonstration, Writing, new_id

LONGEST = 20_000
LONGEST_MS = 24 * 60 * 60 * 1000


@dataclass(frozen=True)
class Better:
    """An answer to start from. `won` is how many counted votes preferred it; 0: it is only the newest."""

    completion_id: uuid.UUID
    text: str
    won: int


@dataclass(frozen=True)
class WritingTask:
    """One prompt that asks for an ideal answer, as one person is shown it.

    `text` is what stands in the field: empty, a draft, or the demonstration that is being revised. `edited_from_id` is
    the completion that the text began as. `revises` is the demonstration that the next submit replaces.
    """

    prompt_id: uuid.UUID
    prompt: list[Message]
    text: str = ""
    edited_from_id: uuid.UUID | None = None
    better: Better | None = None
    revises: uuid.UUID | None = None


@dataclass(frozen=True)
class Written:
    """What a writing page sends."""

    prompt_id: uuid.UUID
    key: uuid.UUID
    text: str
    edited_from_id: uuid.UUID | None = None
    active_ms: int | None = None
    guideline_version: int | None = None


@dataclass(frozen=True)
class WritingReceipt:
    """What was stored. `replayed`: the same came before. `late`: the prompt was somebody else's by then."""

    demonstration_id: uuid.UUID
    replayed: bool
    late: bool = False


@dataclass(frozen=True)
class WritingTally:
    """How much one person has written; `newest` is what undo opens again."""

    total: int
    today: int
    newest: uuid.UUID | None


_END_LEASES = text(
    """
    UPDATE writing SET state = 'expired', lease_expires_at = NULL
    WHERE (prompt_id, account_id) IN (
        SELECT prompt_id, account_id FROM writing
        WHERE project_id = :project AND state = 'leased' AND lease_expires_at <= now()
        FOR UPDATE SKIP LOCKED
    )
    """
)

# What this person holds, kept for another whole lease once half of it is over.
_HELD = text(
    """
    UPDATE writing SET lease_expires_at = CASE
        WHEN lease_expires_at < now() + make_interval(secs => :lease) / 2 THEN now() + make_interval(secs => :lease)
        ELSE lease_expires_at
    END
    WHERE account_id = :account AND prompt_id = (
        SELECT prompt_id FROM writing
        WHERE project_id = :project AND account_id = :account AND state = 'leased' AND lease_expires_at > now()
        ORDER BY leased_at LIMIT 1
    )
    RETURNING prompt_id
    """
)

# Nobody writes to it right now, and nobody has shown how to answer it.
_WAITS = """
    p.project_id = :project
    AND NOT EXISTS (SELECT FROM demonstration d WHERE d.project_id = p.project_id AND d.prompt_id = p.id)
    AND NOT EXISTS (SELECT FROM writing w WHERE w.prompt_id = p.id AND w.state IN ('leased', 'written'))
"""

# What this person began to write when the lease ran out.
_BEGUN = text(
    """
    SELECT m.prompt_id FROM writing m
    JOIN draft d ON d.account_id = m.account_id AND d.task_id = m.prompt_id AND d.body ->> 'text' <> ''
    WHERE m.project_id = :project AND m.account_id = :account AND m.state = 'expired' AND m.demonstration_id IS NULL
    ORDER BY d.updated_at DESC LIMIT 1
    """
)

# Both sides of the split in their natural proportion, for the random key knows nothing of the split.
_NEW = text(
    f"""
    SELECT p.id FROM prompt p
    WHERE {_WAITS} AND p.draw_key >= :start
        AND NOT EXISTS (SELECT FROM writing m WHERE m.prompt_id = p.id AND m.account_id = :account)
    ORDER BY p.draw_key LIMIT 1
    FOR NO KEY UPDATE OF p SKIP LOCKED
    """  # noqa: S608 - the only thing formatted in is the constant above
)

_AGAIN = text(
    f"""
    SELECT p.id FROM prompt p
    JOIN writing m ON m.prompt_id = p.id AND m.account_id = :account AND m.state = 'expired'
    WHERE {_WAITS}
    ORDER BY m.leased_at LIMIT 1
    FOR NO KEY UPDATE OF p SKIP LOCKED
    """  # noqa: S608 - the only thing formatted in is the constant above
)

# Looks once more, now that the prompt's row is held: somebody may have come between the look and the lock.
_LEASE = text(
    """
    INSERT INTO writing (prompt_id, account_id, project_id, state, lease_expires_at)
    SELECT :prompt, :account, :project, 'leased', now() + make_interval(secs => :lease)
    WHERE NOT EXISTS (SELECT FROM writing w WHERE w.prompt_id = :prompt AND w.state IN ('leased', 'written'))
        AND NOT EXISTS (SELECT FROM demonstration d WHERE d.project_id = :project AND d.prompt_id = :prompt)
    ON CONFLICT (prompt_id, account_id) DO UPDATE
        SET state = 'leased', leased_at = clock_timestamp(), lease_expires_at = excluded.lease_expires_at
        WHERE writing.state = 'expired'
    RETURNING prompt_id
    """
)

_LOCK_PROMPT = text("SELECT id FROM prompt WHERE id = :prompt AND project_id = :project FOR NO KEY UPDATE")

_LOCK = text(
    """
    SELECT w.state, w.key, w.body_hash, w.demonstration_id, o.text, o.edited_from_id, p.guideline_version,
        EXISTS (
            SELECT FROM writing x WHERE x.prompt_id = :prompt AND x.account_id <> :account
                AND x.state IN ('leased', 'written')
        ) AS taken,
        EXISTS (SELECT FROM writing x WHERE x.account_id = :account AND x.key = :key AND x.prompt_id <> :prompt)
            AS key_elsewhere,
        EXISTS (
            SELECT FROM completion c WHERE c.project_id = :project AND c.prompt_id = :prompt AND c.id = :edited_from
        ) AS original
    FROM writing w
    JOIN project p ON p.id = w.project_id
    LEFT JOIN demonstration d ON d.id = w.demonstration_id
    LEFT JOIN completion o ON o.id = d.completion_id
    WHERE w.prompt_id = :prompt AND w.account_id = :account AND w.project_id = :project
    FOR UPDATE OF w
    """
)

_STORE = text(
    """
    UPDATE writing SET state = CASE WHEN :taken THEN 'expired' ELSE 'written' END, lease_expires_at = NULL,
        skip_reason = NULL, key = :key, body_hash = :hash, demonstration_id = :demonstration, active_ms = :active_ms,
        submitted_at = clock_timestamp()
    WHERE prompt_id = :prompt AND account_id = :account
    """
)


def claim(s: Session, project_id: uuid.UUID, account_id: uuid.UUID) -> WritingTask | None:
    """The prompt that this person writes to, leased to them; None when none waits for them.

    Two tabs share one. NotFound for somebody who is not, or no longer, a member.
    """
    who = {"project": project_id, "account": account_id, "lease": lock_member(s, project_id, account_id)}
    prompt_id = s.execute(_HELD, who).scalar_one_or_none()
    if prompt_id is None:
        s.execute(_END_LEASES, who)
        prompt_id = _begun(s, who) or _take(s, who)
    return None if prompt_id is None else _task(s, project_id, account_id, prompt_id)


def _begun(s: Session, who: dict[str, object]) -> uuid.UUID | None:
    """What was begun comes back whoever holds it by now: what is written is kept beside theirs."""
    prompt_id: uuid.UUID | None = s.execute(_BEGUN, who).scalar_one_or_none()
    if prompt_id is not None:
        s.execute(_LOCK_PROMPT, who | {"prompt": prompt_id})
        s.execute(_LEASE, who | {"prompt": prompt_id})
    return prompt_id


def _take(s: Session, who: dict[str, object]) -> uuid.UUID | None:
    looks = ((_NEW, random.random()), (_NEW, 0.0), (_AGAIN, 0.0))  # noqa: S311 - it spreads people
    for query, start in looks:
        # Each prompt that was taken between the look and the lock costs one more look.
        for _ in range(10):
            prompt_id: uuid.UUID | None = s.execute(query, who | {"start": start}).scalar_one_or_none()
            if prompt_id is None:
                break
            if s.execute(_LEASE, who | {"prompt": prompt_id}).scalar_one_or_none() is not None:
                return prompt_id
    return None


def revise(s: Session, project_id: uuid.UUID, account_id: uuid.UUID, demonstration_id: uuid.UUID) -> WritingTask:
    """A demonstration of this person, to be written anew; it stands until the new one is submitted.

    An older one opens its newest. NotFound for somebody else's.
    """
    query = text(
        """
        SELECT w.prompt_id FROM demonstration d
        JOIN completion o ON o.id = d.completion_id AND o.author_id = :account
        JOIN writing w ON w.prompt_id = d.prompt_id AND w.account_id = :account AND w.demonstration_id IS NOT NULL
        WHERE d.id = :demonstration AND d.project_id = :project
        """
    )
    who = {"project": project_id, "account": account_id, "demonstration": demonstration_id}
    prompt_id = s.execute(query, who).scalar_one_or_none()
    if prompt_id is None:
        raise NotFound("There is no such demonstration of yours.")
    return _task(s, project_id, account_id, prompt_id)


_TASK = text(
    """
    SELECT p.messages, draft.body AS draft, w.demonstration_id, o.text, o.edited_from_id
    FROM writing w
    JOIN prompt p ON p.id = w.prompt_id
    LEFT JOIN draft ON draft.account_id = w.account_id AND draft.task_id = w.prompt_id
    LEFT JOIN demonstration d ON d.id = w.demonstration_id
    LEFT JOIN completion o ON o.id = d.completion_id
    WHERE w.prompt_id = :prompt AND w.account_id = :account AND w.project_id = :project
    """
)

# The answer that won the most counted votes, else the newest that a policy gave.
_BETTER = text(
    """
    SELECT o.id, o.text, coalesce(votes.won, 0) AS won
    FROM completion o
    LEFT JOIN (
        SELECT k.completion_id, count(*) AS won
        FROM comparison c
        JOIN judgment j ON j.comparison_id = c.id AND NOT j.withdrawn
        JOIN judgment_revision r ON r.judgment_id = j.id AND r.revision = j.revision
        JOIN slot s ON s.comparison_id = c.id AND s.holder_id = j.account_id AND s.state = 'filled'
        JOIN candidate k ON k.comparison_id = c.id AND r.tiers -> 0 @> to_jsonb(k.position)
        WHERE c.project_id = :project AND c.prompt_id = :prompt AND jsonb_array_length(r.tiers) > 1
        GROUP BY k.completion_id
    ) votes ON votes.completion_id = o.id
    WHERE o.project_id = :project AND o.prompt_id = :prompt AND (votes.won > 0 OR o.origin = 'sampled')
    ORDER BY won DESC, o.id DESC LIMIT 1
    """
)


def task(s: Session, project_id: uuid.UUID, account_id: uuid.UUID, prompt_id: uuid.UUID) -> WritingTask:
    """A prompt that was handed to this person, now or before; NotFound for any other."""
    met = s.get(Writing, (prompt_id, account_id))
    if met is None or met.project_id != project_id:
        raise NotFound("This prompt was not handed to you.", "Reload the page for the next one.")
    return _task(s, project_id, account_id, prompt_id)


def _task(s: Session, project_id: uuid.UUID, account_id: uuid.UUID, prompt_id: uuid.UUID) -> WritingTask:
    where = {"project": project_id, "account": account_id, "prompt": prompt_id}
    row = s.execute(_TASK, where).one()
    found = s.execute(_BETTER, where).one_or_none()
    better = None if found is None else Better(found.id, found.text, found.won)
    words, began = row.text or "", row.edited_from_id
    # A draft of an earlier round, sent late by some page, says nothing about this one.
    if row.draft is not None and row.draft.get("base", "") == str(row.demonstration_id or ""):
        words, began = str(row.draft.get("text", "")), _id(row.draft.get("edited_from_id"))
    return WritingTask(prompt_id, row.messages, words, began, better, row.demonstration_id)


def _id(value: object) -> uuid.UUID | None:
    """An id from a draft, which may hold anything."""
    try:
        return uuid.UUID(str(value))
    except ValueError:
        return None


def submit(s: Session, project_id: uuid.UUID, account_id: uuid.UUID, written: Written) -> WritingReceipt:
    """Store an ideal answer as a demonstration; one that this person gave for the prompt before is replaced.

    The same key and body again give the same receipt, another body under it is a Conflict. A late one is kept beside
    what somebody else wrote meanwhile. NotFound for a prompt that was never handed to this person, Invalid for a text
    that is empty, too long or cannot be stored.
    """
    words = written.text.replace("\r\n", "\n")
    where = {
        "project": project_id,
        "account": account_id,
        "prompt": written.prompt_id,
        "key": written.key,
        "edited_from": written.edited_from_id,
    }
    lock_member(s, project_id, account_id)
    s.execute(_LOCK_PROMPT, where)
    row = s.execute(_LOCK, where).one_or_none()
    if row is None:
        raise NotFound("This prompt was not handed to you.", "Reload the page for the next one.")
    digest = _digest(written, words)
    if row.key_elsewhere or (row.key == written.key and row.body_hash != digest):
        raise Conflict("This key was already used for another text.", "Reload the page; the first one is stored.")
    # Also what an older key brought: nothing has changed since.
    same = row.demonstration_id is not None and (row.text, row.edited_from_id) == (words, written.edited_from_id)
    if row.key == written.key or same:
        drafts.drop(s, account_id, written.prompt_id)
        return WritingReceipt(row.demonstration_id, replayed=True)
    _check(written, words, row.guideline_version, row.original)
    completion = Completion(
        id=new_id(),
        project_id=project_id,
        prompt_id=written.prompt_id,
        origin=Origin.EDITED if written.edited_from_id else Origin.WRITTEN,
        text=words,
        author_id=account_id,
        edited_from_id=written.edited_from_id,
    )
    s.add(completion)
    s.flush()
    demonstration = Demonstration(
        id=new_id(),
        project_id=project_id,
        prompt_id=written.prompt_id,
        completion_id=completion.id,
        replaces_id=row.demonstration_id,
        guideline_version=written.guideline_version or row.guideline_version,
    )
    s.add(demonstration)
    s.flush()
    stored = {"taken": row.taken, "hash": digest, "demonstration": demonstration.id, "active_ms": written.active_ms}
    s.execute(_STORE, where | stored)
    drafts.drop(s, account_id, written.prompt_id)
    return WritingReceipt(demonstration.id, replayed=False, late=row.taken)


def _digest(written: Written, words: str) -> bytes:
    said = [str(written.prompt_id), words, str(written.edited_from_id), written.active_ms, written.guideline_version]
    return hashlib.sha256(canonical(said).encode(errors="surrogatepass")).digest()


def _check(written: Written, words: str, newest: int, original: bool) -> None:
    """Invalid for what cannot be a demonstration, in words that say what to mend."""
    if not words.strip():
        raise Invalid("There is no text yet.", "Write the answer, then submit it.")
    if len(words) > LONGEST:
        over = len(words) - LONGEST
        raise Invalid(
            f"The text is longer than {LONGEST:,} characters.", f"Shorten it by {over:,}; it is still in the page."
        )
    if "\0" in words or any("\ud800" <= one <= "\udfff" for one in words):
        raise Invalid("The text holds a character that cannot be stored.", "Take it out; the text is still there.")
    if written.edited_from_id is not None and not original:
        raise NotFound("The answer that this text began as does not belong to this prompt.", "Reload the page.")
    if written.active_ms is not None and not 0 <= written.active_ms <= LONGEST_MS:
        raise Invalid("The time of this text makes no sense.", "Reload the page.")
    if written.guideline_version is not None and not 1 <= written.guideline_version <= newest:
        raise Invalid("There is no such version of the guidelines.", "Reload the page.")


def skip(
    s: Session, project_id: uuid.UUID, account_id: uuid.UUID, prompt_id: uuid.UUID, reason: SkipReason | None = None
) -> None:
    """Leave a prompt to somebody else; this person never meets it again, their draft goes. Twice changes nothing."""
    query = text(
        """
        UPDATE writing SET state = 'skipped', lease_expires_at = NULL, skip_reason = coalesce(skip_reason, :reason)
        WHERE prompt_id = :prompt AND account_id = :account AND project_id = :project AND demonstration_id IS NULL
        RETURNING prompt_id
        """
    )
    where = {"project": project_id, "account": account_id, "prompt": prompt_id}
    if s.execute(query, where | {"reason": reason and reason.value}).one_or_none() is None:
        met = text("SELECT FROM writing WHERE prompt_id = :prompt AND account_id = :account AND project_id = :project")
        if s.execute(met, where).one_or_none() is None:
            raise NotFound("This prompt was not handed to you.", "Reload the page for the next one.")
        raise Conflict("You have written an answer to this prompt.", "It stands; go on with the next one.")
    drafts.drop(s, account_id, prompt_id)


_TALLY = text(
    """
    SELECT count(*) AS total, count(*) FILTER (WHERE submitted_at >= date_trunc('day', now(), 'UTC')) AS today,
        (array_agg(demonstration_id ORDER BY submitted_at DESC))[1] AS newest
    FROM writing
    WHERE project_id = :project AND account_id = :account AND submitted_at IS NOT NULL
    """
)


def tally(s: Session, project_id: uuid.UUID, account_id: uuid.UUID) -> WritingTally:
    """How many prompts this person has answered; `today` is the database's day in UTC."""
    row = s.execute(_TALLY, {"project": project_id, "account": account_id}).one()
    return WritingTally(row.total, row.today, row.newest)

"""Freezing judgments, and writing what training reads: canonical JSONL, the same bytes for the same rows."""

import hashlib
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from sqlalchemy import Row, text
from sqlalchemy.orm import Session

from app.core.errors import NotFound
from app.core.records import DemonstrationRecord, PreferenceRecord, PromptRecord
from app.core.vocabulary import Split
from app.store.bulk import canonical
from app.store.models import Snapshot, new_id

FETCH = 1000

# What a snapshot leaves out is said here once: withdrawn and surplus judgments, gold, repeats and contests, and the
# judgments of people who are left out at that moment.
_QUERY = {
    "counted": True,
    "withdrawn": False,
    "left_out": False,
    "reasons": ["random", "uncertain", "chat"],
}

_PREFERENCE = """
    SELECT j.id AS judgment_id, r.revision, j.comparison_id, c.prompt_id, p.messages, p.split, r.tiers, r.strength,
        r.both_bad, m.pseudonym, (
            SELECT array_agg(o.text ORDER BY k.position)
            FROM candidate k JOIN completion o ON o.id = k.completion_id
            WHERE k.comparison_id = c.id
        ) AS completions
    FROM {source}
    JOIN comparison c ON c.id = j.comparison_id
    JOIN prompt p ON p.id = c.prompt_id
    JOIN membership m ON m.project_id = j.project_id AND m.account_id = j.account_id
    WHERE {condition}
    ORDER BY j.id
"""

# The judgments that count right now.
STANDING = text(
    _PREFERENCE.format(
        source="judgment j JOIN judgment_revision r ON r.judgment_id = j.id AND r.revision = j.revision",
        condition="j.project_id = :project AND NOT j.withdrawn AND NOT m.left_out"
        " AND c.reason IN ('random', 'uncertain', 'chat')"
        " AND EXISTS (SELECT FROM slot s WHERE s.comparison_id = j.comparison_id"
        " AND s.holder_id = j.account_id AND s.state = 'filled')",
    )
)

_FROZEN = text(
    _PREFERENCE.format(
        source="snapshot_judgment f JOIN judgment j ON j.id = f.judgment_id"
        " JOIN judgment_revision r ON r.judgment_id = f.judgment_id AND r.revision = f.revision",
        condition="f.snapshot_id = :snapshot",
    )
)

_KEEP = text(
    "INSERT INTO snapshot_judgment (snapshot_id, judgment_id, revision)"
    " SELECT :snapshot, j, r FROM unnest(CAST(:judgments AS uuid[]), CAST(:revisions AS int[])) AS kept (j, r)"
)


def freeze(s: Session, project_id: uuid.UUID, by: uuid.UUID | None = None) -> Snapshot:
    """Freeze the counted judgments of a project: neither withdrawn nor surplus, nor of people left out, without gold,
    repeats and contests.

    Ties and both-bad are in it. The same judgments give the same hash.
    """
    digest = hashlib.sha256()
    kept: list[tuple[uuid.UUID, int]] = []
    sides = {Split.TRAIN: 0, Split.HELDOUT: 0}
    for row in stream(s, STANDING, {"project": project_id}):
        record = _preference(row)
        digest.update(_line(record))
        kept.append((row.judgment_id, row.revision))
        sides[record.split] += 1
    snapshot = Snapshot(
        id=new_id(),
        project_id=project_id,
        sha256=digest.hexdigest(),
        query=_QUERY,
        train=sides[Split.TRAIN],
        heldout=sides[Split.HELDOUT],
        created_by=by,
    )
    s.add(snapshot)
    s.flush()
    judgments, revisions = [one for one, _ in kept], [revision for _, revision in kept]
    s.execute(_KEEP, {"snapshot": snapshot.id, "judgments": judgments, "revisions": revisions})
    return snapshot


def write_preferences(s: Session, snapshot_id: uuid.UUID, path: Path) -> str:
    """Write a snapshot as canonical JSONL of PreferenceRecord; returns its SHA-256, which is the snapshot's."""
    snapshot = s.get(Snapshot, snapshot_id)
    if snapshot is None:
        raise NotFound("There is no such snapshot.")
    written = _write(path, (_preference(row) for row in stream(s, _FROZEN, {"snapshot": snapshot_id})))
    assert written == snapshot.sha256, "a frozen snapshot has changed"
    return written


_PROMPTS = text("SELECT id, messages, split FROM prompt WHERE project_id = :project ORDER BY id")

_DEMONSTRATIONS = text(
    """
    SELECT p.id, p.messages, p.split, o.text
    FROM demonstration d
    JOIN prompt p ON p.id = d.prompt_id
    JOIN completion o ON o.id = d.completion_id
    WHERE d.project_id = :project
        AND NOT EXISTS (SELECT FROM demonstration n WHERE n.project_id = d.project_id AND n.replaces_id = d.id)
    ORDER BY d.id
    """
)


def write_prompts(s: Session, project_id: uuid.UUID, path: Path) -> str:
    """Write the project's prompts, both splits, as JSONL of PromptRecord by id; returns the SHA-256."""
    rows = stream(s, _PROMPTS, {"project": project_id})
    return _write(path, (PromptRecord(prompt_id=str(row.id), prompt=row.messages, split=row.split) for row in rows))


def write_demonstrations(s: Session, project_id: uuid.UUID, path: Path) -> str:
    """Write the demonstrations, both splits, as JSONL of DemonstrationRecord by id; returns the SHA-256.

    One that another replaces is left out.
    """
    rows = stream(s, _DEMONSTRATIONS, {"project": project_id})
    records = (
        DemonstrationRecord(prompt_id=str(row.id), prompt=row.messages, completion=row.text, split=row.split)
        for row in rows
    )
    return _write(path, records)


def stream(s: Session, query: Any, values: dict[str, object]) -> Iterator[Row[Any]]:
    """The rows of a query by a server-side cursor: memory stays flat however many there are."""
    s.flush()
    return iter(s.connection().execute(query, values, execution_options={"yield_per": FETCH}))


def _preference(row: Row[Any]) -> PreferenceRecord:
    return PreferenceRecord(
        judgment_id=str(row.judgment_id),
        comparison_id=str(row.comparison_id),
        prompt_id=str(row.prompt_id),
        prompt=row.messages,
        completions=row.completions,
        tiers=row.tiers,
        strength=row.strength,
        both_bad=row.both_bad,
        annotator=row.pseudonym,
        split=row.split,
    )


def _line(record: BaseModel) -> bytes:
    return canonical(record.model_dump(mode="json")).encode() + b"\n"


def _write(path: Path, records: Iterable[BaseModel]) -> str:
    digest = hashlib.sha256()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for record in records:
            line = _line(record)
            digest.update(line)
            file.write(line)
    return digest.hexdigest()

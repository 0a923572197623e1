"""Importing prompts, demonstrations and preferences: streamed, all or nothing, every oddity counted."""

import hashlib
import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, BinaryIO, Literal, NoReturn, TypeVar

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from app.core.errors import Conflict, Invalid, NotFound
from app.core.vocabulary import AssignmentState, ComparisonState, DrawReason, Origin, Role
from app.store import audit, formats, prompts
from app.store.accounts import new_pseudonym
from app.store.bulk import batches, copy, place_prompts
from app.store.models import (
    Account,
    AccountKind,
    Assignment,
    AuditEvent,
    Candidate,
    Comparison,
    Completion,
    Judgment,
    JudgmentRevision,
    Membership,
    Project,
    Slot,
    SlotState,
    new_id,
)

Kind = Literal["prompts", "demonstrations", "preferences"]

MAX_LINE = 1 << 20
MAX_ROWS = 1_000_000
MAX_BYTES = 1 << 30
MAX_ARRAY = 16 << 20  # a JSON array is read whole; JSONL is not
SHOWN_ERRORS, SHOWN_SKIPPED = 20, 100

Parsed = TypeVar("Parsed")


@dataclass(frozen=True)
class ImportReport:
    """What became of a file. `skipped` names lines left out and why; `notes` counts every oddity."""

    rows: int
    added: int
    skipped: list[tuple[int, str]] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)


def import_jsonl(
    s: Session,
    project_id: uuid.UUID,
    kind: Kind,
    stream: BinaryIO | Iterable[bytes],
    by: uuid.UUID | None,
    name: str,
) -> ImportReport:
    """Import a JSONL file (or PandaLM's JSON array of votes); `name` is kept as the source of what it brings.

    Raises Invalid with the numbers of the first malformed lines, and then nothing was added.
    """
    project = s.get(Project, project_id)
    if project is None:
        raise NotFound("There is no such project.")
    name = name.replace("\x00", "")[:200] or "import"
    reading = _Reading(stream)
    with s.begin_nested():
        if kind == "prompts":
            added = prompts.add_prompts(s, project, reading.parsed(formats.prompt_of), name)
        elif kind == "demonstrations":
            added = prompts.add_demonstrations(s, project, reading.parsed(formats.demonstration_of), name)
        elif kind == "preferences":
            people = _Annotators(s, project_id, name)
            rows = reading.parsed(formats.preference_of)
            added = sum(_add_preferences(s, project, batch, people, name, reading.notes) for batch in batches(rows))
        else:
            raise Invalid("Prompts, demonstrations and preferences can be imported.")
        digest = reading.digest.hexdigest()
        if kind == "preferences" and _imported_before(s, project_id, digest):
            raise Conflict("This very file was imported before.", "Nothing was added.")
        detail = {"kind": kind, "rows": reading.rows, "added": added, "sha256": digest}
        audit.record(s, project_id, by, "data.import", kind, detail)
        s.flush()
    return ImportReport(reading.rows, added, reading.skipped, dict(reading.notes))


def _imported_before(s: Session, project_id: uuid.UUID, digest: str) -> bool:
    same = exists().where(
        AuditEvent.project_id == project_id,
        AuditEvent.action == "data.import",
        AuditEvent.subject == "preferences",
        AuditEvent.detail["sha256"].astext == digest,
    )
    return bool(s.scalars(select(same)).one())


class _Reading:
    """A file on its way in: what was read so far, and what was odd about it."""

    def __init__(self, stream: BinaryIO | Iterable[bytes]) -> None:
        self.digest = hashlib.sha256()
        self.rows = 0
        self.skipped: list[tuple[int, str]] = []
        self.notes: Counter[str] = Counter()
        self._errors: list[tuple[int, str]] = []
        self._lines = _lines(stream)

    def parsed(self, parse: Callable[[Any], Parsed]) -> Iterator[Parsed]:
        """The records of the file. After a malformed line only others like it are looked for."""
        for number, value in self._values():
            self.rows += 1
            if self.rows > MAX_ROWS:
                raise Invalid(f"The file has more than {MAX_ROWS:,} rows.", "Split it.")
            try:
                if isinstance(value, formats.Malformed):
                    raise value
                record = parse(value)
            except formats.LeftOut as reason:
                if len(self.skipped) < SHOWN_SKIPPED:
                    self.skipped.append((number, str(reason)))
                self.notes[str(reason)] += 1
            except formats.Malformed as reason:
                self._errors.append((number, str(reason)))
                if len(self._errors) == SHOWN_ERRORS:
                    self._refuse()
            else:
                if not self._errors:
                    yield record
        if self._errors:
            self._refuse()
        if self.rows == 0:
            raise Invalid("The file is empty.")

    def _refuse(self) -> NoReturn:
        shown = "; ".join(f"line {number}: {reason}" for number, reason in self._errors)
        more = " Only the first are named." if len(self._errors) == SHOWN_ERRORS else ""
        raise Invalid(f"The file cannot be imported. {shown[:1].upper()}{shown[1:]}.{more}", "Nothing was added.")

    def _values(self) -> Iterator[tuple[int, Any]]:
        numbered = enumerate(self._lines, start=1)
        for number, line in numbered:
            self.digest.update(line)
            if number == 1:
                if line.startswith(b"\x1f\x8b"):
                    raise Invalid("The file is compressed.", "Decompress it first.")
                line = line.removeprefix(b"\xef\xbb\xbf")
                if line.lstrip().startswith(b"["):
                    yield from self._array(line)
                    return
            if line.strip():
                yield number, _json(line)

    def _array(self, first: bytes) -> Iterator[tuple[int, Any]]:
        whole = bytearray(first)
        for line in self._lines:
            self.digest.update(line)
            whole += line
            if len(whole) > MAX_ARRAY:
                raise Invalid(f"A JSON array may have {MAX_ARRAY >> 20} MB.", "Write one JSON object a line instead.")
        value = _json(bytes(whole))
        if isinstance(value, formats.Malformed):
            raise Invalid(f"The file is not valid JSON: {value}.", "Nothing was added.")
        yield from enumerate(value, start=1)


def _lines(stream: BinaryIO | Iterable[bytes]) -> Iterator[bytes]:
    """Lines with bounded memory, however the bytes arrive; Invalid where a cap is passed."""
    chunks = iter(lambda: stream.read(1 << 16), b"") if hasattr(stream, "read") else iter(stream)
    rest, total, number = b"", 0, 1
    for chunk in chain(chunks, [b""]):
        total += len(chunk)
        if total > MAX_BYTES:
            raise Invalid(f"The file is larger than {MAX_BYTES >> 20} MB.", "Split it.")
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            if len(line) > MAX_LINE:
                raise Invalid(f"Line {number} is longer than {MAX_LINE >> 20} MB.", "Nothing was added.")
            number += 1
            yield line + b"\n"
        if len(rest) > MAX_LINE:
            raise Invalid(f"Line {number} is longer than {MAX_LINE >> 20} MB.", "Nothing was added.")
    if rest:
        yield rest


def _json(line: bytes) -> Any:
    """The value of a line, or a Malformed to be reported with its number."""

    def refuse(word: str) -> NoReturn:
        raise formats.Malformed(f"{word} is not JSON")

    try:
        text = line.decode()
        value = json.loads(text, parse_constant=refuse)
        if "\\u" in text:  # only an escape can bring these in
            for words in _strings(value):
                words.encode()
                if "\x00" in words:
                    return formats.Malformed("it holds a NUL character")
    except formats.Malformed as error:
        return error
    except UnicodeDecodeError:
        return formats.Malformed("it is not UTF-8")
    except UnicodeEncodeError:
        return formats.Malformed("it holds half of a surrogate pair")
    except RecursionError:
        return formats.Malformed("it is nested too deeply")
    except ValueError:
        return formats.Malformed("it is not valid JSON")
    return value


def _strings(value: Any) -> Iterator[str]:
    """Every text in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for part in value if isinstance(value, list) else chain(value, value.values()):
            yield from _strings(part)


class _Annotators:
    """The imported annotators of one source: accounts that cannot sign in, made when first met."""

    def __init__(self, s: Session, project_id: uuid.UUID, source: str) -> None:
        self._s, self._project_id, self._source = s, project_id, source
        self._known: dict[str, uuid.UUID] = {}

    def account(self, annotator: str) -> uuid.UUID:
        label = f"{self._source}/{annotator}" if annotator else self._source
        if label not in self._known:
            found = self._s.scalars(
                select(Membership.account_id).where(
                    Membership.project_id == self._project_id, Membership.source == label
                )
            ).one_or_none()
            self._known[label] = found or self._make(label)
        return self._known[label]

    def _make(self, label: str) -> uuid.UUID:
        account = Account(id=new_id(), kind=AccountKind.IMPORTED)
        self._s.add(account)
        self._s.flush()
        self._s.add(
            Membership(
                project_id=self._project_id,
                account_id=account.id,
                role=Role.ANNOTATOR,
                pseudonym=new_pseudonym(),
                source=label,
            )
        )
        self._s.flush()
        return account.id


def _add_preferences(
    s: Session,
    project: Project,
    rows: list[formats.Preference],
    people: _Annotators,
    source: str,
    notes: Counter[str],
) -> int:
    """Comparisons that were judged elsewhere, each with a filled slot a vote; returns how many comparisons."""
    prompt_ids, _ = place_prompts(s, project, [row.prompt for row in rows], source)
    completions, comparisons, candidates = [], [], []
    assignments, slots, judgments, revisions = [], [], [], []
    for prompt_id, row in zip(prompt_ids, rows, strict=True):
        notes.update(row.notes)
        comparison_id = new_id()
        comparisons.append(
            (comparison_id, project.id, prompt_id, DrawReason.RANDOM, 1.0, ComparisonState.IMPORTED, len(row.votes))
        )
        for position, answer in enumerate(row.answers):
            completion_id = new_id()
            completions.append((completion_id, project.id, prompt_id, Origin.IMPORTED, answer, source))
            candidates.append((comparison_id, position, project.id, prompt_id, completion_id))
        for position, vote in enumerate(row.votes):
            account_id, judgment_id = people.account(vote.annotator), new_id()
            assignments.append((comparison_id, account_id, project.id, AssignmentState.JUDGED))
            slots.append((comparison_id, position, project.id, SlotState.FILLED, account_id))
            judgments.append((judgment_id, project.id, comparison_id, account_id, 1, False))
            revisions.append((judgment_id, 1, account_id, new_id(), False, json.dumps(vote.tiers), False, True))
    copy(s, Completion, ["id", "project_id", "prompt_id", "origin", "text", "source"], completions)
    copy(
        s,
        Comparison,
        ["id", "project_id", "prompt_id", "reason", "probability", "state", "votes_wanted"],
        comparisons,
    )
    copy(s, Candidate, ["comparison_id", "position", "project_id", "prompt_id", "completion_id"], candidates)
    copy(s, Assignment, ["comparison_id", "account_id", "project_id", "state"], assignments)
    copy(s, Slot, ["comparison_id", "position", "project_id", "state", "holder_id"], slots)
    copy(s, Judgment, ["id", "project_id", "comparison_id", "account_id", "revision", "withdrawn"], judgments)
    copy(
        s,
        JudgmentRevision,
        ["judgment_id", "revision", "account_id", "key", "withdrawn", "tiers", "both_bad", "counted"],
        revisions,
    )
    return len(comparisons)

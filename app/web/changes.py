"""What changed between two texts, word by word within the lines that differ."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

MOST_WORDS = 2000  # of two lines' worth of change; beyond it the whole block is shown as replaced


@dataclass(frozen=True)
class Piece:
    """A stretch of text that stayed, was added or was removed."""

    kind: Literal["same", "added", "removed"]
    text: str


def changes(before: str, after: str) -> list[Piece]:
    """The two texts as one, in order; what stayed and what was added give `after`."""
    return list(_joined(_by_line(before.splitlines(keepends=True), after.splitlines(keepends=True))))


def _by_line(before: Sequence[str], after: Sequence[str]) -> Iterator[Piece]:
    for kind, a, b, c, d in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        old, new = "".join(before[a:b]), "".join(after[c:d])
        if kind == "equal":
            yield Piece("same", new)
        elif kind == "replace":
            yield from _by_word(old, new)
        else:
            yield from _pieces(old, new)


def _by_word(old: str, new: str) -> Iterator[Piece]:
    before, after = (re.findall(r"\s+|\w+|[^\w\s]", text) for text in (old, new))
    if len(before) + len(after) > MOST_WORDS:
        yield from _pieces(old, new)
        return
    matcher = SequenceMatcher(None, before, after, autojunk=False)
    # Where nearly nothing is the same, scattered words in common only confuse.
    if matcher.ratio() < 0.4:
        yield from _pieces(old, new)
        return
    removed = added = ""
    for kind, a, b, c, d in matcher.get_opcodes():
        gone, came = "".join(before[a:b]), "".join(after[c:d])
        # A space between two changed words is part of one change.
        if kind != "equal" or (gone.isspace() and (removed or added)):
            removed, added = removed + gone, added + came
            continue
        yield from _pieces(removed, added)
        removed = added = ""
        yield Piece("same", came)
    yield from _pieces(removed, added)


def _pieces(old: str, new: str) -> Iterator[Piece]:
    if old:
        yield Piece("removed", old)
    if new:
        yield Piece("added", new)


def _joined(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """Neighbours of one kind as one piece."""
    last: Piece | None = None
    for piece in pieces:
        if last is not None and last.kind == piece.kind:
            last = Piece(last.kind, last.text + piece.text)
            continue
        if last is not None:
            yield last
        last = piece
    if last is not None:
        yield last

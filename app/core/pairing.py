"""Splitting by prompt, the order of sides, and the pairs that follow from a ranking."""

import hashlib
import unicodedata
from collections.abc import Sequence
from itertools import combinations

from app.core.vocabulary import DropCause, Split

Tiers = Sequence[Sequence[int]]


def normalise(text: str) -> str:
    """One spelling for texts that a reader would call the same: NFKC, case folded, white space collapsed."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def split_of(salt: str, first_user_message: str, heldout_share: float = 0.1) -> Split:
    """The side of the split for a prompt: a hash of the project's salt and the normalised first user message.

    The same question is on the same side wherever it turns up, in an edit, a repeat or a later turn.
    """
    digest = hashlib.sha256(f"{salt}\x00{normalise(first_user_message)}".encode()).digest()
    return Split.HELDOUT if int.from_bytes(digest[:8], "big") < heldout_share * 2**64 else Split.TRAIN


def side_order(comparison_id: str, annotator_id: str, count: int = 2) -> list[int]:
    """Canonical positions in the order of serving: a fair shuffle, fixed for one annotator on one comparison."""
    keys = [hashlib.sha256(f"{comparison_id}\x00{annotator_id}\x00{i}".encode()).digest() for i in range(count)]
    return sorted(range(count), key=keys.__getitem__)


def pairs_of(tiers: Tiers) -> list[tuple[int, int]]:
    """All strict pairs (better, worse) that a ranking with ties implies, best tier first."""
    return [(a, b) for upper, lower in combinations(tiers, 2) for a in upper for b in lower]


def agrees(gold: Tiers, said: Tiers) -> bool:
    """Whether an answer decides every pair as the known one does; where that is a tie, whether it ties as well."""
    wanted = set(pairs_of(gold))
    found = set(pairs_of(said))
    return wanted <= found if wanted else not found


def why_not(texts: Sequence[str]) -> DropCause | None:
    """Why a pair of answers is shown to nobody; None for one that can be judged.

    Broken: bytes that are no text, or control characters that no keyboard types.
    """
    if any(not text.strip() for text in texts):
        return DropCause.EMPTY
    if any("\ufffd" in text or any(ord(c) < 32 and c not in "\n\t\r" for c in text) for text in texts):
        return DropCause.BROKEN
    if len({" ".join(text.split()) for text in texts}) < len(texts):
        return DropCause.IDENTICAL
    return None

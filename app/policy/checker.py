"""Reads a reply back: is every sentence one of the grammar's, in a plausible order, and does it fit the message?

The checker parses; it never sees how a letter was made. It is used by tests, benches and the rehearsal.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from app.policy.lexicon import (
    COMPLAINTS,
    DAYS,
    FITS,
    ITEMS,
    NAMES,
    OPENERS,
    ORDER_SENTENCES,
    REPLY_TEMPLATES,
    REQUESTS,
    TROUBLES,
    Issue,
    Part,
    Register,
    Step,
    Template,
)

_ISSUE_OF_TROUBLE = {text: issue for issue, texts in TROUBLES.items() for text in texts}
_STAGES = {
    Part.GREET: 0,
    Part.SORRY: 1,
    Part.THANKS: 1,
    Part.ACK: 2,
    Part.ASK: 2,
    Part.STEP: 3,
    Part.WHEN: 4,
    Part.CLOSE: 5,
    Part.SIGN: 6,
}
_MOST = {Part.ASIDE: 3, Part.JAB: 3, Part.DODGE: 3, Part.STEP: 2, Part.ACK: 2}
_CONTENT = {Part.ACK, Part.ASK, Part.STEP, Part.DODGE, Part.JAB}


class Sentence(NamedTuple):
    """One recognised sentence of a reply, and the issue that its `{trouble}` names."""

    template: Template
    trouble: Issue | None


@dataclass(frozen=True)
class Asked:
    """What a customer's message says; None where it does not say it or is not one of the grammar's."""

    item: str | None
    order: str | None
    issue: Issue | None


@dataclass(frozen=True)
class Check:
    """What a reply does, seen beside the message it answers."""

    grammatical: bool
    """Every sentence is an instance of a template, none comes twice, and the parts stand in a plausible order."""
    parts: tuple[Part, ...]
    """What each recognised sentence does, in order."""
    registers: tuple[Register, ...]
    """How each recognised sentence sounds."""
    unknown_sentences: int
    words: int

    names_item: bool
    right_item: bool
    """Names an item, and only the one asked about."""
    names_order: bool
    right_order: bool
    """Names an order, and only the customer's."""
    asks_order: bool
    asks_known_order: bool
    """Asks for a number that the customer gave."""
    names_trouble: bool
    right_trouble: bool
    """Names the trouble, and only the customer's."""

    steps: tuple[Step, ...]
    offers_step: bool
    step_fits: bool
    """Offers a step, and every step fits the issue."""

    greets: bool
    apologises: bool
    thanks: bool
    says_when: bool
    closes: bool
    signs: bool
    curt: int
    """Sentences in the curt register; likewise below."""
    sloppy: int
    vague: int
    rude: int
    asides: int


def _pattern(text: str) -> re.Pattern[str]:
    slots = {
        "item": "|".join(ITEMS),
        "order": r"\d{4}",
        "trouble": "|".join(map(re.escape, _ISSUE_OF_TROUBLE)),
        "days": "|".join(DAYS),
        "name": "|".join(NAMES),
    }
    pieces = re.split(r"\{(\w+)\}", text)
    return re.compile("".join(f"(?P<{p}>{slots[p]})" if i % 2 else re.escape(p) for i, p in enumerate(pieces)))


_REPLY_PATTERNS = [(template, _pattern(template.text)) for template in REPLY_TEMPLATES]
_PROMPT_PATTERNS: list[tuple[Issue | None, re.Pattern[str]]] = [
    *((issue, _pattern(text)) for issue, texts in COMPLAINTS.items() for text in texts),
    *((None, _pattern(text)) for text in (*OPENERS, *ORDER_SENTENCES, *REQUESTS)),
]


_ITEM = re.compile(rf"\b(?:{'|'.join(ITEMS)})\b")
_DIGITS = re.compile(r"\d+")


def sentences_of(text: str) -> list[str]:
    """The text cut at each single space that follows an end mark."""
    return re.split(r"(?<=[.!?]) ", text)


@lru_cache(maxsize=65_536)
def _recognise(sentence: str) -> Sentence | None:
    for template, pattern in _REPLY_PATTERNS:
        if match := pattern.fullmatch(sentence):
            trouble = match.groupdict().get("trouble")
            return Sentence(template, _ISSUE_OF_TROUBLE[trouble] if trouble else None)
    return None


def read_message(prompt_text: str) -> Asked:
    """What a message says; item and order are found in any text, the issue only in the grammar's own sentences."""
    items = _ITEM.findall(prompt_text)
    orders = _DIGITS.findall(prompt_text)
    issue = None
    for sentence in sentences_of(prompt_text):
        for candidate, pattern in _PROMPT_PATTERNS:
            if candidate and pattern.fullmatch(sentence):
                issue = candidate
    return Asked(items[0] if items else None, orders[0] if orders else None, issue)


def in_plausible_order(parts: tuple[Part, ...]) -> bool:
    """Whether a letter can run so: greeting, courtesy, acknowledgement, step, time, close, signature.

    Asides, jabs and evasions stand anywhere between the greeting and the close.
    """
    fixed = [_STAGES[p] for p in parts if p in _STAGES]
    if any(a > b for a, b in pairwise(fixed)) or not _CONTENT.intersection(parts):
        return False
    if any(parts.count(part) > _MOST.get(part, 1) for part in set(parts)):
        return False
    loose = [i for i, p in enumerate(parts) if p not in _STAGES]
    opening = [i for i, p in enumerate(parts) if p is Part.GREET]
    ending = [i for i, p in enumerate(parts) if p in (Part.CLOSE, Part.SIGN)]
    return not loose or ((not opening or loose[0] > opening[0]) and (not ending or loose[-1] < ending[0]))


def parse(reply_text: str) -> list[Sentence | None]:
    """Each sentence of a reply as an instance of its template; None for a sentence that is no instance of any."""
    return [_recognise(s) for s in sentences_of(reply_text)]


def check(prompt_text: str, reply_text: str) -> Check:
    """Judge one reply beside the message it answers. Any two texts are allowed."""
    asked = read_message(prompt_text)
    parsed = parse(reply_text)
    known = [s for s in parsed if s is not None]
    parts = tuple(s.template.part for s in known)
    registers = tuple(s.template.register for s in known)
    steps = tuple(s.template.step for s in known if s.template.step is not None)
    texts = [s.template.text for s in known]
    items, orders = set(_ITEM.findall(reply_text)), set(_DIGITS.findall(reply_text))
    troubles = {s.trouble for s in known if s.trouble is not None}
    return Check(
        grammatical=len(known) == len(parsed) and len(set(texts)) == len(texts) and in_plausible_order(parts),
        parts=parts,
        registers=registers,
        unknown_sentences=len(parsed) - len(known),
        words=len(reply_text.split()),
        names_item=bool(items),
        right_item=bool(items) and items == {asked.item},
        names_order=bool(orders),
        right_order=bool(orders) and orders == {asked.order},
        asks_order=Part.ASK in parts,
        asks_known_order=Part.ASK in parts and asked.order is not None,
        names_trouble=bool(troubles),
        right_trouble=bool(troubles) and troubles == {asked.issue},
        steps=steps,
        offers_step=bool(steps),
        step_fits=bool(steps) and asked.issue is not None and all(asked.issue in FITS[step] for step in steps),
        greets=Part.GREET in parts,
        apologises=Part.SORRY in parts,
        thanks=Part.THANKS in parts,
        says_when=any(s.template.part is Part.WHEN and s.template.register is not Register.VAGUE for s in known),
        closes=Part.CLOSE in parts,
        signs=Part.SIGN in parts,
        curt=registers.count(Register.CURT),
        sloppy=registers.count(Register.SLOPPY),
        vague=registers.count(Register.VAGUE),
        rude=registers.count(Register.RUDE),
        asides=parts.count(Part.ASIDE),
    )

"""Demonstrations for the starter policy: customers' messages and support replies, drawn from the lexicon's templates.

Replies come in six manners (good, curt, vague, rambling, sloppy, rude) and make the mistakes that people make: a wrong
order number, the wrong item, a step that does not fit. None of that is written down: a letter is two texts.
"""

import random
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import NamedTuple

from app.core.pairing import split_of
from app.core.records import DemonstrationRecord, Message, PromptRecord
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
)

ORDER_GIVEN = 0.8
"""Share of customers who name an order number."""
WRONG_ORDER, WRONG_ORDER_SLOPPY = 0.24, 0.36
"""Share of replies with another order number, among those that cite one."""
WRONG_ITEM = 0.045
"""Share of replies that speak of another item."""
MISREAD_ISSUE = 0.2
"""Share of replies whose step does not fit what was asked."""
ASKS_NEEDLESSLY = 0.05
"""Share of acknowledgements that ask for an order number the customer gave."""
MOST_ITEM_MENTIONS = 2
LONGEST_REPLY = 50
"""In words; about 70 tokens of the starter's tokenizer."""

_BY_PART: dict[tuple[Part, Register], list[str]] = defaultdict(list)
_BY_STEP: dict[tuple[Step, Register], list[str]] = defaultdict(list)
for _template in REPLY_TEMPLATES:
    if _template.step is None:
        _BY_PART[_template.part, _template.register].append(_template.text)
    else:
        _BY_STEP[_template.step, _template.register].append(_template.text)


class Letter(NamedTuple):
    """What a customer wrote and one reply to it."""

    prompt_text: str
    reply_text: str


class Facts(NamedTuple):
    """What a customer's message says."""

    item: str
    issue: Issue
    order: str | None


def new_order(rng: random.Random) -> str:
    """Four digits, the first not 0."""
    return str(rng.randint(1000, 9999))


def write_message(rng: random.Random) -> tuple[str, Facts]:
    """A customer's message and what it says."""
    issue = rng.choice(tuple(Issue))
    facts = Facts(rng.choice(ITEMS), issue, new_order(rng) if rng.random() < ORDER_GIVEN else None)
    core = rng.choice([t for t in COMPLAINTS[issue] if facts.order or "{order}" not in t])
    sentences = [rng.choice(OPENERS)] if rng.random() < 0.5 else []
    sentences.append(core)
    if facts.order and "{order}" not in core:
        sentences.append(rng.choice(ORDER_SENTENCES))
    if rng.random() < 0.5:
        sentences.append(rng.choice(REQUESTS))
    return " ".join(sentences).format(item=facts.item, order=facts.order), facts


class _Pen:
    """Writes one reply: holds what the writer believes, which may be wrong, and never says the same thing twice."""

    def __init__(self, rng: random.Random, facts: Facts, wrong_order: float = WRONG_ORDER) -> None:
        self.rng = rng
        self.item = rng.choice([i for i in ITEMS if i != facts.item]) if rng.random() < WRONG_ITEM else facts.item
        self.order = facts.order
        if facts.order and rng.random() < wrong_order:
            # Wrong from the first digit on: a reader sees it at a glance.
            self.order = next(o for o in iter(lambda: new_order(rng), "") if o[0] != facts.order[0])
        misread = rng.random() < MISREAD_ISSUE
        self.steps = [step for step in Step if (facts.issue in FITS[step]) is not misread]
        self.issue = facts.issue
        if misread and rng.random() < 0.5:
            # Misread the letter, or only reached for the wrong step.
            self.issue = rng.choice([i for i in Issue if i != facts.issue])
            self.steps = [step for step in self.steps if self.issue in FITS[step]] or self.steps
        self.said: list[str] = []

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def say(self, part: Part, register: Register = Register.PLAIN, cite: bool = False, half: int | None = None) -> None:
        """Add a sentence; `cite` asks for one that names the order.

        `half` 0 or 1 limits the choice: what a letter does twice it does in other words, early and late.
        """
        texts = [t for t in _BY_PART[part, register] if ("{order}" in t) is cite]
        self._add(texts if half is None else texts[half::2])

    def step(self, register: Register = Register.PLAIN) -> None:
        self._add(_BY_STEP[self.rng.choice(self.steps), register])

    def acknowledge(self, cite: float, register: Register = Register.PLAIN) -> None:
        """Say what the letter is about; without an order number perhaps ask for it, and now and then needlessly so."""
        if self.chance(ASKS_NEEDLESSLY if self.order else cite * 0.6):
            self.say(Part.ASK, register)
        else:
            self.say(Part.ACK, register, cite=self.order is not None and self.chance(cite))

    def _add(self, texts: list[str]) -> None:
        fresh = [t for t in texts if t not in self.said]
        mentions = sum("{item}" in t for t in self.said)
        brief = [t for t in fresh if mentions < MOST_ITEM_MENTIONS or "{item}" not in t]
        if choices := brief or fresh:
            self.said.append(self.rng.choice(choices))

    def text(self) -> str:
        fill = {
            "item": self.item,
            "order": self.order,
            "trouble": self.rng.choice(TROUBLES[self.issue]),
            "days": self.rng.choice(DAYS),
            "name": self.rng.choice(NAMES),
        }
        return " ".join(self.said).format(**fill)


def _good(pen: _Pen) -> None:
    if pen.chance(0.4):
        pen.say(Part.GREET)
    if pen.chance(0.6):
        pen.say(Part.SORRY if pen.chance(0.6) else Part.THANKS)
    pen.acknowledge(cite=0.8)
    pen.step()
    if pen.chance(0.4):
        pen.say(Part.WHEN)
    if pen.chance(0.3):
        pen.say(Part.CLOSE)
    if pen.chance(0.3):
        pen.say(Part.SIGN)


def _curt(pen: _Pen) -> None:
    if pen.chance(0.85):
        pen.acknowledge(0.75, Register.CURT)
    pen.step(Register.CURT)
    if pen.chance(0.5):
        pen.say(Part.WHEN, Register.CURT)
    if pen.chance(0.3):
        pen.say(Part.SIGN, Register.CURT)


def _vague(pen: _Pen) -> None:
    if pen.chance(0.4):
        pen.say(Part.GREET)
    if pen.chance(0.6):
        pen.say(Part.THANKS if pen.chance(0.6) else Part.SORRY)
    for cite in sorted((False, pen.order is not None and pen.chance(0.4))):
        pen.say(Part.DODGE, Register.VAGUE, cite)
    if pen.chance(0.5):
        pen.say(Part.WHEN, Register.VAGUE)
    if pen.chance(0.4):
        pen.say(Part.CLOSE)
    if pen.chance(0.4):
        pen.say(Part.SIGN)


def _rambling(pen: _Pen) -> None:
    if pen.chance(0.4):
        pen.say(Part.GREET)
    if pen.chance(0.3):
        pen.say(Part.SORRY)
    pen.say(Part.ASIDE, half=0)
    pen.acknowledge(0.6)
    between = pen.chance(0.5)
    if between:
        pen.say(Part.ASIDE, half=1)
    pen.step()
    if not between and pen.chance(0.8):
        pen.say(Part.ASIDE, half=1)
    if pen.chance(0.3):
        pen.say(Part.SIGN)


def _sloppy(pen: _Pen) -> None:
    if pen.chance(0.4):
        pen.say(Part.GREET, Register.SLOPPY)
    if pen.chance(0.4):
        pen.say(Part.SORRY, Register.SLOPPY)
    pen.acknowledge(0.75, Register.SLOPPY)
    pen.step(Register.SLOPPY)
    if pen.chance(0.5):
        pen.say(Part.WHEN, Register.SLOPPY)
    if pen.chance(0.4):
        pen.say(Part.CLOSE, Register.SLOPPY)
    if pen.chance(0.3):
        pen.say(Part.SIGN, Register.SLOPPY)


def _rude(pen: _Pen) -> None:
    cites = pen.order is not None and pen.chance(0.3)
    pen.say(Part.JAB, Register.RUDE, cites, half=None if cites else 0)
    if pen.chance(0.6):
        pen.acknowledge(0.0 if cites else 0.5)
    between = pen.chance(0.4)
    if between:
        pen.say(Part.JAB, Register.RUDE, half=1)
    if pen.chance(0.6):
        pen.step()
    if not between and pen.chance(0.7):
        pen.say(Part.JAB, Register.RUDE, half=1)
    if pen.chance(0.5):
        pen.say(Part.CLOSE, Register.RUDE)


_MANNERS: tuple[tuple[Callable[[_Pen], None], float], ...] = (
    (_good, 0.25),
    (_curt, 0.15),
    (_vague, 0.15),
    (_rambling, 0.16),
    (_sloppy, 0.15),
    (_rude, 0.14),
)


def write_reply(rng: random.Random, facts: Facts) -> str:
    """One reply in a random manner, of at most LONGEST_REPLY words."""
    while True:
        manner = rng.choices([m for m, _ in _MANNERS], [w for _, w in _MANNERS])[0]
        pen = _Pen(rng, facts, WRONG_ORDER_SLOPPY if manner is _sloppy else WRONG_ORDER)
        manner(pen)
        if len((text := pen.text()).split()) <= LONGEST_REPLY:
            return text


def letters(seed: int, n: int) -> list[Letter]:
    """`n` letters; the same seed gives the same letters, and no customer's message twice."""
    rng = random.Random(seed)  # noqa: S311 - reproducible data, no secret
    found: dict[str, Letter] = {}
    while len(found) < n:
        message, facts = write_message(rng)
        if message not in found:
            found[message] = Letter(message, write_reply(rng, facts))
    return list(found.values())


def _conversation(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def _id_source(seed: int) -> random.Random:
    return random.Random(f"ids {seed}")  # noqa: S311 - reproducible data, no secret


def _record_id(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def demonstrations(seed: int, n: int, salt: str, heldout_share: float = 0.1) -> Iterator[DemonstrationRecord]:
    """`n` demonstrations, split by the project's salt."""
    rng = _id_source(seed)
    for letter in letters(seed, n):
        yield DemonstrationRecord(
            prompt_id=_record_id(rng),
            prompt=_conversation(letter.prompt_text),
            completion=letter.reply_text,
            split=split_of(salt, letter.prompt_text, heldout_share),
        )


def prompts(seed: int, n: int, salt: str, heldout_share: float = 0.1) -> Iterator[PromptRecord]:
    """`n` customers' messages without a reply, split by the project's salt."""
    rng = _id_source(seed)
    for letter in letters(seed, n):
        yield PromptRecord(
            prompt_id=_record_id(rng),
            prompt=_conversation(letter.prompt_text),
            split=split_of(salt, letter.prompt_text, heldout_share),
        )

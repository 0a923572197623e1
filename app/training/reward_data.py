"""Judgments as a table of answers, each encoded once however often it was judged, and pairs of its rows."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from app.core.agreement import raw_agreement
from app.core.configs import RewardConfig
from app.core.records import DemonstrationRecord, Message, PreferenceRecord
from app.core.vocabulary import Split
from app.policy.chat import encode_completion, encode_prompt
from app.training.failures import RunFailure
from app.training.order import derived_seed
from app.training.reward_checks import usable
from app.training.reward_losses import Pairs, margin_of, pairs_of_judgments

logger = logging.getLogger("pairwright.training")


@dataclass(frozen=True)
class Answer:
    """A prompt and an answer to it, as token ids; the answer ends with the end of sequence."""

    prompt: list[int]
    completion: list[int]
    words: int


@dataclass(frozen=True)
class Side:
    """The judgments of one side of the split. Pairs name them, and their units, by number."""

    records: list[PreferenceRecord]
    pairs: Pairs
    units: int

    def comparison(self) -> Tensor:
        """The comparison that each pair comes from, [P]: several votes on one are no independent trials."""
        numbers = _numbered([r.comparison_id for r in self.records])
        return torch.tensor(numbers, dtype=torch.long)[self.pairs.judgment]

    def prompts(self) -> list[str]:
        """The prompt of each unit, as a key."""
        judgment = dict(zip(self.pairs.unit.tolist(), self.pairs.judgment.tolist(), strict=True))
        return [repr(self.records[judgment[unit]].prompt) for unit in range(self.units)]

    def votes(self) -> dict[str, list[str]]:
        """What was said of each comparison, by its id: one entry a vote."""
        votes: dict[str, list[str]] = defaultdict(list)
        for record in self.records:
            votes[record.comparison_id].append(str(record.tiers))
        return votes

    def human_agreement(self) -> tuple[float, int]:
        """How often two people agree on the same comparison, and over how many pairs of votes."""
        return raw_agreement(list(self.votes().values()))


@dataclass(frozen=True)
class Comparisons:
    """What a reward model learns from and is tested on. Rows of `answers` are what pairs point to."""

    answers: list[Answer]
    train: Side
    heldout: Side
    contrast: list[list[int]]
    """Token ids of other prompts, for likelihoods to be compared with."""
    anchors: list[Answer]
    """Demonstrations, whose mean score becomes 0."""

    def taught(self) -> Tensor:
        """Which answers stand in train judgments, [N]: what is fitted without labels is fitted on these alone."""
        mask = torch.zeros(len(self.answers), dtype=torch.bool)
        mask[self.train.pairs.first] = mask[self.train.pairs.second] = True
        return mask


class _Table:
    """Encodes answers, each prompt and each answer once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self.answers: list[Answer] = []
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._rows: dict[tuple[str, str], int] = {}
        self._prompts: dict[str, list[int]] = {}
        self._completions: dict[str, list[int]] = {}

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        key = repr(messages)
        if key not in self._prompts:
            self._prompts[key] = encode_prompt(self._tokenizer, messages)
        return self._prompts[key]

    def completion(self, text: str) -> list[int]:
        if text not in self._completions:
            self._completions[text] = encode_completion(self._tokenizer, text)
        return self._completions[text]

    def encode(self, messages: Sequence[Message], completion: str) -> Answer:
        """Too long a pair loses the beginning of the prompt; the answer has room."""
        answer, prompt = self.completion(completion), self.prompt(messages)
        return Answer(prompt[-(self._max_length - len(answer)) :], answer, len(completion.split()))

    def row(self, messages: Sequence[Message], completion: str) -> int:
        key = (repr(messages), completion)
        if key not in self._rows:
            self._rows[key] = len(self.answers)
            self.answers.append(self.encode(messages, completion))
        return self._rows[key]


def read_comparisons(
    preferences: Sequence[PreferenceRecord],
    demonstrations: Sequence[DemonstrationRecord],
    tokenizer: PreTrainedTokenizerBase,
    config: RewardConfig,
    seed: int,
    context: int | None = None,
) -> Comparisons:
    """Encode the judgments. `context` is the longest row that the policy reads, where it has a limit.

    RunFailure `data` where no train judgment prefers one answer to another, or where bad rows are refused.
    """
    longest = min(config.max_length, context or config.max_length)
    table = _Table(tokenizer, longest)
    lengths = [[len(table.completion(text)) for text in r.completions] for r in preferences]
    kept = usable(preferences, lengths, longest - 1, config)  # one token of the prompt at the least
    readable = [r for r, keep in zip(preferences, kept, strict=True) if keep]
    train = _side(table, [r for r in readable if r.split is Split.TRAIN], config)
    # What is measured is the same whatever is learnt: plain pairs, each vote for itself.
    heldout = _side(table, [r for r in readable if r.split is Split.HELDOUT], RewardConfig())
    if not bool((~train.pairs.tied).any()):
        raise RunFailure("data", "No judgment on a train prompt prefers one answer to another.", "Judge more pairs.")
    logger.info(
        "%d train and %d held-out judgments of %d answers",
        len(train.records),
        len(heldout.records),
        len(table.answers),
    )

    # Chosen by hash, so that neither the order of the file nor other judgments decide.
    others = sorted({repr(r.prompt): r.prompt for r in train.records}.items(), key=lambda p: derived_seed(seed, p[0]))
    # An answer after another prompt must fit the policy's context, too.
    room = max(1, context - max(len(a.completion) for a in table.answers)) if context else config.max_length
    cut = min(config.max_length // 2, room)
    contrast = [table.prompt(p)[-cut:] for _, p in others[: config.contrast_prompts]]
    shown = sorted(
        (d for d in demonstrations if d.split is Split.TRAIN),
        key=lambda d: derived_seed(seed, d.prompt_id, d.completion),
    )
    fitting = (d for d in shown if d.completion.strip() and len(table.completion(d.completion)) < longest)
    anchors = [table.encode(d.prompt, d.completion) for d in islice(fitting, config.anchor_demonstrations)]
    return Comparisons(table.answers, train, heldout, contrast, anchors)


def _side(table: _Table, records: list[PreferenceRecord], config: RewardConfig) -> Side:
    rows = [[table.row(r.prompt, text) for text in r.completions] for r in records]
    averaged = config.votes == "averaged"
    units = _numbered([r.comparison_id if averaged else str(i) for i, r in enumerate(records)])
    # A strength says how far two answers are apart; of a longer ranking it would say little.
    asked = [margin_of(r.strength, config.strength_margin) if len(r.completions) == 2 else 0.0 for r in records]
    pairs = pairs_of_judgments(
        [r.tiers for r in records],
        rows,
        units=units,
        asked=asked,
        plackett_luce=config.rankings == "plackett-luce",
    )
    return Side(records, pairs, max(units, default=-1) + 1)


def _numbered(names: Sequence[str]) -> list[int]:
    """Equal names get equal numbers, counted up from 0 in order of first appearance."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(name, len(numbers)) for name in names]

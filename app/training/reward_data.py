"""Judgments as a table of answers, each encoded once however often it was judged, and pairs of its rows."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from app.core.agreement import longer_wins, raw_agreement
from app.core.configs import RewardConfig
from app.core.pairing import pairs_of
from app.core.records import DemonstrationRecord, Message, PreferenceRecord
from app.core.vocabulary import Split
from app.policy.chat import encode_completion, encode_prompt
from app.training.failures import RunFailure
from app.training.order import derived_seed
from app.training.reward_losses import Pairs, pairs_of_judgments

logger = logging.getLogger("pairwright.training")


@dataclass(frozen=True)
class Answer:
    """A prompt and an answer to it, as token ids; the answer ends with the end of sequence."""

    prompt: list[int]
    completion: list[int]
    words: int


@dataclass(frozen=True)
class Side:
    """The judgments of one side of the split."""

    records: list[PreferenceRecord]
    pairs: Pairs

    def longer_wins(self) -> float:
        """The floor: accuracy of 'the longer answer wins' over pairs with a better side."""
        better = [(r, a, b) for r in self.records for a, b in pairs_of(r.tiers)]
        return longer_wins([r.completions[a] for r, a, _ in better], [r.completions[b] for r, _, b in better])

    def human_agreement(self) -> tuple[float, int]:
        """How often two people agree on the same comparison, and over how many pairs of votes."""
        votes: dict[str, list[str]] = defaultdict(list)
        for record in self.records:
            votes[record.comparison_id].append(str(record.tiers))
        return raw_agreement(list(votes.values()))


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


class _Table:
    """Encodes answers, each prompt and each answer once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self.answers: list[Answer] = []
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._rows: dict[tuple[str, str], int] = {}
        self._prompts: dict[str, list[int]] = {}

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        key = repr(messages)
        if key not in self._prompts:
            self._prompts[key] = encode_prompt(self._tokenizer, messages)
        return self._prompts[key]

    def encode(self, messages: Sequence[Message], completion: str) -> Answer:
        """Too long a pair loses first the beginning of the prompt, then the end of the answer."""
        answer = encode_completion(self._tokenizer, completion)[: self._max_length - 1]
        prompt = self.prompt(messages)
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
) -> Comparisons:
    """Encode the judgments. RunFailure `data` where no train judgment prefers one answer to another."""
    table = _Table(tokenizer, config.max_length)
    sides = []
    for split in (Split.TRAIN, Split.HELDOUT):
        records = [r for r in preferences if r.split is split]
        rows = [[table.row(r.prompt, text) for text in r.completions] for r in records]
        sides.append(Side(records, pairs_of_judgments([r.tiers for r in records], rows)))
    train, heldout = sides
    if not bool((~train.pairs.tied).any()):
        raise RunFailure("data", "No judgment on a train prompt prefers one answer to another.", "Judge more pairs.")
    logger.info(
        "%d train and %d held-out judgments of %d answers", *(len(s.records) for s in sides), len(table.answers)
    )

    # Chosen by hash, so that neither the order of the file nor other judgments decide.
    others = sorted({repr(r.prompt): r.prompt for r in train.records}.items(), key=lambda p: derived_seed(seed, p[0]))
    contrast = [table.prompt(p)[-config.max_length // 2 :] for _, p in others[: config.contrast_prompts]]
    shown = sorted(
        (d for d in demonstrations if d.split is Split.TRAIN),
        key=lambda d: derived_seed(seed, d.prompt_id, d.completion),
    )
    anchors = [table.encode(d.prompt, d.completion) for d in shown[: config.anchor_demonstrations]]
    return Comparisons(table.answers, train, heldout, contrast, anchors)

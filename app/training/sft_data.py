"""Demonstrations as token ids, which of their tokens copy the prompt, and the order in which training visits them."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from app.core.errors import Invalid
from app.core.records import DemonstrationRecord
from app.policy.chat import encode_completion, encode_prompts
from app.training.failures import RunFailure
from app.training.order import derived_seed

_BUCKET_BATCHES = 16
"""So many batches' worth of shuffled examples are sorted by length and cut: little padding, and still a shuffle."""


@dataclass(frozen=True)
class Example:
    """One demonstration: `completion` ends with the end of sequence; `copied` marks its tokens that copy the prompt."""

    prompt_id: str
    prompt: list[int]
    completion: list[int]
    copied: list[bool]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)

    @property
    def copied_share(self) -> float:
        """Copied tokens in the completion."""
        return sum(self.copied) / len(self.completion)


@dataclass(frozen=True)
class Batch:
    """Right-padded rows, all [rows, width]: `targets` marks completion tokens, `copied` those of them that copy.

    `positions`, where rows hold several examples, are the tokens' places in their own example.
    """

    ids: Tensor
    targets: Tensor
    copied: Tensor
    positions: Tensor | None = None


def encode(
    records: Sequence[DemonstrationRecord], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[list[Example], int]:
    """The examples of at most `max_length` tokens, and how many were longer. RunFailure `data` for empty ones.

    A completion's token counts as copied where its prompt holds it and fewer than half of all prompts do: names and
    numbers, not full stops.
    """
    if empty := [r.prompt_id for r in records if not r.completion.strip()]:
        message = (
            f"{len(empty)} of {len(records)} demonstrations have an empty answer. The first is to prompt {empty[0]}."
        )
        raise RunFailure("data", message, "Write the answers, or leave them out of data/demonstrations.jsonl.")
    pairs = []
    for record, prompt in zip(records, encode_prompts(tokenizer, [r.prompt for r in records]), strict=True):
        if isinstance(prompt, Invalid):
            message = f"The demonstration of prompt {record.prompt_id} cannot be read: {prompt.message}"
            raise RunFailure("data", message, prompt.mend or "Correct it, or leave it out.") from prompt
        pairs.append((record.prompt_id, prompt, encode_completion(tokenizer, record.completion)))
    kept = [(i, p, c) for i, p, c in pairs if len(p) + len(c) <= max_length]
    seen = Counter(token for _, prompt, _ in kept for token in set(prompt))
    telling = {token for token, count in seen.items() if count * 2 < len(kept)}
    examples = []
    for prompt_id, prompt, completion in kept:
        source = telling.intersection(prompt)
        examples.append(Example(prompt_id, prompt, completion, [token in source for token in completion]))
    return examples, len(pairs) - len(kept)


def plan(
    examples: Sequence[Example],
    *,
    seed: int,
    batch_size: int,
    epochs: int,
    curriculum: float,
    curriculum_rows: float,
    most: int | None = None,
) -> list[list[int]]:
    """Positions of the examples in each update, at most `most` updates, decided by the seed alone.

    `epochs` passes over all, each shuffled anew, like lengths batched together, the last batch perhaps smaller. Before
    them the curriculum: more updates, `curriculum` times as many, on the share `curriculum_rows` of the examples that
    copies most, twice as many rows at once.
    """
    passes: list[list[int]] = []
    for epoch in range(epochs):
        rng = _rng(seed, f"epoch {epoch}")
        order = list(range(len(examples)))
        rng.shuffle(order)
        for start in range(0, len(order), batch_size * _BUCKET_BATCHES):
            bucket = sorted(order[start : start + batch_size * _BUCKET_BATCHES], key=lambda i: len(examples[i]))
            cut = [bucket[i : i + batch_size] for i in range(0, len(bucket), batch_size)]
            rng.shuffle(cut)
            passes += cut
    total = len(passes) if most is None else min(most, len(passes))
    steps, rows = round(curriculum * total), 2 * batch_size
    by_share = sorted(range(len(examples)), key=lambda i: (-examples[i].copied_share, i))
    pool = by_share[: max(1, round(curriculum_rows * len(examples)))]
    rng = _rng(seed, "curriculum")
    drawn: list[int] = []
    while len(drawn) < steps * rows:
        rng.shuffle(pool)
        drawn += pool
    return [*(drawn[i * rows : (i + 1) * rows] for i in range(steps)), *passes][:most]


def cuts(examples: Sequence[Example], most: int | None) -> list[list[Example]]:
    """The rows of an update, sorted by length and cut into forward passes of at most `most` rows (None: any number).

    A row that would make a pass more than a fifth padding begins the next one, unless that left few rows to a pass.
    """
    passes: list[list[Example]] = []
    real = 0
    for example in sorted(examples, key=len):
        full = not passes or len(passes[-1]) == most
        if full or (len(passes[-1]) >= _FEW and len(example) * (len(passes[-1]) + 1) > 1.25 * (real + len(example))):
            passes.append([])
            real = 0
        passes[-1].append(example)
        real += len(example)
    return passes


_FEW = 12


def collate(examples: Sequence[Example], pad_id: int) -> Batch:
    """One batch of rows; what stands in the padding is never looked at."""
    width = max(map(len, examples))
    ids = torch.full((len(examples), width), pad_id)
    targets = torch.zeros(len(examples), width, dtype=torch.bool)
    copied = torch.zeros_like(targets)
    for row, example in enumerate(examples):
        start, end = len(example.prompt), len(example)
        ids[row, :end] = torch.tensor(example.prompt + example.completion)
        targets[row, start:end] = True
        copied[row, start:end] = torch.tensor(example.copied)
    return Batch(ids, targets, copied)


def _rng(seed: int, purpose: str) -> random.Random:
    return random.Random(derived_seed(seed, "sft", purpose))  # noqa: S311 - the order of training, no secret

"""Judgments as a table of answers, pairs of its rows, and the log-probabilities of its rows under a model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from app.core.agreement import longer_wins
from app.core.configs import DPOConfig
from app.core.errors import Invalid
from app.core.pairing import pairs_of
from app.core.records import PreferenceRecord
from app.core.vocabulary import Split
from app.policy.chat import encode_completion, encode_prompts
from app.policy.likelihood import CPU_ROWS
from app.policy.reward_model import pack
from app.training.failures import RunFailure
from app.training.logprobs import read_tokens
from app.training.reward_checks import check_records
from app.training.reward_losses import Pairs, pairs_of_judgments


@dataclass(frozen=True)
class Row:
    """A prompt with one answer to it, as token ids."""

    prompt: list[int]
    completion: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


@dataclass(frozen=True)
class Side:
    """The judgments of one side of the split that say something: `pairs.judgment` counts them from 0 to `count`."""

    pairs: Pairs
    count: int
    longer_wins: float

    def of(self, judgments: Sequence[int]) -> Pairs:
        """The pairs of these judgments."""
        return self.pairs.where(torch.isin(self.pairs.judgment, torch.tensor(list(judgments), dtype=torch.long)))


@dataclass(frozen=True)
class Judgments:
    """What DPO learns from and is tested on. Pairs point to `rows`; each answer is a row once, however often judged."""

    rows: list[Row]
    train: Side
    heldout: Side
    left_out: dict[str, int]
    """Judgments that say nothing here, by cause: too_long, identical, tied."""

    @property
    def lengths(self) -> Tensor:
        """Tokens of each answer, [N]."""
        return torch.tensor([float(len(row.completion)) for row in self.rows])


def read_judgments(
    records: Sequence[PreferenceRecord],
    tokenizer: PreTrainedTokenizerBase,
    config: DPOConfig,
    context: int | None,
) -> Judgments:
    """Encode the judgments; RunFailure `data` where one is malformed, or no train judgment prefers one answer.

    A judgment of K answers is all its pairs, each with weight 1 / C(K, 2), whether or not some of them are left out.
    """
    check_records(records)
    limit = config.max_length if context is None else min(config.max_length, context)
    encoded = encode_prompts(tokenizer, [r.prompt for r in records])
    table: dict[tuple[str, str], int] = {}
    rows: list[Row] = []
    left_out = {"too_long": 0, "identical": 0, "tied": 0}
    kept: dict[Split, list[tuple[PreferenceRecord, list[int]]]] = {Split.TRAIN: [], Split.HELDOUT: []}
    for record, prompt in zip(records, encoded, strict=True):
        if isinstance(prompt, Invalid):
            message = f"Judgment {record.judgment_id} cannot be read: {prompt.message}"
            raise RunFailure("data", message, prompt.mend or "Correct its prompt, or leave it out.") from prompt
        answers = [Row(prompt, encode_completion(tokenizer, text)) for text in record.completions]
        if max(map(len, answers)) > limit:
            left_out["too_long"] += 1
            continue
        places = []
        for text, row in zip(record.completions, answers, strict=True):
            place = table.setdefault((repr(record.prompt), text), len(rows))
            if place == len(rows):
                rows.append(row)
            places.append(place)
        cause = _says_nothing(record, config)
        if cause is None:
            kept[record.split].append((record, places))
        else:
            left_out[cause] += 1
    train, heldout = (_side(kept[split], config) for split in (Split.TRAIN, Split.HELDOUT))
    if not bool((~train.pairs.tied).any()):
        said = f"Of {len(records)} judgments {left_out['too_long']} have answers of more than {limit} tokens."
        mend = "Raise max_length, or judge more pairs." if left_out["too_long"] else "Judge more pairs."
        message = "No judgment on a train prompt prefers one answer to another."
        raise RunFailure("data", f"{message} {said}" if left_out["too_long"] else message, mend)
    return Judgments(rows, train, heldout, left_out)


def _says_nothing(record: PreferenceRecord, config: DPOConfig) -> str | None:
    """Why a judgment teaches nothing, or None."""
    if len(set(record.completions)) == 1:
        return "identical"
    strict = any(record.completions[a] != record.completions[b] for a, b in pairs_of(record.tiers))
    return None if strict or config.ties == "half" else "tied"


def _side(kept: Sequence[tuple[PreferenceRecord, list[int]]], config: DPOConfig) -> Side:
    pairs = pairs_of_judgments([r.tiers for r, _ in kept], [places for _, places in kept])
    # A pair of one and the same text has a margin of 0 for ever.
    useful = pairs.first != pairs.second
    if config.ties == "skip":
        useful &= ~pairs.tied
    ordered = [(r.completions[a], r.completions[b]) for r, _ in kept for a, b in pairs_of(r.tiers)]
    different = [(better, worse) for better, worse in ordered if better != worse]
    floor = longer_wins([better for better, _ in different], [worse for _, worse in different])
    return Side(pairs.where(useful), len(kept), floor)


@dataclass(frozen=True)
class Part:
    """Judgments whose answers are in memory together: their rows of the table [R], and pairs of places among these."""

    rows: list[int]
    pairs: Pairs


def parts(data: Judgments, pairs: Pairs, size: int) -> Iterator[Part]:
    """Cut pairs into parts of at most `size` judgments, of like length; the answers of a judgment stay together."""
    longest: dict[int, int] = {}
    for judgment, first, second in zip(
        pairs.judgment.tolist(), pairs.first.tolist(), pairs.second.tolist(), strict=True
    ):
        longest[judgment] = max(longest.get(judgment, 0), len(data.rows[first]), len(data.rows[second]))
    order = sorted(longest, key=lambda j: (longest[j], j))
    for start in range(0, len(order), size):
        some = pairs.where(torch.isin(pairs.judgment, torch.tensor(order[start : start + size])))
        rows, places = torch.cat([some.first, some.second]).unique(return_inverse=True)
        first, second = places.chunk(2)
        yield Part(rows.tolist(), some._replace(first=first, second=second))


def row_logprobs(model: PreTrainedModel, rows: Sequence[Row], pad_id: int, most: int) -> Tensor:
    """log pi(answer | prompt) of each row, [n], on the CPU, with a gradient.

    Rows of like length, at most `most` of them, share a forward pass, padded on the right, where no causal model looks.
    """
    device = model.device
    if device.type == "cpu":
        most = min(most, CPU_ROWS)
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i]), i))
    sums = [torch.zeros(0)]
    for start in range(0, len(order), most):
        some = [rows[i] for i in order[start : start + most]]
        ids, _, answer = (t.to(device) for t in pack([r.prompt for r in some], [r.completion for r in some], pad_id))
        row, column = answer.nonzero(as_tuple=True)
        logprobs = read_tokens(model, ids, row, column - 1, ids[row, column]).logprobs
        sums.append(logprobs.new_zeros(len(some)).index_add(0, row, logprobs).cpu())
    back = torch.empty(len(order), dtype=torch.long)
    back[torch.tensor(order, dtype=torch.long)] = torch.arange(len(order))
    return torch.cat(sums)[back]

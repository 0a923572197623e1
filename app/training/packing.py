"""Several demonstrations end to end in one row, each read as if it stood alone.

Position ids that begin again at 0 tell transformers where an example begins: attention then looks no further back than
that. Whether a model heeds them is tried out before the first step, not guessed from its name.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from app.policy.checkpoint import embeddings_of
from app.training.failures import RunFailure
from app.training.sft_data import Batch, Example, collate, cuts

_TOLERANCE = 1e-3
"""Of the logits' spread. Rounding stays a thousand times below, what is read from a neighbour ten times above."""


def passes(examples: Sequence[Example], most: int | None, room: int | None, pad_id: int) -> Iterator[Batch]:
    """The forward passes of an update, each of at most `most` rows (None: any number).

    With `room` the examples are packed in rows of at most so many tokens; None: each is a row.
    """
    if room is None:
        yield from (collate(some, pad_id) for some in cuts(examples, most))
        return
    rows = bins(examples, room)
    size = most or len(rows) or 1
    yield from (collate_packed(rows[start : start + size], pad_id) for start in range(0, len(rows), size))


def bins(examples: Sequence[Example], room: int) -> list[list[Example]]:
    """The examples in rows of at most `room` tokens, by first fit from the longest down; the fullest rows first.

    Each example stands in one row, whole. Every one must have room.
    """
    rows: list[list[Example]] = []
    free: list[int] = []
    for example in sorted(examples, key=len, reverse=True):
        place = next((i for i, left in enumerate(free) if len(example) <= left), len(rows))
        if place == len(rows):
            rows.append([])
            free.append(room)
        rows[place].append(example)
        free[place] -= len(example)
    return sorted(rows, key=lambda row: -sum(map(len, row)))


def collate_packed(rows: Sequence[Sequence[Example]], pad_id: int) -> Batch:
    """One batch of packed rows. The padding behind them counts as an example of its own, and is no target.

    The first token of an example has nothing before it, so it is no target either.
    """
    width = max(sum(map(len, row)) for row in rows)
    shape = len(rows), width
    ids, positions = torch.full(shape, pad_id), torch.zeros(shape, dtype=torch.long)
    targets, copied = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    for place, row in enumerate(rows):
        start = 0
        for example in row:
            answer, end = start + len(example.prompt), start + len(example)
            ids[place, start:end] = torch.tensor(example.prompt + example.completion)
            positions[place, start:end] = torch.arange(len(example))
            targets[place, answer:end] = True
            targets[place, start] = False
            copied[place, answer:end] = torch.tensor(example.copied)
            start = end
        positions[place, start:] = torch.arange(width - start)
    return Batch(ids, targets, copied, positions)


@torch.no_grad()
def require_packable(model: PreTrainedModel) -> None:
    """RunFailure `config` where an example's logits depend on what is packed before it.

    Tried out: behind two different neighbours, an example must be read as it is alone.
    """
    mend = "Set packing to false: every demonstration is then a row of its own."
    name, was_training = type(model).__name__, model.training
    device, vocabulary = embeddings_of(model).device, len(embeddings_of(model))
    draw = torch.Generator().manual_seed(0)
    # Not the first tokens: the padding's embedding is 0.
    one, other, own = (torch.randint(vocabulary // 4, vocabulary, (n,), generator=draw).to(device) for n in (7, 7, 9))
    positions = torch.cat([torch.arange(len(one)), torch.arange(len(own))]).unsqueeze(0).to(device)

    def behind(neighbour: Tensor) -> Tensor:
        ids = torch.cat([neighbour, own]).unsqueeze(0)
        logits: Tensor = model(input_ids=ids, position_ids=positions, use_cache=False).logits
        return logits[0, len(neighbour) :].float()

    model.eval()
    try:
        alone = model(input_ids=own.unsqueeze(0), use_cache=False).logits[0].float()
        error = max(float((behind(neighbour) - alone).abs().max()) for neighbour in (one, other))
    except Exception as failure:  # whatever a model does that knows no position ids
        message = f"{name} cannot read packed demonstrations: {failure}"
        raise RunFailure("config", message, mend) from failure
    finally:
        model.train(was_training)
    # Weights that are NaN compare as False here, and are told by name later.
    if error > _TOLERANCE * float(alone.std()):
        message = (
            f"{name} does not keep packed demonstrations apart: what stands before one changes what is read of it."
        )
        raise RunFailure("config", message, mend)

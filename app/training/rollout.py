"""Episodes sampled from the live policy, and the micro-batches through which every network reads them.

Rows are right-padded: under causal attention no real token sees the padding behind it, so no mask is needed to keep it
out, and positions count from 0. Only real answer tokens leave a forward pass, as flat vectors of N.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from app.core.configs import SamplingSettings
from app.core.vocabulary import FinishReason
from app.policy.engine import generate
from app.training.logprobs import Reading, read_tokens
from app.training.processes import ALONE, World


@dataclass(frozen=True)
class Episode:
    """A prompt and one sampled answer, as token ids; `ended` tells whether the answer ends with the stop token."""

    prompt: list[int]
    answer: list[int]
    ended: bool
    sampler_logprobs: list[float]


@dataclass(frozen=True)
class MicroBatch:
    """b rows of a batch in one forward pass of width L; N answer tokens are real.

    ids, attention, answer [b, L]; rows [b] their places in the batch. For each of the N tokens: row and time [N] say
    where it stands in a [B, T] tensor of the batch, local [N] its row here, position [N] the column whose output
    predicts it, token [N] its id.
    """

    ids: Tensor
    attention: Tensor
    answer: Tensor
    rows: Tensor
    row: Tensor
    time: Tensor
    local: Tensor
    position: Tensor
    token: Tensor

    def of(self, values: Tensor) -> Tensor:
        """The batch's values at this micro-batch's tokens. [B, T] -> [N]."""
        return values[self.row, self.time]


@dataclass(frozen=True)
class Minibatch:
    """The rows of one update that this process reads, in micro-batches; `count` is the number of real answer tokens of
    the whole update, whoever reads them."""

    micro: list[MicroBatch]
    count: int


class Batch:
    """The episodes of one iteration, cut once into minibatches and these into micro-batches.

    Rows are dealt to minibatches at random; inside one they are sorted by length, so that little is padding. Because
    the cut stays the same through every pass, a row meets the same neighbours in each, and unchanged weights give
    unchanged log-probabilities to the last bit.

    Every process holds all episodes, cuts the same minibatches, and reads its share of the rows of each.
    """

    def __init__(
        self,
        episodes: Sequence[Episode],
        *,
        pad_id: int,
        minibatches: int,
        micro_batch_size: int,
        generator: torch.Generator,
        device: torch.device,
        world: World = ALONE,
    ) -> None:
        self.episodes = episodes
        self.world = world
        lengths = torch.tensor([len(e.answer) for e in episodes], device=device)
        self.mask = torch.arange(int(lengths.max()), device=device) < lengths.unsqueeze(1)
        self.lengths = lengths
        self.ended = torch.tensor([e.ended for e in episodes], device=device)
        self.minibatches = []
        for part in torch.randperm(len(episodes), generator=generator).chunk(minibatches):
            rows = sorted(part.tolist(), key=lambda i: (len(episodes[i].prompt) + len(episodes[i].answer), i))
            mine = world.share(rows)
            cuts = range(0, len(mine), micro_batch_size)
            micro = [_pack(episodes, mine[i : i + micro_batch_size], pad_id, device) for i in cuts]
            self.minibatches.append(Minibatch(micro, sum(len(episodes[i].answer) for i in rows)))

    def __iter__(self) -> Iterator[MicroBatch]:
        return (micro for minibatch in self.minibatches for micro in minibatch.micro)

    @torch.no_grad()
    def per_token(self, read: Callable[[MicroBatch], Tensor]) -> Tensor:
        """Collect a value for each real token, [N] a micro-batch -> [B, T], 0 on padding."""
        out = torch.zeros(self.mask.shape, device=self.mask.device)
        for micro in self:
            out[micro.row, micro.time] = read(micro).float()
        return self.world.total(out)

    @torch.no_grad()
    def per_row(self, read: Callable[[MicroBatch], Tensor]) -> Tensor:
        """Collect a value for each row, [b] a micro-batch -> [B]."""
        out = torch.zeros(len(self.episodes), device=self.mask.device)
        for micro in self:
            out[micro.rows] = read(micro).float()
        return self.world.total(out)

    def sampler_logprobs(self) -> Tensor:
        """What the sampling engine said of its own tokens, [B, T], 0 on padding."""
        out = torch.zeros(self.mask.shape)
        for row, episode in enumerate(self.episodes):
            out[row, : len(episode.answer)] = torch.tensor(episode.sampler_logprobs)
        return out.to(self.mask.device)


def sample(
    policy: PreTrainedModel,
    prompts: Sequence[list[int]],
    seeds: Sequence[int],
    *,
    temperature: float,
    max_tokens: int,
    stops: Sequence[int],
    pad_id: int,
) -> list[Episode]:
    """One answer a prompt from the whole distribution (top-p 1, no top-k). Nothing is added to a cut answer."""
    sampling = SamplingSettings(temperature=temperature, top_p=1.0, max_tokens=max_tokens)
    answers = generate(policy, prompts, seeds, sampling, stops, pad_id)
    return [
        Episode(prompt, a.token_ids, a.finish is FinishReason.STOP, a.logprobs)
        for prompt, a in zip(prompts, answers, strict=True)
    ]


def read_answers(model: PreTrainedModel, micro: MicroBatch, temperature: float, *, entropy: bool = False) -> Reading:
    """Log-probabilities of the real answer tokens, [N], and the entropies of their distributions."""
    return read_tokens(model, micro.ids, micro.local, micro.position, micro.token, temperature, entropy=entropy)


def _pack(episodes: Sequence[Episode], rows: Sequence[int], pad_id: int, device: torch.device) -> MicroBatch:
    width = max(len(episodes[i].prompt) + len(episodes[i].answer) for i in rows)
    ids = torch.full((len(rows), width), pad_id)
    attention = torch.zeros(len(rows), width, dtype=torch.long)
    answer = torch.zeros(len(rows), width, dtype=torch.bool)
    for place, i in enumerate(rows):
        start, end = len(episodes[i].prompt), len(episodes[i].prompt) + len(episodes[i].answer)
        ids[place, :end] = torch.tensor(episodes[i].prompt + episodes[i].answer)
        attention[place, :end] = 1
        answer[place, start:end] = True
    local, column = answer.nonzero(as_tuple=True)
    starts = torch.tensor([len(episodes[i].prompt) for i in rows])
    where = torch.tensor(rows)
    parts = (ids, attention, answer, where, where[local], column - starts[local], local, column - 1, ids[local, column])
    return MicroBatch(*(part.to(device) for part in parts))

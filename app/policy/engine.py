"""Sampling, fast enough for people and for PPO: batched, with a key-value cache, and finished rows leave the batch.

A row's tokens depend on the model, its prompt, its settings and its seed; who shares the batch changes nothing but the
last bits of floating-point sums.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from app.core.configs import SamplingSettings
from app.core.errors import Invalid
from app.core.vocabulary import FinishReason
from app.policy.checkpoint import embeddings_of
from app.policy.decoders import Decoder, GenericDecoder, LlamaDecoder

MAX_BATCH = 64
_LEAVE_SHARE = 8
"""Finished rows are dropped once they are one in so many of the batch: dropping copies the cache."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One sampled answer.

    `token_ids` ends with the stop token where `finish` is STOP. `logprobs` are natural logarithms of each token's
    probability under softmax(logits / temperature) over the whole vocabulary, before any top-p cut.
    """

    token_ids: list[int]
    logprobs: list[float]
    finish: FinishReason


class Drawn(NamedTuple):
    """One more token of one row; `finish` is set with its last one."""

    row: int
    token: int
    logprob: float
    finish: FinishReason | None


def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    sampling: SamplingSettings | Sequence[SamplingSettings],
    eos_id: int | Collection[int],
    pad_id: int,
    *,
    max_batch: int = MAX_BATCH,
    like: Decoder | None = None,
    between: Callable[[], None] | None = None,
) -> list[Generation]:
    """One answer a prompt, in order. The model's live weights are used; its mode and gradients are left alone.

    `sampling` is shared, or one for each prompt; `eos_id` is every token that ends an answer. An answer never outgrows
    the model's context; Invalid where a prompt leaves no room for one token. `like` is what `shared_weights` gave;
    `between` is called after each step, for whoever cannot wait until all are done.
    """
    settings = [sampling] * len(prompts) if isinstance(sampling, SamplingSettings) else list(sampling)
    if not len(prompts) == len(seeds) == len(settings):
        raise ValueError("prompts, seeds and sampling must be equally many")
    stops = {eos_id} if isinstance(eos_id, int) else set(eos_id)
    limits = _limits(model, prompts, settings)
    # Prompts of like length share a batch, so that little is padding.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: dict[int, Generation] = {}
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for start in range(0, len(order), max_batch):
                rows = order[start : start + max_batch]
                batch = _Batch(model, [prompts[i] for i in rows], [limits[i] for i in rows], pad_id, like)
                draws = _Draws([seeds[i] for i in rows], [settings[i] for i in rows], limits=[limits[i] for i in rows])
                answers.update(zip(rows, batch.run(draws, stops, between), strict=True))
    finally:
        model.train(was_training)
    return [answers[i] for i in range(len(prompts))]


def generate_by_step(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    settings: Sequence[SamplingSettings],
    stops: Collection[int],
    pad_id: int,
    gone: Collection[int],
    like: Decoder | None = None,
) -> Iterator[list[Drawn]]:
    """What `generate` gives, a step at a time, for a model in eval mode; a row put into `gone` leaves at the next one.

    For whoever streams: between two steps anything else may be computed. Ends when every row has ended.
    """
    limits = _limits(model, prompts, settings)
    batch = _Batch(model, prompts, limits, pad_id, like)
    return batch.steps(_Draws(seeds, settings, limits), stops, gone)


def decoder_for(model: PreTrainedModel, capacity: int, like: Decoder | None = None) -> Decoder:
    """The fast path where the model is Llama, else the general one."""
    if not LlamaDecoder.fits(model):
        return GenericDecoder(model)
    assert like is None or isinstance(like, LlamaDecoder)
    return LlamaDecoder(model, capacity, like=like)  # type: ignore[arg-type]


def shared_weights(model: PreTrainedModel) -> Decoder | None:
    """For `like`: spares each batch its own copy of the weights, for a model that will not change any more."""
    return LlamaDecoder(model, 1) if LlamaDecoder.fits(model) else None  # type: ignore[arg-type]


def _limits(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], settings: Sequence[SamplingSettings]
) -> list[int]:
    context = getattr(model.config, "max_position_embeddings", None)
    return [_limit(len(p), s.max_tokens, context) for p, s in zip(prompts, settings, strict=True)]


def _limit(prompt: int, wanted: int, context: int | None) -> int:
    if prompt == 0:
        raise Invalid("A prompt needs at least one token.")
    room = wanted if context is None else min(wanted, context - prompt)
    if room < 1:
        raise Invalid(
            f"The prompt has {prompt} tokens; the model's context of {context} leaves no room for an answer.",
            "Shorten the conversation, or use a model with a longer context.",
        )
    return room


class _Draws:
    """Uniform numbers and settings of each row: the row's own seed alone decides its draws."""

    def __init__(self, seeds: Sequence[int], settings: Sequence[SamplingSettings], limits: Sequence[int]) -> None:
        self.uniform = torch.stack([_uniform(seed, max(limits)) for seed in seeds])
        self.temperature = torch.tensor([[s.temperature] for s in settings])
        self.top_p = torch.tensor([[s.top_p] for s in settings])
        self.cuts = any(s.top_p < 1 for s in settings)

    def keep(self, rows: Tensor) -> None:
        self.uniform, self.temperature, self.top_p = self.uniform[rows], self.temperature[rows], self.top_p[rows]

    def draw(self, logits: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Tokens [B] by the inverse of each row's distribution function, and their log-probabilities [B]."""
        logprobs = torch.log_softmax(logits / self.temperature.to(logits), -1)
        weights = logprobs.exp()
        if self.cuts:
            weights = weights * _nucleus(weights, self.top_p.to(weights))
        cumulative = weights.cumsum(-1, dtype=torch.float64)
        target = self.uniform[:, step, None].to(cumulative.device) * cumulative[:, -1:]
        tokens = torch.searchsorted(cumulative, target, right=True).clamp_max(logits.shape[-1] - 1)
        return tokens[:, 0], logprobs.gather(-1, tokens)[:, 0]


def _uniform(seed: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed % 2**63)
    return torch.rand(count, generator=generator, dtype=torch.float64)


def _nucleus(weights: Tensor, top_p: Tensor) -> Tensor:
    """1.0 for the tokens of the smallest set with at least `top_p` of the weight (Holtzman et al. 2020), else 0."""
    ordered, tokens = weights.sort(stable=True, dim=-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    return torch.zeros_like(weights).scatter(-1, tokens, (before < top_p).to(weights.dtype))


class _Batch:
    """The rows of one batch, from their prompts to their ends."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        pad_id: int,
        like: Decoder | None = None,
    ) -> None:
        width = max(map(len, prompts))
        device = embeddings_of(model).device
        ids = torch.full((len(prompts), width), pad_id)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
        self._ids = ids.to(device)
        self._lengths = torch.tensor([len(p) for p in prompts], device=device)
        self._limits = list(limits)
        self._decoder = decoder_for(model, width + max(limits), like)

    def run(self, draws: _Draws, stops: Collection[int], between: Callable[[], None] | None = None) -> list[Generation]:
        """All rows to their ends."""
        answers = [Generation([], [], FinishReason.LENGTH) for _ in self._limits]
        for drawn in self.steps(draws, stops):
            for row, token, logprob, finish in drawn:
                answers[row].token_ids.append(token)
                answers[row].logprobs.append(logprob)
                if finish is FinishReason.STOP:
                    answers[row] = replace(answers[row], finish=finish)
            if between is not None:
                between()
        return answers

    def steps(self, draws: _Draws, stops: Collection[int], gone: Collection[int] = ()) -> Iterator[list[Drawn]]:
        """The tokens of each step, until every row has ended or is gone."""
        counts = [0] * len(self._limits)
        ended = [False] * len(self._limits)
        alive = list(range(len(self._limits)))
        logits = self._decoder.prefill(self._ids, self._lengths)
        for step in range(max(self._limits)):
            tokens, chances = draws.draw(logits, step)
            drawn: list[Drawn] = []
            running = []
            for place, (row, token, chance) in enumerate(zip(alive, tokens.tolist(), chances.tolist(), strict=True)):
                if ended[row] or row in gone:
                    continue
                counts[row] += 1
                finish = FinishReason.STOP if token in stops else None
                if finish is None and counts[row] == self._limits[row]:
                    finish = FinishReason.LENGTH
                ended[row] = finish is not None
                drawn.append(Drawn(row, token, chance, finish))
                if finish is None:
                    running.append(place)
            yield drawn
            if not running:
                return
            if len(alive) - len(running) >= max(1, len(alive) // _LEAVE_SHARE):
                rows = torch.tensor(running, device=tokens.device)
                self._decoder.keep(rows)
                draws.keep(rows.cpu())
                tokens = tokens[rows]
                alive = [alive[place] for place in running]
            logits = self._decoder.step(tokens)

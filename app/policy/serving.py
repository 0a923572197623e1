"""What the sampler process does behind its door: keeps two models, and answers waiting requests in batches.

Somebody watches a streamed answer being written, so those do not wait for a batch under way: they are drawn between its
steps, one of theirs for one of its.
"""

import logging
import queue
import re
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from app.core.configs import SamplingSettings
from app.core.errors import Invalid, NotFound, PairwrightError, Unavailable
from app.core.folders import DamagedFolder
from app.core.records import Message
from app.core.vocabulary import FinishReason
from app.policy.chat import decode, encode_prompt, template_hash
from app.policy.checkpoint import Policy, load_policy, stop_ids
from app.policy.decoders import Decoder
from app.policy.engine import MAX_BATCH, Drawn, Generation, generate, generate_by_step, shared_weights
from app.policy.text import Unfolding

KEPT = 2
LONGEST_QUEUE = 1024
SMALL = 64 << 20
"""Weights of so many bytes are read by one thread as quickly as anybody wants to read."""
GATHER_S, LONGEST_GATHER_S = 0.003, 0.03
"""A batch begins when so long nobody has joined it, or at the latest after so long."""

logger = logging.getLogger("pairwright.sampler")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class Loaded:
    """A model that is ready to answer."""

    policy: Policy
    template: str
    stops: tuple[int, ...]
    weights: Decoder | None
    small: bool


class Models:
    """The checkpoint folders under a root, the two last used of them in memory. For one thread."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self._kept: OrderedDict[str, Loaded] = OrderedDict()

    def names(self) -> list[str]:
        """The folders that look like models, sorted."""
        if not self._root.is_dir():
            return []
        return sorted(p.name for p in self._root.iterdir() if _NAME.fullmatch(p.name) and (p / "config.json").is_file())

    def get(self, name: str) -> Loaded:
        """The model of that name. NotFound unless it is a folder right under the root; Invalid if it cannot serve."""
        folder = self._root / name
        if not _NAME.fullmatch(name) or folder.resolve().parent != self._root or not folder.is_dir():
            raise NotFound("There is no such model.")
        if name in self._kept:
            self._kept.move_to_end(name)
            return self._kept[name]
        while len(self._kept) >= KEPT:
            self._kept.popitem(last=False)
        started = time.monotonic()
        policy = load_policy(folder)
        with torch.inference_mode():
            weights = shared_weights(policy.model.eval())
        self._kept[name] = Loaded(policy, template_hash(policy.tokenizer), stop_ids(*policy), weights, _small(policy))
        logger.info("loaded %s in %.1f s", name, time.monotonic() - started)
        return self._kept[name]


@dataclass(frozen=True)
class Answer:
    """One sampled answer with what its provenance needs."""

    text: str
    generation: Generation
    prompt_tokens: int
    template: str


@dataclass
class Request:
    """One request on its way; `answer` is set by the batching thread.

    `heard` makes it a streamed one: it is called in that thread with each new piece of text. A streamed request whose
    `gone` is set is given up at the next token.
    """

    model: str
    messages: Sequence[Message]
    sampling: SamplingSettings
    seed: int
    answer: "Future[Answer]" = field(default_factory=Future)
    heard: Callable[[str], None] | None = None
    gone: bool = False


class Batcher(threading.Thread):
    """Takes requests from any thread and answers them, those for the same model together."""

    def __init__(self, models: Models) -> None:
        super().__init__(name="batcher", daemon=True)
        self._models = models
        self._arriving: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._waiting: deque[Request] = deque()
        self._live = Live(models)
        self._stopped = False

    def submit(self, request: Request) -> "Future[Answer]":
        """Queue a request. Unavailable when too many wait already, or when the sampler is stopping."""
        if self._stopped or self._arriving.qsize() >= LONGEST_QUEUE:
            raise Unavailable("The sampler is stopping." if self._stopped else "Too many requests are waiting.")
        self._arriving.put(request)
        return request.answer

    def stop(self) -> None:
        """Finish the batch under way, refuse the rest, end the thread."""
        self._stopped = True
        self._arriving.put(None)

    def run(self) -> None:
        while not self._stopped:
            if not self._waiting and not self._live and (first := self._arriving.get()) is not None:
                self._take(first)
            self._gather()
            if self._waiting and not self._stopped:
                self._answer(self._next_batch())
            self._between()
        self._drain()
        while self._live and self._live.step():
            pass
        for request in self._waiting:
            _settle(request, error=Unavailable("The sampler is stopping."))

    def _take(self, request: Request) -> None:
        if request.heard is not None:
            self._live.add(request)
        else:
            self._waiting.append(request)

    def _between(self) -> None:
        """A token for everybody who watches; called between the steps of a batch."""
        self._drain()
        if self._live.arriving:
            # The two answers to one message come together, and share their steps.
            time.sleep(GATHER_S)
            self._drain()
        self._live.step()

    def _gather(self) -> None:
        """Wait for those who come together: a crowd's requests arrive one after the other."""
        latest = time.monotonic() + LONGEST_GATHER_S
        self._drain()
        seen = -1
        while (
            not self._live and seen < len(self._waiting) < MAX_BATCH and time.monotonic() < latest and not self._stopped
        ):
            seen = len(self._waiting)
            time.sleep(GATHER_S)
            self._drain()

    def _drain(self) -> None:
        while True:
            try:
                request = self._arriving.get_nowait()
            except queue.Empty:
                return
            if request is not None:
                self._take(request)

    def _next_batch(self) -> list[Request]:
        """The oldest request and those behind it for the same model."""
        model = self._waiting[0].model
        batch: list[Request] = []
        others: deque[Request] = deque()
        for request in self._waiting:
            (batch if request.model == model and len(batch) < MAX_BATCH else others).append(request)
        self._waiting = others
        # A client that went away has cancelled its future.
        return [request for request in batch if request.answer.set_running_or_notify_cancel()]

    def _answer(self, batch: list[Request]) -> None:
        if not batch:
            return
        try:
            loaded = self._models.get(batch[0].model)
        except Exception as error:
            for request in batch:
                _settle(request, error=error)
            return
        encoded: list[tuple[Request, list[int]]] = []
        for request in batch:
            try:
                encoded.append((request, _encode(loaded, request)))
            except Exception as error:
                _settle(request, error=error)
        try:
            answers = _sample(loaded, encoded, self._between)
        except Exception as error:
            logger.exception("a batch of %d failed", len(encoded))
            for request, _ in encoded:
                _settle(request, error=error)
            return
        for (request, ids), generation in zip(encoded, answers, strict=True):
            text = decode(loaded.policy.tokenizer, generation.token_ids)
            _settle(request, Answer(text, generation, len(ids), loaded.template))


@dataclass
class _Watched:
    """A streamed request under way."""

    request: Request
    prompt_tokens: int
    text: Unfolding
    drawn: Generation


@dataclass
class _Group:
    """Streamed requests that came together for one model, and share its steps."""

    loaded: Loaded
    watched: list[_Watched]
    gone: set[int]
    steps: Iterator[list[Drawn]]


class Live:
    """The streamed requests: groups that take one step each in turn. True while any waits or is under way."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._new: list[Request] = []
        self._groups: list[_Group] = []
        self._threads = torch.get_num_threads()

    def __bool__(self) -> bool:
        return bool(self._new or self._groups)

    @property
    def arriving(self) -> bool:
        """Whether somebody has come since the last step."""
        return bool(self._new)

    def add(self, request: Request) -> None:
        """Take a request in with the next step."""
        self._new.append(request)

    def step(self) -> bool:
        """One more token for each; False when nobody is left."""
        # Whoever gave up before the first token costs nothing.
        new = [r for r in self._new if not r.gone and r.answer.set_running_or_notify_cancel()]
        self._new = []
        for model in dict.fromkeys(request.model for request in new):
            self._begin([request for request in new if request.model == model])
        self._share()
        self._groups = [group for group in self._groups if _advance(group)]
        self._share()
        return bool(self)

    def _share(self) -> None:
        """While somebody watches a small model, it computes in one thread, and so does the batch between its steps.

        Threads wait for each other after each of a step's many short parts. Beside a training run that wait is for the
        scheduler: docs/decisions/sharing-two-cores.md has the figures, 90 ms a step or 11.
        """
        threads = 1 if self._groups and all(group.loaded.small for group in self._groups) else self._threads
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)

    def _begin(self, requests: list[Request]) -> None:
        watched: list[_Watched] = []
        encoded: list[tuple[Request, list[int]]] = []
        try:
            loaded = self._models.get(requests[0].model)
        except Exception as error:
            for request in requests:
                _settle(request, error=error)
            return
        for request in requests:
            try:
                ids = _encode(loaded, request)
            except Exception as error:
                _settle(request, error=error)
                continue
            encoded.append((request, ids))
            nothing = Generation([], [], FinishReason.LENGTH)
            watched.append(_Watched(request, len(ids), Unfolding(loaded.policy.tokenizer), nothing))
        if not encoded:
            return
        gone: set[int] = set()
        try:
            steps = _sample_by_step(loaded, encoded, gone)
        except Exception as error:
            for request, _ in encoded:
                _settle(request, error=error)
            return
        self._groups.append(_Group(loaded, watched, gone, steps))


def _advance(group: _Group) -> bool:
    """One step of one group; False when all its rows have ended or are given up."""
    group.gone.update(row for row, one in enumerate(group.watched) if one.request.gone)
    if len(group.gone) == len(group.watched):
        return False
    try:
        with torch.inference_mode():
            drawn = next(group.steps, None)
    except Exception as error:
        logger.exception("a stream of %d failed", len(group.watched))
        for one in group.watched:
            if not one.request.answer.done():
                _settle(one.request, error=error)
        return False
    for row, token, logprob, finish in drawn or ():
        _hear(group.loaded, group.watched[row], token, logprob, finish)
    return drawn is not None


def _hear(loaded: Loaded, one: _Watched, token: int, logprob: float, finish: FinishReason | None) -> None:
    one.drawn.token_ids.append(token)
    one.drawn.logprobs.append(logprob)
    assert one.request.heard is not None
    if piece := one.text.add(token):
        one.request.heard(piece)
    if finish is None:
        return
    text = decode(loaded.policy.tokenizer, one.drawn.token_ids)
    if rest := one.text.rest(text):
        one.request.heard(rest)
    _settle(one.request, Answer(text, replace(one.drawn, finish=finish), one.prompt_tokens, loaded.template))


def _small(policy: Policy) -> bool:
    weights = list(policy.model.parameters())
    return not any(w.is_cuda for w in weights) and sum(w.nbytes for w in weights) <= SMALL


def _encode(loaded: Loaded, request: Request) -> list[int]:
    ids = encode_prompt(loaded.policy.tokenizer, request.messages)
    context = getattr(loaded.policy.model.config, "max_position_embeddings", None)
    if context is not None and len(ids) >= context:
        raise Invalid(f"The conversation has {len(ids)} tokens; the model reads at most {context - 1}.")
    return ids


def _sample(
    loaded: Loaded, encoded: Sequence[tuple[Request, list[int]]], between: Callable[[], None]
) -> list[Generation]:
    model, tokenizer = loaded.policy
    assert tokenizer.pad_token_id is not None
    return generate(
        model,
        [ids for _, ids in encoded],
        [request.seed for request, _ in encoded],
        [request.sampling for request, _ in encoded],
        loaded.stops,
        tokenizer.pad_token_id,
        like=loaded.weights,
        between=between,
    )


def _sample_by_step(
    loaded: Loaded, encoded: Sequence[tuple[Request, list[int]]], gone: set[int]
) -> Iterator[list[Drawn]]:
    model, tokenizer = loaded.policy
    assert tokenizer.pad_token_id is not None
    with torch.inference_mode():
        return generate_by_step(
            model,
            [ids for _, ids in encoded],
            [request.seed for request, _ in encoded],
            [request.sampling for request, _ in encoded],
            loaded.stops,
            tokenizer.pad_token_id,
            gone,
            loaded.weights,
        )


def _settle(request: Request, answer: Answer | None = None, error: BaseException | None = None) -> None:
    if isinstance(error, DamagedFolder):
        error = Invalid(str(error), "Restore the checkpoint from a backup.")
    if error is not None and not isinstance(error, PairwrightError):
        kind = "out of memory" if isinstance(error, torch.OutOfMemoryError | MemoryError) else type(error).__name__
        error = Unavailable(f"Sampling failed: {kind}.")
    if request.answer.cancelled():
        return
    if error is not None:
        request.answer.set_exception(error)
    else:
        assert answer is not None
        request.answer.set_result(answer)

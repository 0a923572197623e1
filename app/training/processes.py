"""The processes that train one run together: who they are, what each does of an update, and how they stay one run.

Each process holds the whole model. The rows of an update are shared out; every loss is divided by the tokens or
judgments of the whole update, wherever they are read, so the gradients of the processes add up to the gradient of one
process. All then make the same step. `ALONE`, one process, does none of this: every method gives back what it is given.

    loss = gradient_of(run.world.share(rows), count=tokens_of(rows))
    run.world.sum_gradients(optimizer.parameters)
    norm = optimizer.step(...)

Only the main process, of rank 0, writes into the run directory. What decides how a run goes on (a stop, a KL over its
budget) is decided once, for all. `torchrun` and `accelerate launch` start the processes and tell each who it is.
"""

import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from app.training.failures import RunFailure

T = TypeVar("T")
V = TypeVar("V")

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for another that is alive and says nothing. One that ended is noticed at once."""
BUCKET = 1 << 24
"""Numbers summed at once, 64 MiB in fp32: few messages, and little memory beside the gradients."""
_WRITING = timedelta(seconds=10)


@dataclass(frozen=True)
class World:
    """One process among `size`. Local numbers count the processes of its own machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    _store: Any = field(default=None, repr=False)

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def device(self, wanted: Literal["auto", "cpu", "cuda"]) -> torch.device:
        """Where this process computes. `auto`: on a GPU where there is one; each local process has a GPU of its own.

        RunFailure `config` where there is no GPU, or fewer than processes of this machine.
        """
        if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
            return torch.device("cpu")
        if not torch.cuda.is_available():
            mend = "Set device to cpu or auto, or install a build of torch for the GPU (README, Torch)."
            raise RunFailure("config", "device is cuda, and torch finds no GPU here.", mend)
        count = torch.cuda.device_count()
        if self.local_size > count:
            message = f"{self.local_size} processes on a machine with {count} GPU{'s' if count > 1 else ''}."
            raise RunFailure("config", message, "Start as many processes a machine as it has GPUs, or set device=cpu.")
        torch.cuda.set_device(self.local_rank)
        return torch.device("cuda", self.local_rank)

    # ---- sharing out -------------------------------------------------------------------------------------------

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Every `size`-th of the items, from this rank's on: of items sorted by length all get a like share."""
        return items if self.size == 1 else items[self.rank :: self.size]

    def mine(self, groups: Tensor) -> Tensor:
        """Which entries this process reads, where entries of one group belong together. [N] -> [N], bool."""
        if self.size == 1:
            return torch.ones_like(groups, dtype=torch.bool)
        return torch.isin(groups, groups.unique()[self.rank :: self.size])

    def spread(self, items: Sequence[T], work: Callable[[Sequence[T]], Sequence[V]]) -> list[V]:
        """The results of `work`, one an item and in their order, each process having worked on its share.

        Results are plain data: numbers (which come back to the last bit), strings, and lists of them.
        """
        if self.size == 1:
            return list(work(items))
        own = self.share(items)
        results: list[V] = [None] * len(items)  # type: ignore[list-item]
        for rank, part in enumerate(self.gather(list(work(own)) if own else [])):
            results[rank :: self.size] = part
        return results

    # ---- bringing together -------------------------------------------------------------------------------------

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its sum over the processes; where all have none there is none after it, either."""
        if self.size == 1:
            return
        every = list(parameters)
        known = self.total(torch.tensor([p.grad is not None for p in every], dtype=torch.int32)).tolist()
        gradients: list[Tensor] = []
        for parameter, processes in zip(every, known, strict=True):
            if processes:
                # One without rows has no gradient: it adds zeros.
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                gradients.append(parameter.grad)
        for bucket in buckets(gradients):
            if len(bucket) == 1 and bucket[0].is_contiguous():
                self.total(bucket[0])
                continue
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            self.total(flat)
            for gradient, total in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(total.view_as(gradient))

    def sum(self, figures: Mapping[str, float], largest: Sequence[str] = ()) -> dict[str, float]:
        """Figures added up over the processes, of those in `largest` the largest; a process may lack some."""
        if self.size == 1:
            return dict(figures)
        total: dict[str, float] = {}
        for part in self.gather(dict(figures)):
            for name, value in part.items():
                one = total.get(name)
                total[name] = value if one is None else max(one, value) if name in largest else one + value
        return total

    def total(self, values: Tensor) -> Tensor:
        """The sum of a tensor over the processes; of rows that one process filled and others left 0, these rows."""
        if self.size > 1:
            with _others():
                dist.all_reduce(values)
        return values

    def agreed(self, value: V) -> V:
        """The main process's value, plain data, for all: what decides how a run goes on must not differ by a bit."""
        if self.size == 1:
            return value
        answer: V = self.gather(value if self.main else None)[0]
        return answer

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process."""
        return flag if self.size == 1 else bool(self.total(torch.tensor(int(flag))))

    def gather(self, value: Any) -> list[Any]:
        """What each process gives, by rank: plain data, which travels as JSON."""
        if self.size == 1:
            return [value]
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        with _others():
            lengths = [torch.zeros(1, dtype=torch.long) for _ in range(self.size)]
            dist.all_gather(lengths, torch.tensor([len(text)]))
            longest = max(int(length) for length in lengths)
            texts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
            dist.all_gather(texts, torch.cat([text, torch.zeros(longest - len(text), dtype=torch.uint8)]))
        return [json.loads(t[: int(n)].numpy().tobytes()) for t, n in zip(texts, lengths, strict=True)]

    def require_same(self, what: str, value: Any) -> None:
        """RunFailure `config` where processes differ in what they must have in common."""
        every = self.gather(value)
        if any(other != every[0] for other in every):
            mend = "Give every process the same run directory, on machines of the same kind."
            raise RunFailure("config", f"The processes of the run do not have the same {what}.", mend)

    def wait_for_main(self) -> None:
        """Until the main process has come here, too. It needs nobody any more, and goes on whoever is gone."""
        try:
            self.gather(None)
        except RunFailure:
            if not self.main:
                raise

    # ---- ending ------------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """Part from the others, after all is done."""
        if self.size > 1:
            dist.destroy_process_group()

    def fail(self, code: int, cause: str, write: Callable[[str], None]) -> None:
        """Write the cause that the first process to fail gave; where there are several, end this one at once by `code`.

        The others fail because of it: their connection closes, or the launcher ends them. What they say then is no
        cause. A process that waits for nobody any more cannot hang.
        """
        if self._store is None:
            write(cause)
            return
        try:
            first = self._store.add("failed", 1) == 1
            if first:
                self._store.set("cause", cause)
                write(cause)
                self._store.set("written", "yes")
            else:
                # The launcher ends the rest as soon as one is gone; the words must be on disk by then.
                self._store.wait(["written"], _WRITING)
            if self.main and not first:
                # Once more, after it and not beside it: the other may be on a machine that does not see the directory.
                write(self._store.get("cause").decode())
        except (RuntimeError, ValueError):  # whoever keeps the store is gone
            if self.main:
                write(cause)
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


ALONE = World()


def join(timeout: timedelta = TIMEOUT) -> World:
    """This process's place among those that a launcher started, by the environment that torchrun gives; else ALONE.

    Tensors on the CPU travel by gloo, those on a GPU by NCCL.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    store, rank, size = next(iter(rendezvous("env://", timeout=timeout)))
    both = torch.cuda.is_available() and dist.is_nccl_available()
    backend = "cpu:gloo,cuda:nccl" if both else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    local_rank, local_size = (int(os.environ[name]) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    own = dist.PrefixStore("pairwright", store)  # type: ignore[attr-defined]  # not exported, yet documented
    return World(rank, size, local_rank, local_size, own)


def buckets(tensors: Sequence[Tensor], most: int = BUCKET) -> Iterator[list[Tensor]]:
    """Tensors of one type and device together, at most `most` numbers or a single tensor at a time."""
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for kind in kinds.values():
        bucket: list[Tensor] = []
        for tensor in kind:
            if bucket and sum(t.numel() for t in bucket) + tensor.numel() > most:
                yield bucket
                bucket = []
            bucket.append(tensor)
        yield bucket


@contextmanager
def _others() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        # gloo says where in its own source, then why, then what usually helps.
        reason = re.sub(r"^\[[^\]]*\]\s*", "", str(error).strip()).partition("\n")[0].partition(". ")[0]
        message = f"Another process of the run ended or does not answer: {reason or type(error).__name__}."
        mend = "Its own lines in the log say why. Start the run again: it goes on from the newest checkpoint."
        raise RunFailure("internal", message, mend) from error

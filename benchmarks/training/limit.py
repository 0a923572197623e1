"""`python -m benchmarks.training.limit JOB.json`: what a task's matrix products reach alone, as JSON.

Counted are the products of the model's own modules, one by one, on real tokens only, in passes as large as those of our
trainer: what goes to padding, to whatever is no product, to Python and to the optimizer is lost against this limit.
Attention counts half of its two products, since half of what they compute is masked away.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoConfig

from benchmarks.training.scenes import THREADS

LEAST_S, REPEATS = 0.03, 7


class Net(NamedTuple):
    """The numbers of a Llama that its products depend on."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    size: int
    vocabulary: int


class Read(NamedTuple):
    """One network reading a pass: `rows` rows of `width` real tokens, of which `read` are read at the end.

    The last layer's queries, outputs and feed-forward products are those of these tokens; with a `head`, its too.
    """

    rows: float
    width: float
    read: float
    head: bool
    trained: bool


def main() -> None:
    """Print seconds and multiply-adds of each phase of the job."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(THREADS)
    config = AutoConfig.from_pretrained(job["model"], local_files_only=True)
    net = Net(
        config.hidden_size,
        config.intermediate_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
        config.vocab_size,
    )
    clock = Clock(job["device"], torch.bfloat16 if job["device"] == "cuda" else torch.float32)
    found = {}
    for phase, reads in job["phases"].items():
        seconds = flops = 0.0
        for times, read in reads:
            s, f = cost(net, Read(*read), clock)
            seconds, flops = seconds + times * s, flops + times * f
        found[phase] = {"seconds": seconds, "gflop": flops / 1e9}
    if job.get("decode"):
        found["sample"] = decode(net, clock, **job["decode"])
    found["peak_gflops"] = clock.peak()
    print(json.dumps(found))


class Clock:
    """Times products; the same shape once."""

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype
        self._known: dict[tuple[Any, ...], float] = {}

    def product(self, rows: float, inner: int, columns: int) -> tuple[float, float]:
        """Seconds and operations of [rows, inner] x [inner, columns], the second one stored as a Linear stores it."""
        n = max(1, round(rows))
        x, w = self._random(n, inner), self._random(columns, inner)
        return self._time(("p", n, inner, columns), lambda: torch.nn.functional.linear(x, w)), 2.0 * n * inner * columns

    def gradients(self, rows: float, inner: int, columns: int) -> tuple[float, float]:
        """The same of the two products of that product's backward pass."""
        n = max(1, round(rows))
        x, w, g = self._random(n, inner), self._random(columns, inner), self._random(n, columns)
        a = self._time(("x", n, inner, columns), lambda: g @ w)
        b = self._time(("w", n, inner, columns), lambda: g.t() @ x)
        return a + b, 4.0 * n * inner * columns

    def batched(self, count: float, rows: float, inner: float, columns: float) -> tuple[float, float]:
        """Seconds and operations of `count` products [rows, inner] x [inner, columns]."""
        b, n, k, m = (max(1, round(v)) for v in (count, rows, inner, columns))
        x, y = self._random(b, n, k), self._random(b, k, m)
        return self._time(("b", b, n, k, m), lambda: torch.bmm(x, y)), 2.0 * b * n * k * m

    def peak(self) -> float:
        """Gigaoperations a second of one large product."""
        side = 2048 if self._device == "cpu" else 8192
        seconds, flops = self.product(side, side, side)
        return flops / seconds / 1e9

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self._device, dtype=self._dtype)

    def _time(self, key: tuple[Any, ...], work: Callable[[], Tensor]) -> float:
        if key not in self._known:
            self._run(work, 3)
            once = self._run(work, 1)
            times = max(1, int(LEAST_S / max(once, 1e-7)))
            self._known[key] = median(self._run(work, times) / times for _ in range(REPEATS))
        return self._known[key]

    def _run(self, work: Callable[[], Tensor], times: int) -> float:
        if self._device == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(times):
            work()
        if self._device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started


def memory(net: Net) -> list[tuple[int, int]]:
    """Inner and outer width of a layer's linear maps that serve the tokens behind: keys and values."""
    return 2 * [(net.hidden, net.kv_heads * net.size)]


def own(net: Net) -> list[tuple[int, int]]:
    """The same of those that serve a token itself."""
    q = net.heads * net.size
    return [(net.hidden, q), (q, net.hidden), *2 * [(net.hidden, net.intermediate)], (net.intermediate, net.hidden)]


def cost(net: Net, read: Read, clock: Clock) -> tuple[float, float]:
    """Seconds and operations of the products of one pass."""
    parts = []
    tokens = read.rows * read.width
    wide = [(net.layers, tokens, *shape) for shape in memory(net)]
    wide += [(net.layers - 1, tokens, *shape) for shape in own(net)]
    wide += [(1, read.read, *shape) for shape in own(net)]
    if read.head:
        wide.append((1, read.read, net.hidden, net.vocabulary))
    for times, rows, inner, columns in wide:
        parts.append((times, clock.product(rows, inner, columns)))
        if read.trained:
            parts.append((times, clock.gradients(rows, inner, columns)))
    matrices = read.rows * net.heads
    scores = clock.batched(matrices, read.width, net.size, read.width)
    values = clock.batched(matrices, read.width, read.width, net.size)
    # Backward: two products of either kind again. The last layer's queries are those of the tokens that are read.
    share = 0.5 * (net.layers - 1 + read.read / tokens) * (3 if read.trained else 1)
    parts += [(share, scores), (share, values)]
    return sum(n * p[0] for n, p in parts), sum(n * p[1] for n, p in parts)


def decode(net: Net, clock: Clock, *, rows: float, prompt: float, steps: float, alive: float) -> dict[str, float]:
    """Sampling: one pass over `rows` prompts, then `steps` single columns of `alive` rows that still write."""
    seconds, flops = cost(net, Read(rows, prompt, rows, False, False), clock)
    width = prompt + steps / 2
    column = [(net.layers, clock.product(alive, *shape)) for shape in (*memory(net), *own(net))]
    column.append((1, clock.product(alive, net.hidden, net.vocabulary)))
    column.append((net.layers, clock.batched(alive * net.heads, 1, net.size, width)))
    column.append((net.layers, clock.batched(alive * net.heads, 1, width, net.size)))
    seconds += steps * sum(n * p[0] for n, p in column)
    flops += steps * sum(n * p[1] for n, p in column)
    return {"seconds": seconds, "gflop": flops / 1e9}


if __name__ == "__main__":
    main()
